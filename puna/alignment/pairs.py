"""Several answers to one prompt as tokens, and many of them laid out in rows.

The prompt is computed once for all its answers: they follow it in the row, each reads it and itself
only, and each counts its positions on from it. Every number is the one that each conversation in a
row of its own would give. Units of different lengths are packed, so little of a batch is padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from puna.core.errors import UsageError
from puna.data.packing import PADDING, pack
from puna.model import Llama, token_logprobs
from puna.tokenizer import Message, Tokenizer

_SCORED_TOKENS = 8192  # padded, in a forward pass without gradients


@dataclass(frozen=True)
class AnswerTokens:
    """An answer as tokens."""

    ids: list[int]
    """From its first token to its end of turn."""
    content: list[bool]
    """Whether a token is of the text; false for the end of turn."""


@dataclass(frozen=True)
class Comparison:
    """A prompt with two answers or more, as tokens."""

    prompt: list[int]
    """All before the answers: it ends with the header of the answer's turn."""
    answers: tuple[AnswerTokens, ...]
    """The best first: chosen and rejected, or edited, chosen and rejected."""

    def __len__(self) -> int:
        """Tokens when the prompt stands once."""
        return len(self.prompt) + sum(len(answer.ids) for answer in self.answers)


def encode_answers(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    answers: Sequence[str | Message],
    max_tokens: int,
    where: str,
) -> Comparison:
    """Tokens of a prompt and its answers, the best first.

    Raises `UsageError` naming ``where`` when a conversation has more than ``max_tokens``.
    """
    sides = []
    for answer in answers:
        message = Message("assistant", answer) if isinstance(answer, str) else answer
        tokens = tokenizer.chat.encode(tokenizer, [*prompt, message])
        if len(tokens.ids) > max_tokens:
            raise UsageError(
                f"{where}: {len(tokens.ids)} tokens exceed the row length of {max_tokens}: "
                "shorten the pair or raise row_length"
            )
        # Only the last answer differs: earlier ones in the prompt carry no preference.
        last = tokens.last_answer()
        start = last.trained.index(True)
        end = start + sum(last.trained)
        sides.append((last.ids[:start], AnswerTokens(last.ids[start:end], last.content[start:end])))
    assert all(before == sides[0][0] for before, _ in sides)
    return Comparison(sides[0][0], tuple(side for _, side in sides))


def encode_pair(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    chosen: str | Message,
    rejected: str | Message,
    max_tokens: int,
    where: str,
) -> Comparison:
    """`encode_answers` for a better and a worse answer."""
    return encode_answers(tokenizer, prompt, (chosen, rejected), max_tokens, where)


def batches_of(comparisons: Sequence[Comparison]) -> Iterator[list[int]]:
    """Numbers of comparisons of similar lengths, as many as a forward pass takes; at least one."""
    members: list[int] = []
    for number in sorted(range(len(comparisons)), key=lambda n: len(comparisons[n])):
        if members and (len(members) + 1) * len(comparisons[number]) > _SCORED_TOKENS:
            yield members
            members = []
        members.append(number)
    if members:
        yield members


@dataclass(frozen=True)
class AnswerBatch:
    """Answers in rows; their numbers run through the batch, those of a prompt side by side.

    The tensors of n elements speak of the answers' tokens one after the other.
    """

    ids: Tensor
    """(rows, time) int64; 0 in padding."""
    positions: Tensor
    """(rows, time): place in the conversation."""
    documents: Tensor
    """(rows, time): number of the prompt or answer within the row; -1 in padding."""
    prefixes: Tensor
    """(rows, time): number of the prompt that an answer reads; elsewhere that of the document."""
    places: Tensor
    """(n,): where in the flattened rows the state lies that predicts the token."""
    labels: Tensor
    """(n,): the token."""
    owners: Tensor
    """(n,): number of the answer it belongs to."""
    content: Tensor
    """(n,) bool: whether it is of the answer's text, not its end of turn."""
    ends: Tensor
    """(answers,): where in the flattened rows each answer's last token lies."""

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.documents != PADDING).sum())

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))

    def hidden(self, model: Llama) -> Tensor:
        """Final hidden states of all positions, flattened: (rows * time, dim)."""
        return model.hidden(
            self.ids,
            positions_bt=self.positions,
            documents_bt=self.documents,
            prefixes_bt=self.prefixes,
        ).flatten(0, 1)

    def logprobs(self, model: Llama) -> Tensor:
        """Log-probability of each answer's token: (n,) fp32. The head sees no other position."""
        states_nd = self.hidden(model).index_select(0, self.places)
        return token_logprobs(states_nd[None], model.head_weight(), self.labels[None])[0]

    def by_answer(self, values_n: Tensor) -> Tensor:
        """Sums over each answer's tokens: (answers,) fp32."""
        zeros = torch.zeros(len(self.ends), device=values_n.device)
        return zeros.index_add(0, self.owners, values_n.float())


def lay_out(
    comparisons: Sequence[Comparison], *, share_prompt: bool = True, pack_rows: bool = True
) -> AnswerBatch:
    """The rows of a batch, as wide as its longest unit.

    Args:
        comparisons: prompts with their answers.
        share_prompt: a unit is a prompt with all its answers; else the prompt stands before each.
        pack_rows: several units in a row, where they fit; else one.
    """
    units: list[tuple[int, tuple[int, ...]]] = []  # a comparison, and which answers of it
    for number, comparison in enumerate(comparisons):
        all_answers = tuple(range(len(comparison.answers)))
        units += [(number, all_answers)] if share_prompt else [(number, (a,)) for a in all_answers]
    lengths = [
        len(comparisons[number].prompt) + sum(len(comparisons[number].answers[a].ids) for a in kept)
        for number, kept in units
    ]
    packing = pack(lengths, max(lengths)) if pack_rows else None
    rows = [[u] for u in range(len(units))]
    if packing is not None:
        rows = [[item for item, _, _ in packing.row(r)] for r in range(len(packing))]
    writer = _Writer(len(rows), max(lengths))
    first = np.cumsum([0, *(len(comparison.answers) for comparison in comparisons)])
    for row, members in enumerate(rows):
        for number, kept in (units[unit] for unit in members):
            writer.add(row, comparisons[number], {int(first[number]) + a: a for a in kept})
    return writer.batch()


class _Writer:
    """Lays tokens into rows from left to right."""

    def __init__(self, n_rows: int, width: int) -> None:
        self.width = width
        self.ids, self.positions = np.zeros((2, n_rows, width), np.int64)
        self.documents, self.prefixes = np.full((2, n_rows, width), PADDING, np.int64)
        self.used = [0] * n_rows
        self.answers: dict[int, tuple[list[int], AnswerTokens]] = {}

    def add(self, row: int, comparison: Comparison, numbers: dict[int, int]) -> None:
        """Write a prompt and answers of it: ``numbers`` is number in the batch -> its place."""
        prompt = self._write(row, comparison.prompt, 0, None)
        for number, place in numbers.items():
            answer = comparison.answers[place]
            start = self._write(row, answer.ids, len(comparison.prompt), prompt)
            end = row * self.width + start
            # The prompt's last state predicts the first token of every answer.
            before = row * self.width + prompt + len(comparison.prompt) - 1
            places = [before, *range(end, end + len(answer.ids))]
            self.answers[number] = (places, answer)

    def _write(self, row: int, ids: list[int], position: int, prefix: int | None) -> int:
        """Write a document, named by the column it starts at; returns that."""
        start = self.used[row]
        span = slice(start, start + len(ids))
        self.ids[row, span] = ids
        self.positions[row, span] = np.arange(position, position + len(ids))
        self.documents[row, span] = start
        self.prefixes[row, span] = start if prefix is None else prefix
        self.used[row] += len(ids)
        return start

    def batch(self) -> AnswerBatch:
        """What was written, the answers in the order of their numbers."""
        answers = [self.answers[number] for number in sorted(self.answers)]
        owners = np.repeat(np.arange(len(answers)), [len(answer.ids) for _, answer in answers])
        return AnswerBatch(
            ids=torch.from_numpy(self.ids),
            positions=torch.from_numpy(self.positions),
            documents=torch.from_numpy(self.documents),
            prefixes=torch.from_numpy(self.prefixes),
            places=torch.tensor([place for places, _ in answers for place in places[:-1]]),
            labels=torch.tensor([token for _, answer in answers for token in answer.ids]),
            owners=torch.from_numpy(owners),
            content=torch.tensor([flag for _, answer in answers for flag in answer.content]),
            ends=torch.tensor([places[-1] for places, _ in answers]),
        )
