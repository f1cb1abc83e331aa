"""A reward model: a Llama whose final state at an answer's last token becomes one number.

Trained on comparisons as "The Llama 3 Herd of Models" section 4.1.3 does it: the Bradley-Terry
loss without a margin, an edited answer above the chosen, that above the rejected, all answers of a
prompt in one row. Its folder is what transformers opens as ``LlamaForSequenceClassification``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from puna.alignment.losses import bradley_terry_loss
from puna.alignment.pairs import AnswerBatch, Comparison, batches_of, encode_answers, lay_out
from puna.core.config import Config
from puna.core.errors import UsageError
from puna.formats import save_model
from puna.model import Llama, LlamaConfig
from puna.model.linear import Linear
from puna.tokenizer import Message, Tokenizer
from puna.training import Outcome


class RewardModel(Llama):
    """A Llama with a scalar head in place of that over the vocabulary."""

    architecture: ClassVar[str] = "LlamaForSequenceClassification"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head = None
        self.score = Linear(config.dim, 1)

    @classmethod
    def from_policy(cls, policy: Llama) -> Self:
        """The reward model that starts from a language model, whose blocks it takes over.

        The new head is zero: all answers are equal at first, the loss is ln 2.
        """
        with torch.device("meta"):
            model = cls(policy.config)
        model.model = policy.model
        model.compute_dtype = policy.compute_dtype
        weight = policy.model.norm.weight
        model.score.weight = torch.nn.Parameter(weight.new_zeros(1, policy.config.dim))
        return model

    def scores(self, batch: AnswerBatch) -> Tensor:
        """One number for each answer, read at its last token: (answers,) fp32.

        The batch says where that is, so no token's meaning as padding can mislead.
        """
        ends_ad = batch.hidden(self).index_select(0, batch.ends)
        return F.linear(ends_ad.float(), self.score.weight.float()).squeeze(1)


class RewardConfig(Config):
    """The knobs of a reward model's training."""

    margin: float = Field(default=0.0, ge=0)
    """By how much an answer should lead the one ranked next (Llama 2, arXiv 2307.09288, eq. 2);
    Llama 3 has none."""


@dataclass(frozen=True)
class RankedBatch:
    """Answers in rows, and which of them is better than which."""

    answers: AnswerBatch
    better: Tensor
    """(pairs,): number of the better answer."""
    worse: Tensor
    """(pairs,): number of the worse answer to the same prompt."""
    distance: Tensor
    """(pairs,): ranks between them; 1 for neighbours."""
    weight: Tensor
    """(pairs,): 1 over the pairs of the prompt, so that every prompt counts alike."""

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return self.answers.n_tokens

    def to(self, device: torch.device) -> Self:
        tensors = (self.better, self.worse, self.distance, self.weight)
        return type(self)(self.answers.to(device), *(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class RankedRows:
    """Comparisons to learn from, for `puna.training.RowSource`: its rows are prompts."""

    comparisons: Sequence[Comparison]

    def __len__(self) -> int:
        return len(self.comparisons)

    def rows(self, indices: np.ndarray) -> RankedBatch:
        """The batch of these comparisons."""
        members = [self.comparisons[index] for index in indices]
        pairs: list[tuple[int, int, int, float]] = []
        first = 0
        for comparison in members:
            n = len(comparison.answers)
            weight = 2 / (n * (n - 1))
            ranks = [(a, b) for a in range(n) for b in range(a + 1, n)]
            pairs += [(first + a, first + b, b - a, weight) for a, b in ranks]
            first += n
        better, worse, distance, weights = zip(*pairs, strict=True)
        return RankedBatch(
            lay_out(members),
            torch.tensor(better),
            torch.tensor(worse),
            torch.tensor(distance),
            torch.tensor(weights),
        )


@dataclass(frozen=True)
class RewardObjective:
    """The Bradley-Terry loss of every pair of a prompt's answers, summed over prompts."""

    config: RewardConfig

    def __call__(self, model: Llama, batch: RankedBatch) -> Outcome:
        assert isinstance(model, RewardModel)
        scores_a = model.scores(batch.answers)
        better_p, worse_p = scores_a[batch.better], scores_a[batch.worse]
        margin_p = self.config.margin * batch.distance if self.config.margin else None
        losses_p = bradley_terry_loss(better_p, worse_p, margin_p) * batch.weight
        gaps_p = (better_p - worse_p).detach()
        metrics = {
            "reward_accuracy": float(((gaps_p > 0) * batch.weight).sum()),
            "reward_margin": float((gaps_p * batch.weight).sum()),
        }
        return Outcome(losses_p.sum(), round(float(batch.weight.sum())), metrics)


@dataclass(frozen=True)
class RewardReport:
    """How a reward model judges comparisons: their best answer against their worst."""

    n: int
    accuracy: float
    """Share in which the better answer scores higher; of equal scores half counts."""
    calibration_error: float
    """Expected calibration error of the probabilities that the scores stand for; 0 is best."""
    mean_gap: float
    """Mean lead of the better answer, in nats of log-odds."""


def judge_rewards(model: RewardModel, comparisons: Sequence[Comparison]) -> RewardReport:
    """Accuracy and calibration on comparisons the model has not seen."""
    scores = score_comparisons(model, comparisons)
    gaps = torch.tensor([row[0] - row[-1] for row in scores], dtype=torch.float64)
    right = (gaps > 0).double() + 0.5 * (gaps == 0).double()
    error = calibration_error(torch.sigmoid(gaps.abs()), right)
    return RewardReport(len(gaps), float(right.mean()), error, float(gaps.mean()))


def calibration_error(confidence_n: Tensor, right_n: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    Args:
        confidence_n: probability given to the verdict, from 0 to 1.
        right_n: 1 where the verdict was right, else 0.
        bins: of equal width over [0, 1].
    """
    places = (confidence_n * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64)
    gap = sums.index_add(0, places, (right_n - confidence_n).double())
    return float(gap.abs().sum() / len(confidence_n))


def score(
    model: RewardModel, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]
) -> list[float]:
    """The reward of each conversation's last message, an assistant's; higher is better.

    Raises `UsageError` for a conversation that ends otherwise or exceeds the model's context.
    """
    encoded = []
    for number, messages in enumerate(conversations, start=1):
        if not messages or messages[-1].role != "assistant":
            raise UsageError(f"conversation {number} must end with the assistant's answer")
        where, context = f"conversation {number}", model.config.context
        encoded.append(encode_answers(tokenizer, messages[:-1], messages[-1:], context, where))
    return [row[0] for row in score_comparisons(model, encoded)]


@torch.inference_mode()
def score_comparisons(model: RewardModel, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """The score of every answer of every comparison."""
    found: dict[int, list[float]] = {}
    for members in batches_of(comparisons):
        batch = lay_out([comparisons[member] for member in members]).to(model.device)
        counts = [len(comparisons[member].answers) for member in members]
        parts = model.scores(batch).cpu().split(counts)
        found |= {m: part.tolist() for m, part in zip(members, parts, strict=True)}
    return [found[number] for number in range(len(comparisons))]


def save_reward_model(folder: Path, model: RewardModel, tokenizer: Tokenizer) -> None:
    """Write a folder that `puna.formats.load_model` with ``cls=RewardModel`` and transformers read.

    transformers looks for an answer's last token by skipping padding. Where the end of turn is the
    padding that would be the token before, so none is named there: it then takes rows one by one,
    at their last token, and refuses batches.
    """
    same = tokenizer.pad_id == tokenizer.eot_id
    changes = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    save_model(folder, model, tokenizer, changes=changes | ({"pad_token_id": None} if same else {}))
