"""Batched generation over a key/value cache, and a stream of tokens for one prompt."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from puna.core.errors import UsageError
from puna.inference.sampling import Sampling, choose
from puna.model import KVCache, Llama


@dataclass(frozen=True)
class Generation:
    """What the model wrote after a prompt."""

    ids: list[int]
    """The new tokens, without the stop token."""
    stopped: bool
    """Whether it ended by itself, with a stop token."""


def check_fits(prompt: Sequence[int], context: int) -> None:
    """Raise `UsageError` when a prompt is empty or leaves no room for a new token."""
    if not prompt:
        raise UsageError("the prompt is empty: give at least one token")
    if len(prompt) >= context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and this model's context is {context}: "
            "shorten it, or start a new conversation"
        )


def _prefill(model: Llama, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Pass the prompts through the model; logits after each one's last token (batch, vocab)."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    width = int(lengths.max())
    padded = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
    ids = torch.tensor(padded, device=model.device)
    positions = torch.arange(width, device=model.device).expand_as(ids)
    hidden = model.hidden(ids, positions_bt=positions, cache=cache)
    last = hidden[torch.arange(len(prompts), device=model.device), lengths - 1]
    return last @ model.head_weight().to(last.dtype).T


@torch.inference_mode()
def _tokens(
    model: Llama, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> Iterator[list[int]]:
    """The next token of every row, step after step, until the context or the limit is reached."""
    longest = max(len(prompt) for prompt in prompts)
    steps = min(sampling.max_new_tokens, model.config.context - longest)
    cache = KVCache(model.config, len(prompts), longest + steps, model.dtype, model.device)
    generator = torch.Generator(model.device).manual_seed(sampling.seed)
    logits = _prefill(model, prompts, cache)
    positions = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    for step in range(steps):
        chosen = choose(logits, sampling, generator)
        yield chosen.tolist()
        if step + 1 < steps:
            logits = model(chosen[:, None], positions_bt=positions[:, None], cache=cache)[:, -1]
            positions = positions + 1


def stream(
    model: Llama, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int]
) -> Iterator[int]:
    """New tokens of one prompt as they come; ends before a stop token.

    Raises `UsageError` when the prompt does not fit the context.
    """
    check_fits(prompt, model.config.context)
    for (token,) in _tokens(model, [prompt], sampling):
        if token in stop_ids:
            return
        yield token


def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    *,
    batch_size: int = 32,
) -> list[Generation]:
    """Continue every prompt; the order of the results is that of the prompts.

    Prompts of similar lengths share a batch. Raises `UsageError` when one does not fit the context.
    """
    for prompt in prompts:
        check_fits(prompt, model.config.context)

    def room(row: int) -> int:
        return min(sampling.max_new_tokens, model.config.context - len(prompts[row]))

    results: dict[int, Generation] = {}
    for rows in _batches(prompts, room, batch_size):
        batch = _generate_batch(model, [prompts[row] for row in rows], sampling, stop_ids)
        results.update(zip(rows, batch, strict=True))
    return [results[row] for row in range(len(prompts))]


def _batches(
    prompts: Sequence[Sequence[int]], room: Callable[[int], int], batch_size: int
) -> Iterator[list[int]]:
    """Rows by length, those of a batch with room for equally many new tokens."""
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for _, rows in groupby(by_length, key=room):
        alike = list(rows)
        yield from (alike[i : i + batch_size] for i in range(0, len(alike), batch_size))


def _generate_batch(
    model: Llama, prompts: list[Sequence[int]], sampling: Sampling, stop_ids: frozenset[int]
) -> list[Generation]:
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for tokens in _tokens(model, prompts, sampling):
        for row in list(open_rows):
            if tokens[row] in stop_ids:
                open_rows.remove(row)
            else:
                written[row].append(tokens[row])
        if not open_rows:
            break
    return [Generation(ids, row not in open_rows) for row, ids in enumerate(written)]
