"""Preference accuracy: how often the better answer is the more probable one."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from puna.data.generators import PreferencePair
from puna.evaluation.scoring import summed_logprobs
from puna.model import Llama
from puna.tokenizer import Message, Tokenizer


@dataclass(frozen=True)
class PairLogprobs:
    """Summed log-probabilities (nats) of the two answers of one pair."""

    kind: str
    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """How many nats the better answer is ahead."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class PreferenceReport:
    """Over ``n`` pairs: share with the chosen answer ahead, mean margin in nats, both by kind."""

    n: int
    accuracy: float
    mean_margin: float
    accuracy_by_kind: dict[str, float]
    margin_by_kind: dict[str, float]


def pair_logprobs(
    model: Llama, tokenizer: Tokenizer, pairs: Sequence[PreferencePair]
) -> list[PairLogprobs]:
    """Log-probabilities of the answers' own tokens: neither header nor end of turn counts.

    These are the tokens DPO compares ("The Llama 3 Herd of Models", section 4.1.4, masks the
    formatting tokens).
    """
    answers = [(pair, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    encoded = [
        tokenizer.chat.encode(tokenizer, (*pair.prompt, Message("assistant", text)))
        for pair, text in answers
    ]
    masks = [chat.last_answer().content for chat in encoded]
    sums = summed_logprobs(model, [chat.ids for chat in encoded], masks)
    halves = zip(pairs, sums[::2], sums[1::2], strict=True)
    return [PairLogprobs(pair.kind, chosen, rejected) for pair, chosen, rejected in halves]


def preference_accuracy(pairs: Sequence[PairLogprobs]) -> PreferenceReport:
    """Accuracy and margins; a tie is not an answer ahead."""
    kinds = sorted({pair.kind for pair in pairs})
    groups = {kind: [pair for pair in pairs if pair.kind == kind] for kind in kinds}
    return PreferenceReport(
        n=len(pairs),
        accuracy=_share_ahead(pairs),
        mean_margin=fmean(pair.margin for pair in pairs),
        accuracy_by_kind={kind: _share_ahead(group) for kind, group in groups.items()},
        margin_by_kind={kind: fmean(p.margin for p in group) for kind, group in groups.items()},
    )


def _share_ahead(pairs: Sequence[PairLogprobs]) -> float:
    return sum(pair.margin > 0 for pair in pairs) / len(pairs)
