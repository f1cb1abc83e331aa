"""From logits to the next tokens: many rows at once, each with settings and a seed of its own."""

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from puna.inference.request import Constraint, TokenLogprob
from puna.inference.sampling import Sampling

CANDIDATES = 256  # looked at first; the whole vocabulary is sorted only when they do not suffice


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
        self._random = random.Random(sampling.seed)  # noqa: S311  not for secrets
        self._written: Counter[int] = Counter()
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else set[int]()

    def draw(self) -> float:
        """The next number of this request's own stream, in [0, 1)."""
        return self._random.random()

    def accept(self, token: int) -> None:
        """Take a chosen token into account."""
        if self.sampling.adjusts:
            self._written[token] += 1
            self._seen.add(token)
        if self.constraint is not None:
            self.constraint.accept(token)

    def adjust(self, logits_v: Tensor) -> None:
        """Apply penalties, bias and constraint to one row of logits, in place."""
        options = self.sampling
        if options.repetition_penalty != 1 and self._seen:
            seen = torch.tensor(sorted(self._seen), device=logits_v.device)
            at = logits_v[seen]
            strength = options.repetition_penalty
            logits_v[seen] = torch.where(at > 0, at / strength, at * strength)
        if self._written and (options.presence_penalty or options.frequency_penalty):
            ids = torch.tensor(list(self._written), device=logits_v.device)
            counts = torch.tensor(list(self._written.values()), device=logits_v.device)
            logits_v[ids] -= options.presence_penalty + options.frequency_penalty * counts
        for token, bias in options.logit_bias.items():
            logits_v[token] += bias
        if self.constraint is not None:
            allowed = self.constraint.mask().to(logits_v.device)
            logits_v[: len(allowed)].masked_fill_(~allowed, -torch.inf)
            logits_v[len(allowed) :] = -torch.inf


def choose(logits_nv: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of each row. ``logits_nv`` is as the model gives it and stays so.

    A row's choice depends on its own logits, settings and draws only, never on other rows.
    """
    changed = [n for n, c in enumerate(choosers) if c.sampling.adjusts or c.constraint is not None]
    if changed:
        logits_nv = logits_nv.clone()
        for n in changed:
            choosers[n].adjust(logits_nv[n])
    chosen: list[int] = logits_nv.argmax(-1).tolist()
    sampled = [n for n, chooser in enumerate(choosers) if chooser.sampling.temperature > 0]
    if sampled:
        drawn = _sample(logits_nv[sampled].float(), [choosers[n] for n in sampled])
        for n, token in zip(sampled, drawn, strict=True):
            chosen[n] = token
    return chosen


def _sample(logits_nv: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    def column(name: str) -> Tensor:
        values = [getattr(chooser.sampling, name) for chooser in choosers]
        return torch.tensor(values, device=logits_nv.device)[:, None]

    probabilities = torch.softmax(logits_nv / column("temperature"), -1)
    draws = torch.tensor([chooser.draw() for chooser in choosers], device=logits_nv.device)
    filters = [
        n
        for n, c in enumerate(choosers)
        if c.sampling.top_k or c.sampling.top_p < 1 or c.sampling.min_p
    ]
    free = [n for n in range(len(choosers)) if n not in set(filters)]
    tokens = [0] * len(choosers)
    if free:
        for n, token in zip(free, _invert(probabilities[free], draws[free]), strict=True):
            tokens[n] = token
    for n in filters:
        tokens[n] = _sample_filtered(probabilities[n], choosers[n].sampling, draws[n])
    return tokens


def _invert(probabilities_nv: Tensor, draws_n: Tensor) -> list[int]:
    """The tokens at which the cumulated probabilities pass the draws."""
    cumulated = probabilities_nv.cumsum(-1, dtype=torch.float64)
    targets = draws_n.double() * cumulated[:, -1]
    found: list[int] = torch.searchsorted(cumulated, targets[:, None], right=True)[:, 0].tolist()
    return found


def _sample_filtered(probabilities_v: Tensor, options: Sampling, draw: Tensor) -> int:
    """Draw among the most probable tokens that pass top-k, top-p and min-p.

    Nucleus sampling (Holtzman et al. 2019) keeps the smallest set of most probable tokens whose
    mass reaches ``top_p``; min-p (Nguyen et al. 2024) those with a share of the top probability.
    The most probable token always stays.
    """
    vocabulary = len(probabilities_v)
    top, tokens = probabilities_v.topk(min(options.top_k or CANDIDATES, vocabulary))
    if not options.top_k and not _suffice(top, options):
        top, tokens = probabilities_v.sort(descending=True)
    mass = top.sum() if options.top_k else 1.0
    keep = (top >= options.min_p * top[0]) & (top.cumsum(-1) - top < options.top_p * mass)
    (place,) = _invert((top * keep)[None], draw[None])
    return int(tokens[min(place, int(keep.sum()) - 1)])


def _suffice(top: Tensor, options: Sampling) -> bool:
    """Whether every token that stays is among the ``top`` ones."""
    by_mass = options.top_p < 1 and float(top.sum()) >= options.top_p
    return by_mass or float(top[-1]) < options.min_p * float(top[0])


def top_logprobs(logits_nv: Tensor, chosen: Sequence[int], n_top: int) -> list[TokenLogprob]:
    """Log-probabilities of the chosen tokens and of the ``n_top`` most probable ones."""
    logprobs = torch.log_softmax(logits_nv.float(), -1)
    ids = torch.tensor(chosen, device=logprobs.device)
    own = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    if not n_top:
        return [TokenLogprob(i, value) for i, value in zip(chosen, own, strict=True)]
    values, tokens = logprobs.topk(n_top)
    rows = zip(chosen, own, tokens.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(i, value, tuple(zip(top, tops, strict=True))) for i, value, top, tops in rows
    ]
