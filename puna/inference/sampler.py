"""From logits to the next tokens: many rows at once, each with settings and a seed of its own."""

import random
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.inference.request import Constraint, TokenLogprob
from puna.inference.sampling import Sampling

CANDIDATES = 256  # looked at first; the whole vocabulary is sorted only when they do not suffice
SMALL_VOCABULARY = 2048  # sorted whole at once
BLOCK = 64  # tokens summed up or compared in one go, before those of one block are looked at
COLDEST = 1e-5  # lower temperatures are this one: logits divided by less leave fp32's range
BELOW_ONE = 1 - 2**-40  # a draw times a total never rounds up to the total


class Chooser:
    """One request's settings, seed and history.

    Args:
        sampling: its settings.
        prompt: its tokens; the repetition penalty counts them as seen.
        constraint: what the text must look like.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        self.sampling = sampling
        self.constraint = constraint
        self.history: History | None = None
        if sampling.penalises:
            self.history = History(prompt if sampling.repetition_penalty != 1 else ())
        self.changes_logits = sampling.adjusts or constraint is not None
        self._random = random.Random(sampling.seed)  # noqa: S311  not for secrets

    def draw(self) -> float:
        """The next number of this request's own stream, in [0, 1)."""
        return self._random.random()

    def accept(self, token: int) -> None:
        """Take a chosen token into account."""
        if self.history is not None:
            self.history.add(token)
        if self.constraint is not None:
            self.constraint.accept(token)


class History:
    """The tokens a text holds, each once, and how often each was written.

    Args:
        seen: tokens that count as seen, not as written.
    """

    def __init__(self, seen: Iterable[int]) -> None:
        self._ids = array("q", dict.fromkeys(seen))
        self._counts = array("f", bytes(4 * len(self._ids)))
        self._places = {token: place for place, token in enumerate(self._ids)}

    def add(self, token: int) -> None:
        """Count ``token`` as written once more."""
        place = self._places.setdefault(token, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token)
            self._counts.append(0)
        self._counts[place] += 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and counts; views to be let go of before the next `add`."""
        return np.frombuffer(self._ids, np.int64), np.frombuffer(self._counts, np.float32)


@torch.inference_mode()
def choose(logits_nv: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of each row. ``logits_nv`` is as the model gives it and stays so.

    A row's choice depends on its own logits, settings and draws only, never on other rows.
    """
    changed = [n for n, chooser in enumerate(choosers) if chooser.changes_logits]
    if changed:
        logits_nv = logits_nv.to(torch.float32, copy=True)
        _adjust(logits_nv, choosers, changed)
    sampled = [n for n, chooser in enumerate(choosers) if chooser.sampling.temperature > 0]
    if not sampled:
        return _argmax(logits_nv)
    if len(sampled) == len(choosers):
        return _sample(logits_nv.float(), choosers)
    chosen = _argmax(logits_nv)
    drawn = _sample(logits_nv[sampled].float(), [choosers[n] for n in sampled])
    for n, token in zip(sampled, drawn, strict=True):
        chosen[n] = token
    return chosen


def _adjust(logits_nv: Tensor, choosers: Sequence[Chooser], rows: Sequence[int]) -> None:
    """Apply penalties, bias and constraint to some rows of logits, in place."""
    penalised = [n for n in rows if choosers[n].history is not None]
    if penalised:
        _penalise(logits_nv, choosers, penalised)
    for n in rows:
        bias = choosers[n].sampling.logit_bias
        if bias:
            ids = torch.tensor(list(bias), device=logits_nv.device)
            values = torch.tensor(list(bias.values()), device=logits_nv.device)
            logits_nv[n].index_add_(0, ids, values)
        constraint = choosers[n].constraint
        if constraint is not None:
            allowed = constraint.mask().to(logits_nv.device)
            logits_nv[n, : len(allowed)].masked_fill_(~allowed, -torch.inf)
            logits_nv[n, len(allowed) :] = -torch.inf


def _penalise(logits_nv: Tensor, choosers: Sequence[Chooser], rows: Sequence[int]) -> None:
    """Repetition, presence and frequency penalties, of all rows in one go."""
    vocabulary, device = logits_nv.shape[1], logits_nv.device
    ids, counts, settings = [], [], []
    for n in rows:
        history, options = choosers[n].history, choosers[n].sampling
        assert history is not None
        row_ids, row_counts = history.arrays()
        ids.append(row_ids + n * vocabulary)
        counts.append(row_counts)
        penalties = options.repetition_penalty, options.presence_penalty, options.frequency_penalty
        settings.append(np.broadcast_to(np.array(penalties, np.float32), (len(row_ids), 3)))
    places = torch.from_numpy(np.concatenate(ids)).to(device)
    written = torch.from_numpy(np.concatenate(counts)).to(device)
    repetition, presence, frequency = (
        torch.from_numpy(np.concatenate(settings)).to(device).unbind(1)
    )
    flat = logits_nv.view(-1)
    values = flat[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    flat[places] = values - presence * (written > 0) - frequency * written


def _sample(logits_nv: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    options = [chooser.sampling for chooser in choosers]
    temperatures = _column([max(each.temperature, COLDEST) for each in options], logits_nv)
    probabilities = torch.softmax(logits_nv / temperatures, -1)
    draws = _column([chooser.draw() for chooser in choosers], logits_nv, torch.float64)
    filtered = [n for n, each in enumerate(options) if each.filters]
    if not filtered:
        return _invert_in_blocks(probabilities, draws)
    tokens = [0] * len(options)
    free = [n for n, each in enumerate(options) if not each.filters]
    if free:
        drawn = _invert_in_blocks(probabilities[free], draws[free])
        for n, token in zip(free, drawn, strict=True):
            tokens[n] = token
    own = probabilities if len(filtered) == len(options) else probabilities[filtered]
    drawn = _sample_filtered(own, [options[n] for n in filtered], draws[filtered])
    for n, token in zip(filtered, drawn, strict=True):
        tokens[n] = token
    return tokens


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _sample_filtered(
    probabilities_nv: Tensor, options: Sequence[Sampling], draws_n1: Tensor
) -> list[int]:
    """Draw among the most probable tokens of each row; see `_keep`."""
    vocabulary = probabilities_nv.shape[1]
    most = max(min(each.top_k or CANDIDATES, CANDIDATES) for each in options)
    if vocabulary <= SMALL_VOCABULARY:
        most = vocabulary
    top, tokens = _top(probabilities_nv, most)
    top = top.double()
    chosen = tokens.gather(1, _invert(top * _keep(top, options), draws_n1))[:, 0].tolist()
    enough = _suffice(top, options) if most < vocabulary else [True] * len(options)
    for n, suffices in enumerate(enough):
        if not suffices:
            chosen[n] = _sample_among_all(probabilities_nv[n], options[n], draws_n1[n : n + 1])
    return chosen


def _sample_among_all(probabilities_v: Tensor, options: Sampling, draw_11: Tensor) -> int:
    """As `_sample_filtered` for one row, without a limit to the candidates."""
    least = options.min_p * float(probabilities_v.max())
    if not options.top_k:  # all tokens below the first figure together miss the nucleus
        least = max((1 - options.top_p) / len(probabilities_v), least)
    likely = (probabilities_v >= 0.99 * least).nonzero()[:, 0]
    top, order = probabilities_v[likely].sort(descending=True)
    top = top.double()[None]
    place = _invert(top * _keep(top, [options]), draw_11)
    return int(likely[order[place[0, 0]]])


def _keep(top_nk: Tensor, options: Sequence[Sampling]) -> Tensor:
    """Which of the most probable tokens, best first, pass top-k, then top-p and min-p.

    Nucleus sampling (Holtzman et al. 2019) keeps the smallest set of most probable tokens whose
    mass reaches ``top_p``; min-p (Nguyen et al. 2024) those with a share of the top probability.
    The most probable token always stays.
    """
    width = top_nk.shape[1]
    top_k = _column([each.top_k or width for each in options], top_nk)
    inside = torch.arange(width, device=top_nk.device) < top_k
    among = (top_nk * inside).sum(-1, keepdim=True)
    mass = torch.where(_column([each.top_k for each in options], top_nk) > 0, among, 1.0)
    top_p = _column([each.top_p for each in options], top_nk, torch.float64)
    reached = torch.where(top_p < 1, top_p * mass, torch.inf)
    min_p = _column([each.min_p for each in options], top_nk, torch.float64)
    before = top_nk.cumsum(-1) - top_nk
    return inside & (before < reached) & (top_nk >= min_p * top_nk[:, :1])


def _suffice(top_nk: Tensor, options: Sequence[Sampling]) -> list[bool]:
    """Whether every token that stays is among the ``top_nk`` ones."""
    figures = torch.stack((top_nk.sum(-1), top_nk[:, -1], top_nk[:, 0]), 1).tolist()
    return [
        0 < each.top_k <= top_nk.shape[1]
        or (not each.top_k and each.top_p < 1 and total >= each.top_p)
        or last < each.min_p * first
        for each, (total, last, first) in zip(options, figures, strict=True)
    ]


def _invert(weights_nk: Tensor, draws_n1: Tensor) -> Tensor:
    """Where the cumulated weights, fp64, pass a draw's share of their total: (n, 1)."""
    cumulated = weights_nk.cumsum(-1)
    targets = draws_n1.clamp(max=BELOW_ONE) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, targets, right=True)


def _invert_in_blocks(probabilities_nv: Tensor, draws_n1: Tensor) -> list[int]:
    """The tokens at which the cumulated probabilities pass the draws: first the block, then in it.

    Several times as fast as cumulating the whole vocabulary.
    """
    blocks = _blocks(probabilities_nv, 0.0)
    sums = blocks.sum(-1).double()
    block = _invert(sums, draws_n1)
    cumulated = sums.cumsum(-1)
    own = sums.gather(1, block)
    left = draws_n1.clamp(max=BELOW_ONE) * cumulated[:, -1:] - (cumulated.gather(1, block) - own)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double()
    place = _invert(inside, (left / own).clamp(min=0))
    found: list[int] = (block * BLOCK + place)[:, 0].tolist()
    return found


def _argmax(logits_nv: Tensor) -> list[int]:
    """The first of the most probable tokens of each row; several times as fast as argmax."""
    if not logits_nv.is_cuda:  # a CPU takes twice as long to compare bf16
        logits_nv = logits_nv.float()
    blocks = _blocks(logits_nv, -torch.inf)
    block = blocks.amax(-1).float().argmax(-1)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block]
    found: list[int] = (block * BLOCK + inside.float().argmax(-1)).tolist()
    return found


def _top(values_nv: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` greatest values of each row, greatest first, and their places.

    They lie in the ``k`` blocks with the greatest maxima: the others need not be searched.
    """
    blocks = _blocks(values_nv, -torch.inf)
    if k >= blocks.shape[1]:
        return values_nv.topk(k)
    chosen = blocks.amax(-1).topk(k).indices
    inside = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    top, places = inside.topk(k)
    return top, chosen.gather(1, places // BLOCK) * BLOCK + places % BLOCK


def _blocks(values_nv: Tensor, filler: float) -> Tensor:
    """(n, vocabulary) -> (n, blocks, BLOCK), filled up at the end."""
    missing = -values_nv.shape[1] % BLOCK
    if missing:
        values_nv = F.pad(values_nv, (0, missing), value=filler)
    return values_nv.unflatten(1, (-1, BLOCK))


@torch.inference_mode()
def top_logprobs(logits_nv: Tensor, chosen: Sequence[int], n_top: int) -> list[TokenLogprob]:
    """Log-probabilities of the chosen tokens and of the ``n_top`` most probable ones."""
    logprobs = torch.log_softmax(logits_nv.float(), -1)
    ids = torch.tensor(chosen, device=logprobs.device)
    own = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    if not n_top:
        return [TokenLogprob(i, value) for i, value in zip(chosen, own, strict=True)]
    values, tokens = _top(logprobs, min(n_top, logprobs.shape[1]))
    rows = zip(chosen, own, tokens.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(i, value, tuple(zip(top, tops, strict=True))) for i, value, top, tops in rows
    ]
