"""Learning when to refuse: the beginning of an answer decides, so only that is learned.

A model that answers harmful requests and one that declines them differ in their first few tokens
(Qi et al. 2024, arXiv 2406.05946). Those of a refusal are made likely where harm is asked for.
After a benign request the next token keeps the whole distribution it had before (KL divergence from
the model without its adapter), so no answer has to be written and the rest of the model stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from puna.alignment.losses import forward_kl
from puna.alignment.pairs import AnswerBatch, AnswerTokens, Comparison, lay_out
from puna.core.config import Config
from puna.model import Llama, adapter_disabled, token_logprobs
from puna.tokenizer import Message, Tokenizer
from puna.training import Outcome

_ANY = 0  # stands after a benign request, whose next token is not known


class RefusalConfig(Config):
    """The knobs of the method."""

    tokens: int = Field(default=12, ge=1)
    """How many tokens of a refusal are learned."""
    later_weight: float = Field(default=0.5, ge=0)
    """Weight of a refusal's tokens after the first, on average; the first has 1."""
    benign_weight: float = Field(default=1.0, gt=0)
    """Weight of the divergence after benign requests, on average: more declines less of both."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """How much of the change is kept in the end. A model between the untouched and the tuned one
    declines less of both, and fewer harmless requests for as much harm than one that was tuned
    less (Wortsman et al. 2022, arXiv 2109.01903; docs/safety-tuning.md)."""


@dataclass(frozen=True)
class RefusalBatch:
    """Harmful requests with the beginning of a refusal, and benign ones."""

    harmful: AnswerBatch
    benign: AnswerBatch

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return self.harmful.n_tokens + self.benign.n_tokens

    def to(self, device: torch.device) -> Self:
        return type(self)(self.harmful.to(device), self.benign.to(device))


@dataclass(frozen=True)
class RefusalRows:
    """Requests to learn from, for `puna.training.RowSource`.

    A row is a harmful request with its refusal and some benign ones. All of a batch stand in one
    row of tokens behind what all prompts begin with, a system turn for instance.
    """

    harmful: Sequence[list[int]]
    """Prompts, up to where the answer begins."""
    refusals: Sequence[list[int]]
    """Tokens of an answer to each."""
    benign: Sequence[Sequence[list[int]]]
    """Prompts that stand beside each harmful one, as many beside every one."""

    def __len__(self) -> int:
        return len(self.harmful)

    def rows(self, indices: np.ndarray) -> RefusalBatch:
        """The batch of these rows."""
        harmful = [(self.harmful[i], self.refusals[i]) for i in indices]
        benign = [(prompt, [_ANY]) for i in indices for prompt in self.benign[i]]
        return RefusalBatch(_laid_out(harmful, self._common), _laid_out(benign, self._common))

    @cached_property
    def _common(self) -> int:
        """How many tokens all prompts begin with."""
        return _alike([*self.harmful, *(prompt for beside in self.benign for prompt in beside)])


def _alike(prompts: Sequence[list[int]]) -> int:
    """How many tokens all of them begin with; less than the shortest has."""
    shortest = min(map(len, prompts))
    places = enumerate(zip(*prompts, strict=False))
    return next((n for n, tokens in places if len(set(tokens)) > 1), shortest - 1)


def _laid_out(rows: Sequence[tuple[list[int], list[int]]], common: int) -> AnswerBatch:
    """Prompts and what follows them, in one row behind the first one's ``common`` tokens."""
    assert common > 0, "chats of one format begin alike"
    answers = tuple(
        AnswerTokens(prompt[common:] + said, [False] * (len(prompt) - common) + [True] * len(said))
        for prompt, said in rows
    )
    return lay_out([Comparison(rows[0][0][:common], answers)])


def prompt_ids(tokenizer: Tokenizer, request: str) -> list[int]:
    """A request of a user, up to where the answer begins."""
    turns = [Message("user", request)]
    return tokenizer.chat.encode(tokenizer, turns, add_generation_prompt=True).ids


@dataclass(frozen=True)
class RefusalObjective:
    """Likelihood of refusals and divergence from the model without its adapter, per row."""

    config: RefusalConfig

    def __call__(self, model: Llama, batch: RefusalBatch) -> Outcome:
        harmful, n_rows = batch.harmful, len(batch.harmful.ends)
        said = harmful.content
        labels, owners = harmful.labels[said], harmful.owners[said]
        states_nd = _states(model, harmful)
        logprobs_n = token_logprobs(states_nd[None], model.head_weight(), labels[None])[0]
        first_n = torch.ones_like(owners, dtype=torch.bool)
        first_n[1:] = owners[1:] != owners[:-1]
        first = -logprobs_n[first_n].sum()
        counts_r = torch.bincount(owners, minlength=n_rows) - 1
        shares_n = 1 / counts_r.clamp(min=1)[owners[~first_n]]
        later = -(logprobs_n[~first_n] * shares_n).sum()
        moved = self._divergence(model, batch.benign) * n_rows / len(batch.benign.ends)
        total = first + self.config.later_weight * later + self.config.benign_weight * moved
        metrics = {"first_token": first, "later_tokens": later, "divergence": moved}
        return Outcome(total, n_rows, {name: float(v.detach()) for name, v in metrics.items()})

    def _divergence(self, model: Llama, benign: AnswerBatch) -> Tensor:
        """Sum over the requests of KL(model as it was || model as it is) of the next token."""
        with torch.no_grad(), adapter_disabled(model):
            before_nv = _logits(model, benign)
        return forward_kl(_logits(model, benign), before_nv).sum()


@torch.inference_mode()
def refusing(model: Llama, prompts: Sequence[list[int]], first: int, each: int = 16) -> float:
    """Share of prompts after which the token ``first`` is the likeliest; ``each`` at a time."""
    hits, common = 0, _alike(prompts)
    for start in range(0, len(prompts), each):
        some = [(prompt, [_ANY]) for prompt in prompts[start : start + each]]
        batch = _laid_out(some, common).to(model.device)
        hits += int((_logits(model, batch).argmax(-1) == first).sum())
    return hits / len(prompts)


def _states(model: Llama, answers: AnswerBatch) -> Tensor:
    """Final hidden states that predict what is said: (n, dim)."""
    return answers.hidden(model).index_select(0, answers.places[answers.content])


def _logits(model: Llama, answers: AnswerBatch) -> Tensor:
    """Logits of what is said: (n, vocabulary) fp32."""
    states_nd = _states(model, answers)
    return F.linear(states_nd, model.head_weight().to(states_nd.dtype)).float()
