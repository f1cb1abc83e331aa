"""What a rollout leaves to learn from: numbers for each token of its answers.

Suffixes: a is an answer, t its tokens from the first, n all tokens of a batch one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from puna.alignment.kl import KLController, Reference, answer_logprobs
from puna.alignment.losses import entropy
from puna.alignment.pairs import AnswerBatch, AnswerTokens, Comparison, lay_out
from puna.alignment.rollouts import RolloutConfig
from puna.alignment.value import ValueModel
from puna.model import Llama
from puna.model.loss import CHUNK_BYTES
from puna.training import Outcome

CLIPPED, MOVED = "clip_fraction", "policy_kl"  # metrics that the outcomes of every method have


@dataclass(frozen=True)
class Seen:
    """A rollout as policy, reference and value model saw it when it was sampled; fp32, on CPU."""

    mask_at: Tensor
    """(answers, time) bool: where there are tokens."""
    logprobs_at: Tensor
    """Under the policy that sampled them."""
    reference_at: Tensor
    """Under the reference."""
    values_at: Tensor
    """Of the states in which the tokens were chosen; 0 without a value model."""
    last_values_a: Tensor
    """(answers,) of the states in which answers were cut off; 0 for those that ended."""


@dataclass(frozen=True)
class TokenBatch:
    """Answers in rows, with what their rollout says of each token."""

    answers: AnswerBatch
    columns: Mapping[str, Tensor]
    """(n,) fp32 each, by name; which ones is the method's affair."""

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return self.answers.n_tokens

    def to(self, device: torch.device) -> Self:
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return type(self)(self.answers.to(device), columns)


@dataclass(frozen=True)
class Experience:
    """A rollout, ready to be learned from."""

    groups: Sequence[Comparison]
    """Prompts with their answers, in any order of merit."""
    mask_at: Tensor
    """(answers, time) bool; the answers of a prompt side by side."""
    columns: Mapping[str, Tensor]
    """(answers, time) fp32 each, 0 where the mask is False."""

    def batch(self, chosen: Sequence[int], *, share_prompt: bool) -> TokenBatch:
        """The batch of these prompts."""
        n_answers = len(self.mask_at) // len(self.groups)
        rows = torch.tensor([c * n_answers + k for c in chosen for k in range(n_answers)])
        mask = self.mask_at[rows]
        return TokenBatch(
            lay_out([self.groups[c] for c in chosen], share_prompt=share_prompt),
            {name: column[rows][mask] for name, column in self.columns.items()},
        )

    def state_dict(self) -> dict[str, Tensor]:
        """All but the prompts, as tensors."""
        tokens = [token for group in self.groups for a in group.answers for token in a.ids]
        columns = {f"columns.{name}": column for name, column in self.columns.items()}
        return {"ids": torch.tensor(tokens), "mask": self.mask_at, **columns}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], prompts: Sequence[list[int]]) -> Self:
        """What `state_dict` gave, with its prompts."""
        mask, begin = state["mask"], "columns."
        answers = [part.tolist() for part in state["ids"].split(mask.sum(1).tolist())]
        columns = {n.removeprefix(begin): v for n, v in state.items() if n.startswith(begin)}
        return cls(grouped(prompts, answers), mask, columns)


def grouped(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Comparison]:
    """Prompts with their answers, as many to each; the answers of a prompt stand side by side."""
    size = len(answers) // len(prompts)
    tokens = [AnswerTokens(ids, [True] * len(ids)) for ids in answers]
    return [
        Comparison(prompt, tuple(tokens[number * size : (number + 1) * size]))
        for number, prompt in enumerate(prompts)
    ]


class Method(Protocol):
    """What tells PPO from GRPO: how rewards become advantages, and the loss."""

    rollouts: RolloutConfig
    kl: KLController

    @property
    def critic(self) -> ValueModel | None:
        """The value model, trained beside the policy; None for a method without."""
        ...

    def credit(self, seen: Seen, rewards_a: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Columns for the objective, (answers, time) each, and figures for the table.

        ``rewards_a`` are the rewards of the answers.
        """
        ...

    def __call__(self, model: Llama, batch: TokenBatch) -> Outcome:
        """Loss over a batch; its metrics hold `CLIPPED` and `MOVED`."""
        ...


@torch.no_grad()
def look_at(
    groups: Sequence[Comparison],
    model: Llama,
    reference: Reference,
    critic: ValueModel | None,
    ended_a: Tensor,
    temperature: float,
    *,
    prompts_at_once: int,
    share_prompt: bool,
) -> Seen:
    """Pass a rollout through policy, reference and value model, some prompts at a time.

    ``ended_a`` says which answers ended by themselves.
    """
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(groups), prompts_at_once):
        part = groups[start : start + prompts_at_once]
        answers = lay_out(part, share_prompt=share_prompt).to(model.device)
        logprobs, _, hidden = answer_logprobs(model, answers, temperature)
        referred = reference.logprobs(model, answers, temperature)
        values = torch.zeros(len(hidden), device=hidden.device)
        if critic is not None:
            values = critic(answers, hidden)
        seen = (logprobs, referred, values[answers.places], values[answers.ends])
        parts.append(tuple(tensor.float().cpu() for tensor in seen))
    logprobs, referred, values, last = (torch.cat(column) for column in zip(*parts, strict=True))
    mask = mask_of([len(answer.ids) for group in groups for answer in group.answers])
    return Seen(
        mask_at=mask,
        logprobs_at=_padded(logprobs, mask),
        reference_at=_padded(referred, mask),
        values_at=_padded(values, mask),
        last_values_a=last * ~ended_a,
    )


def mask_of(lengths: Sequence[int]) -> Tensor:
    """True at the first ``lengths`` places of each row: (rows, longest) bool."""
    counts = torch.tensor(lengths)
    return torch.arange(int(counts.max()))[None, :] < counts[:, None]


def token_entropies(states_nd: Tensor, weight_vd: Tensor) -> Tensor:
    """Entropy (nats, fp32) of the next token's distribution in each state (n,), differentiable.

    Logits pass in chunks and are computed again in the backward pass, so those of all tokens never
    exist at once.
    """

    def part(states: Tensor) -> Tensor:
        return entropy(F.linear(states, weight_vd.to(states.dtype)).float())

    size = max(1, CHUNK_BYTES // (4 * len(weight_vd)))
    parts = [checkpoint(part, states, use_reentrant=False) for states in states_nd.split(size)]
    return torch.cat(parts)


def _padded(values_n: Tensor, mask_at: Tensor) -> Tensor:
    """Values of the tokens one after the other, in their places: (answers, time)."""
    return torch.zeros(mask_at.shape).masked_scatter(mask_at, values_n)
