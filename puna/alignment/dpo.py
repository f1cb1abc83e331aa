"""Direct preference optimisation as "The Llama 3 Herd of Models" section 4.1.4 describes it.

Beta 0.1; header and end-of-turn tokens, common to both answers, are masked out of the preference
loss; a negative log-likelihood of the chosen answer, weighted 0.2, keeps its probability from
falling. The reference is frozen, so its log-probabilities are computed once and kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from puna.alignment.losses import dpo_loss
from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.files import new_folder
from puna.model import IGNORED, Llama, token_logprobs
from puna.tokenizer import ChatTokens, Message, Tokenizer
from puna.training import Outcome

_SCORED_AT_ONCE = 64  # pairs in one forward pass of the reference


class DPOConfig(Config):
    """The knobs of DPO itself."""

    beta: float = Field(default=0.1, gt=0)
    """Weight of the implicit KL penalty to the reference."""
    nll_weight: float = Field(default=0.2, ge=0)
    """Weight of the chosen answer's negative log-likelihood per token."""


@dataclass(frozen=True)
class PairTokens:
    """A prompt with its chosen and its rejected answer, as tokens."""

    chosen: ChatTokens
    rejected: ChatTokens


@dataclass(frozen=True)
class PairBatch:
    """Pairs as rows: the chosen answers in the first half, the rejected in the second."""

    ids: Tensor
    """(2 * pairs, time) int64, padded at the end."""
    content_labels: Tensor
    """Next tokens of the answers' text; `IGNORED` elsewhere, end-of-turn included."""
    trained_labels: Tensor
    """Next tokens of the chosen answers with their end-of-turn; (pairs, time)."""
    reference: Tensor
    """Summed log-probabilities of the answers' text under the reference; (2 * pairs,)."""
    n_tokens: int
    """Tokens that are not padding."""

    def to(self, device: torch.device) -> Self:
        moved = ("ids", "content_labels", "trained_labels", "reference")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})


def encode_pair(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    chosen: str,
    rejected: str,
    max_tokens: int,
    where: str,
) -> PairTokens:
    """Tokens of both conversations; `UsageError` naming ``where`` when one exceeds the limit."""
    sides = []
    for answer in (chosen, rejected):
        tokens = tokenizer.chat.encode(tokenizer, [*prompt, Message("assistant", answer)])
        if len(tokens.ids) > max_tokens:
            raise UsageError(
                f"{where}: {len(tokens.ids)} tokens exceed the row length of {max_tokens}: "
                "shorten the pair or raise row_length"
            )
        # Only the last answer differs: earlier ones in the prompt carry no preference.
        sides.append(tokens.last_answer())
    return PairTokens(*sides)


def _labels(tokens: ChatTokens, flags: list[bool], width: int) -> list[int]:
    """Next-token labels where the next token is flagged, padded to ``width``."""
    shifted = [i if f else IGNORED for i, f in zip(tokens.ids[1:], flags[1:], strict=True)]
    return shifted + [IGNORED] * (width - len(shifted))


def collate(pairs: Sequence[PairTokens], reference_p2: np.ndarray) -> PairBatch:
    """Rows of a batch of pairs with the reference's (pairs, 2) log-probabilities."""
    sides = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    width = max(len(side.ids) for side in sides)
    padded = [side.ids + [0] * (width - len(side.ids)) for side in sides]
    return PairBatch(
        ids=torch.tensor(padded),
        content_labels=torch.tensor([_labels(s, s.content, width) for s in sides]),
        trained_labels=torch.tensor([_labels(p.chosen, p.chosen.trained, width) for p in pairs]),
        reference=torch.from_numpy(reference_p2.T.reshape(-1).astype(np.float32)),
        n_tokens=sum(len(side.ids) for side in sides),
    )


def _answer_logprobs(model: Llama, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
    return token_logprobs(hidden_btd, model.head_weight(), labels_bt).sum(1)


@torch.inference_mode()
def reference_logprobs(model: Llama, pairs: Sequence[PairTokens], kept: Path) -> np.ndarray:
    """Log-probabilities of both answers of each pair under ``model``: (pairs, 2) fp32.

    They are computed once: ``kept`` is the folder they are saved in and read from. The caller
    gives another folder for other data or other weights.
    """
    path = kept / "reference.npy"
    if path.exists():
        found: np.ndarray = np.load(path, allow_pickle=False)
        if found.shape == (len(pairs), 2):
            return found
    result = np.zeros((len(pairs), 2), np.float32)
    for start in range(0, len(pairs), _SCORED_AT_ONCE):
        part = pairs[start : start + _SCORED_AT_ONCE]
        batch = collate(part, np.zeros((len(part), 2), np.float32)).to(model.device)
        sums = _answer_logprobs(model, model.hidden(batch.ids), batch.content_labels)
        result[start : start + len(part)] = sums.view(2, -1).T.float().cpu().numpy()
    with new_folder(kept) as folder:
        np.save(folder / "reference.npy", result)
    return result


@dataclass(frozen=True)
class PairRows:
    """Pairs with the reference's (pairs, 2) log-probabilities, a pair a row."""

    pairs: Sequence[PairTokens]
    reference: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, indices: np.ndarray) -> PairBatch:
        """The batch of these pairs."""
        return collate([self.pairs[index] for index in indices], self.reference[indices])


@dataclass(frozen=True)
class DPOObjective:
    """DPO plus the weighted likelihood of the chosen answer, summed over pairs."""

    config: DPOConfig

    def __call__(self, model: Llama, batch: PairBatch) -> Outcome:
        hidden = model.hidden(batch.ids)
        chosen, rejected = _answer_logprobs(model, hidden, batch.content_labels).chunk(2)
        ref_chosen, ref_rejected = batch.reference.chunk(2)
        losses, margins = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, self.config.beta)
        pairs = len(chosen)
        # With its end-of-turn: the likelihood term keeps the habit of stopping.
        likelihood = _answer_logprobs(model, hidden[:pairs], batch.trained_labels)
        lengths = (batch.trained_labels != IGNORED).sum(1)
        nll = -likelihood / lengths
        total = (losses + self.config.nll_weight * nll).sum()
        metrics = {
            "dpo_loss": float(losses.detach().sum()),
            "nll": float(nll.detach().sum()),
            "reward_margin": float(margins.detach().sum()),
            "reward_accuracy": float((margins.detach() > 0).sum()),
        }
        return Outcome(total, pairs, metrics)
