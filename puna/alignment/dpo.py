"""Direct preference optimisation as "The Llama 3 Herd of Models" section 4.1.4 describes it.

Beta 0.1; header and end-of-turn tokens, common to both answers, are masked out of the preference
loss; a negative log-likelihood of the chosen answer, weighted 0.2, keeps its probability from
falling. The reference is frozen, so its log-probabilities are computed once and kept. Other losses
on the same log-probabilities are a word in the configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from puna.alignment.losses import dpo_loss, hinge_loss, ipo_loss
from puna.alignment.pairs import AnswerBatch, Comparison, lay_out
from puna.core.config import Config
from puna.model import Llama
from puna.training import Outcome


class DPOConfig(Config):
    """The knobs of DPO itself."""

    loss: Literal["dpo", "ipo", "hinge"] = "dpo"
    """What is made of the margin: the logistic loss, IPO's square, or a hinge."""
    beta: float = Field(default=0.1, gt=0)
    """Weight of the implicit KL penalty to the reference. IPO's tau."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs assumed to be labelled the wrong way round (conservative DPO)."""
    length_normalised: bool = False
    """Compare log-probabilities per token, so that length is no merit; beta is then larger, 5."""
    nll_weight: float = Field(default=0.2, ge=0)
    """Weight of the chosen answer's negative log-likelihood per token."""
    share_prompt: bool = True
    """Compute the prompt once for both answers; the numbers are the same."""
    pack_rows: bool = True
    """Lay several pairs into a row, where they fit; the numbers are the same."""

    @model_validator(mode="after")
    def _smoothing_is_of_dpo(self) -> Self:
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError(f"label_smoothing is for the loss dpo, not {self.loss}: set it to 0")
        return self


@dataclass(frozen=True)
class PairBatch:
    """Pairs in rows, and what their reference says of them."""

    answers: AnswerBatch
    """Chosen and rejected in turn."""
    reference: Tensor
    """Summed log-probabilities of the answers' text under the reference: (pairs, 2) fp32."""

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return self.answers.n_tokens

    def to(self, device: torch.device) -> Self:
        return type(self)(self.answers.to(device), self.reference.to(device))


@dataclass(frozen=True)
class PairRows:
    """Pairs to learn from, for `puna.training.RowSource`: its rows are pairs."""

    pairs: Sequence[Comparison]
    reference: np.ndarray
    """The reference's log-probabilities of both answers: (pairs, 2)."""
    config: DPOConfig

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, indices: np.ndarray) -> PairBatch:
        """The batch of these pairs."""
        answers = lay_out(
            [self.pairs[index] for index in indices],
            share_prompt=self.config.share_prompt,
            pack_rows=self.config.pack_rows,
        )
        reference = self.reference[indices].astype(np.float32)
        return PairBatch(answers, torch.from_numpy(reference))


@dataclass(frozen=True)
class DPOObjective:
    """The preference loss plus the weighted likelihood of the chosen answer, summed over pairs."""

    config: DPOConfig

    def __call__(self, model: Llama, batch: PairBatch) -> Outcome:
        answers = batch.answers
        logprobs_n = answers.logprobs(model)
        text_p2 = answers.by_answer(logprobs_n * answers.content).view(-1, 2)
        lengths_p2 = answers.by_answer(answers.content).view(-1, 2)
        losses_p, margins_p = self.preference(text_p2, batch.reference, lengths_p2)
        # With its end of turn: the likelihood term keeps the habit of stopping.
        whole_p2 = answers.by_answer(logprobs_n).view(-1, 2)
        counts_p2 = answers.by_answer(torch.ones_like(logprobs_n)).view(-1, 2)
        nll_p = -whole_p2[:, 0] / counts_p2[:, 0]
        metrics = {
            "dpo_loss": losses_p.detach().sum(),
            "nll": nll_p.detach().sum(),
            "reward_margin": margins_p.detach().sum(),
            "reward_accuracy": (margins_p.detach() > 0).sum(),
        }
        total = (losses_p + self.config.nll_weight * nll_p).sum()
        return Outcome(total, len(losses_p), {name: float(s) for name, s in metrics.items()})

    def preference(
        self, policy_p2: Tensor, reference_p2: Tensor, lengths_p2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and margin of each pair, two of (pairs,).

        Args:
            policy_p2: log-probabilities of the chosen and the rejected texts under the policy.
            reference_p2: the same under the reference.
            lengths_p2: tokens in the texts.
        """
        if self.config.length_normalised:
            lengths_p2 = lengths_p2.clamp(min=1)
            policy_p2, reference_p2 = policy_p2 / lengths_p2, reference_p2 / lengths_p2
        sides = (policy_p2[:, 0], policy_p2[:, 1], reference_p2[:, 0], reference_p2[:, 1])
        beta = self.config.beta
        if self.config.loss == "ipo":
            return ipo_loss(*sides, beta)
        if self.config.loss == "hinge":
            return hinge_loss(*sides, beta)
        return dpo_loss(*sides, beta, label_smoothing=self.config.label_smoothing)
