"""Greedy coordinate gradient: a suffix of tokens that makes the wanted first words likely.

Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language Models"
(arXiv:2307.15043). The objective is their eq. 1: the negative log-likelihood of the target tokens
y after the prompt x with the suffix s, here divided by the number of target tokens,

    L(s) = -1/|y| * sum_i log p(y_i | x, s, y_1 .. y_{i-1}).

A step is their algorithm 1: the gradient of L at the one-hot rows of the suffix names the
``top_k`` most promising tokens of each position; ``candidates`` suffixes that differ in one token
are drawn from these; the best of them is kept when it is better. Written for suffixes of single
conversations. Candidates whose text would be read as other tokens are left out, so the text that
is sent is what was computed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core.errors import PunaError
from puna.core.random import stream
from puna.model import Llama
from puna.safety.redteam.arena import Arena, Outcome, Sent
from puna.safety.redteam.attacks import GradientAttack
from puna.tokenizer import Message, Tokenizer

_TRIES = 200  # of first suffixes drawn at random
_BATCH_TOKENS = 8192  # of one forward pass over candidates


@dataclass(frozen=True)
class Slots:
    """A prompt with room for a suffix, and what should follow: ``before + suffix + after``."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    suffix: tuple[int, ...]
    loss: float
    """Its loss, in nats a token."""
    losses: tuple[float, ...]
    """The best loss before the first step and after each."""
    matched: bool
    """Whether the target is what the model would choose, token by token."""


def suffix_losses(model: Llama, slots: Slots, suffixes: Sequence[Sequence[int]]) -> Tensor:
    """L of each suffix: (n,), in nats a target token."""
    width = len(slots.before) + len(suffixes[0]) + len(slots.after) + len(slots.target)
    at_once = max(1, _BATCH_TOKENS // width)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(suffixes), at_once):
            rows = [_row(slots, suffix) for suffix in suffixes[start : start + at_once]]
            parts.append(_losses(model, slots, torch.tensor(rows, device=model.device)))
    return torch.cat(parts)


def coordinate_gradient(model: Llama, slots: Slots, suffix: Sequence[int]) -> Tensor:
    """Gradient of L with respect to the one-hot rows of the suffix: (n_suffix, vocab_size).

    The embedding is linear in the one-hot row, so it is the gradient at the embedded token times
    the embedding, transposed.
    """
    table = model.model.embed_tokens
    embedded: list[Tensor] = []

    def note(_module: torch.nn.Module, _given: object, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        embedded.append(leaf)
        return leaf

    hook = table.register_forward_hook(note)
    try:
        with torch.enable_grad():
            ids = torch.tensor([_row(slots, suffix)], device=model.device)
            (gradient,) = torch.autograd.grad(_losses(model, slots, ids).sum(), embedded)
    finally:
        hook.remove()
    start = len(slots.before)
    return gradient[0, start : start + len(suffix)] @ table.weight.T


def search(
    model: Llama,
    slots: Slots,
    suffix: Sequence[int],
    attack: GradientAttack,
    *,
    allowed: Tensor,
    keeps: Callable[[Sequence[int]], bool],
    seed: int,
) -> Found:
    """The best suffix within the budget of steps and seconds; ends early when it matches.

    Args:
        suffix: where the search starts.
        allowed: (vocab_size,), whether a suffix may hold a token.
        keeps: whether a suffix is read back as the same tokens.
        seed: of the candidates drawn.
    """
    draw = stream("gcg", seed)
    best, loss = tuple(suffix), float(suffix_losses(model, slots, [suffix])[0])
    losses, ends = [loss], time.monotonic() + attack.seconds
    matched = matches(model, slots, best)
    while len(losses) <= attack.steps and not matched and time.monotonic() < ends:
        gradient = coordinate_gradient(model, slots, best)
        gradient[:, ~allowed] = torch.inf
        top_k = min(attack.top_k, int(allowed.sum()))
        ranked = gradient.topk(top_k, largest=False).indices.cpu().numpy()
        drawn = [c for c in _drawn(best, ranked, attack.candidates, draw) if keeps(c)]
        if drawn:
            found = suffix_losses(model, slots, drawn)
            place = int(found.argmin())
            if float(found[place]) < loss:
                best, loss = drawn[place], float(found[place])
                matched = matches(model, slots, best)
        losses.append(loss)
    return Found(best, loss, tuple(losses), matched)


def matches(model: Llama, slots: Slots, suffix: Sequence[int]) -> bool:
    """Whether greedy decoding would give the target."""
    with torch.inference_mode():
        ids = torch.tensor([_row(slots, suffix)], device=model.device)
        return bool((_target_logits(model, slots, ids)[0].argmax(-1) == _target(slots, ids)).all())


def _row(slots: Slots, suffix: Sequence[int]) -> list[int]:
    return [*slots.before, *suffix, *slots.after, *slots.target]


def _target(slots: Slots, ids_bt: Tensor) -> Tensor:
    return ids_bt[0, -len(slots.target) :]


def _target_logits(model: Llama, slots: Slots, ids_bt: Tensor) -> Tensor:
    """Logits that predict each target token: (batch, n_target, vocab_size)."""
    hidden = model.hidden(ids_bt)[:, -len(slots.target) - 1 : -1]
    return F.linear(hidden, model.head_weight().to(hidden.dtype))


def _losses(model: Llama, slots: Slots, ids_bt: Tensor) -> Tensor:
    logits = _target_logits(model, slots, ids_bt)
    labels = _target(slots, ids_bt).expand(len(ids_bt), -1)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(exact.transpose(1, 2), labels, reduction="none")
    return each.mean(1)


def _drawn(
    suffix: tuple[int, ...], ranked: np.ndarray, n: int, draw: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """Suffixes with one token changed, each place as often as any other on average."""
    for place, rank in zip(
        draw.integers(len(suffix), size=n), draw.integers(ranked.shape[1], size=n), strict=True
    ):
        changed = int(ranked[place, rank])
        yield (*suffix[:place], changed, *suffix[place + 1 :])


class _Prompt:
    """A conversation as tokens, with the place of the suffix at the end of its last message."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[Message], request: str) -> None:
        self._tokenizer = tokenizer
        self._before = before
        self._request = request
        plain, one, other = (self._ids(text) for text in ("", " a", " b"))
        tail = 0
        while one[-tail - 1] == other[-tail - 1]:
            tail += 1
        self.before, self.after = tuple(plain[:-tail]), tuple(plain[-tail:])

    def _ids(self, suffix: str) -> list[int]:
        messages = [*self._before, Message("user", self._request + suffix)]
        chat = self._tokenizer.chat
        return chat.encode(self._tokenizer, messages, add_generation_prompt=True).ids

    def text(self, suffix: Sequence[int]) -> str:
        return self._tokenizer.decode(suffix)

    def keeps(self, suffix: Sequence[int]) -> bool:
        return self._ids(self.text(suffix)) == [*self.before, *suffix, *self.after]


def allowed_tokens(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """Which tokens a suffix may hold: (vocab_size,); those of printable ASCII."""
    special = tokenizer.special_ids
    plain = torch.zeros(vocab_size, dtype=torch.bool)
    for token in range(min(tokenizer.vocab_size, vocab_size)):
        text = "" if token in special else tokenizer.decode([token])
        plain[token] = text != "" and text.isascii() and text.isprintable()
    return plain


def first_suffix(
    prompt: "_Prompt", tokenizer: Tokenizer, allowed: Tensor, n: int, seed: int
) -> tuple[int, ...]:
    """Exclamation marks, as in the paper; random tokens where these would be read as others."""
    marks = tuple(tokenizer.encode(" !")[-1:]) * n
    if prompt.keeps(marks):
        return marks
    draw = stream("gcg", "first", seed)
    tokens = allowed.nonzero().flatten().numpy()
    for _ in range(_TRIES):
        drawn = tuple(int(token) for token in draw.choice(tokens, n))
        if prompt.keeps(drawn):
            return drawn
    raise PunaError(
        "no suffix of this length is read back as the same tokens: ask for a shorter one"
    )


async def run(attack: GradientAttack, arena: Arena) -> Outcome:
    """Find a suffix with the target's own weights, then ask with it."""
    assert arena.cast.white_box is not None, "the plan leaves out attacks without weights"
    trial, opening = arena.trial, arena.opening()

    def found(model: Llama, tokenizer: Tokenizer) -> str:
        prompt = _Prompt(tokenizer, [entry.message for entry in opening], arena.aim.request)
        allowed = allowed_tokens(tokenizer, model.config.vocab_size)
        start = first_suffix(prompt, tokenizer, allowed, attack.suffix_tokens, trial.draw)
        target = tuple(tokenizer.encode(arena.aim.opening))
        slots = Slots(prompt.before, prompt.after, target)
        best = search(
            model,
            slots,
            start,
            attack,
            allowed=allowed.to(model.device),
            keeps=prompt.keeps,
            seed=trial.draw,
        )
        return prompt.text(best.suffix)

    suffix = await arena.cast.white_box.use(found)
    return await arena.attempt([*opening, Sent(Message("user", arena.aim.request + suffix))])
