"""Staying near the reference: the frozen model the policy began as, and what straying costs."""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from puna.alignment.losses import kl_k1, kl_k3
from puna.alignment.pairs import AnswerBatch
from puna.core.config import Config
from puna.model import Llama, adapter_disabled, token_logprobs
from puna.model.lora import lora_layers

_GAIN = 0.1  # of the adaptive coefficient, and the largest error it acts on: Ziegler et al. 2019
_LARGEST_ERROR = 0.2


class KLConfig(Config):
    """The price of straying from the reference."""

    coefficient: float = Field(default=0.05, ge=0)
    """Price of a nat; where it starts, with a target."""
    target: float | None = Field(default=None, gt=0)
    """Nats per answer at which the coefficient is to hold the policy; None keeps it fixed."""
    estimator: Literal["k1", "k3"] = "k1"
    """How a token's share is estimated: the log-ratio, or its never negative form."""


class KLController:
    """The coefficient, fixed or following a target (arXiv 1909.08593, section 2.2).

    Attributes:
        coefficient: price of a nat now.
    """

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.coefficient = config.coefficient

    def update(self, kl_per_answer: float) -> None:
        """Take a measured divergence (nats per answer) into account: too far makes it dearer."""
        if self.config.target is None:
            return
        error = kl_per_answer / self.config.target - 1
        held = min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.coefficient *= 1 + _GAIN * held

    def estimate(self, logprobs: Tensor, reference: Tensor) -> Tensor:
        """KL(policy || reference) from each sampled token, of the arguments' shape."""
        estimator = kl_k1 if self.config.estimator == "k1" else kl_k3
        return estimator(logprobs, reference)


class Reference:
    """The model as it is now, frozen: a copy, or under adapters the model without them.

    Args:
        model: the policy before training.
        dtype: in which it will compute; the copy is held in it, which gives the same numbers.
    """

    def __init__(self, model: Llama, dtype: torch.dtype) -> None:
        self._frozen: Llama | None = None
        if next(iter(lora_layers(model)), None) is None:
            self._frozen = copy.deepcopy(model).requires_grad_(requires_grad=False).to(dtype)

    @torch.no_grad()
    def logprobs(self, model: Llama, answers: AnswerBatch, temperature: float) -> Tensor:
        """Log-probability of each answer's token, (n,); ``model`` is the policy as it is now."""
        if self._frozen is not None:
            return answer_logprobs(self._frozen, answers, temperature)[0]
        with adapter_disabled(model):
            return answer_logprobs(model, answers, temperature)[0]


def answer_logprobs(
    model: Llama, answers: AnswerBatch, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a model makes of answers sampled at ``temperature``, differentiable.

    Returns:
        Log-probability of each answer's token (n,) fp32, the states that predict them, over the
        temperature (n, dim), and the final states of all positions (rows * time, dim).
    """
    hidden_nd = answers.hidden(model)
    states_nd = hidden_nd.index_select(0, answers.places) / temperature
    logprobs = token_logprobs(states_nd[None], model.head_weight(), answers.labels[None])
    return logprobs[0], states_nd, hidden_nd
