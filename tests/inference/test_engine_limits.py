"""Memory, queues and weights: what a long-lived engine must not lose."""

import gc
import random
from typing import Any

import psutil
import pytest
import torch
from tiny_engine import CONTEXT, Build, Reference, greedy, run, tiny_llama

from puna.core.errors import UsageError
from puna.inference import Engine, EngineConfig, QueueFull, generate
from puna.tokenizer import Tokenizer


def sizes(engine: Engine) -> dict[str, int]:
    """Lengths of all containers that the engine, its queue, its pool and its drafter keep."""
    parts: list[Any] = [engine, engine._queue, engine._queue.pool, engine._drafter]
    return {
        f"{type(part).__name__}.{name}": len(value)
        for part in parts
        for name, value in vars(part).items()
        if hasattr(value, "__len__") and not isinstance(value, str)
    }


def storm(engine: Engine, n: int, rng: random.Random) -> None:
    """``n`` requests of any length; a third is cancelled, waiting, reading or writing."""
    alive: list[int] = []
    sent = 0
    while sent < n or not engine.idle:
        while sent < n and engine.stats().waiting < 96:
            prompt = [*[1] * rng.randrange(24), rng.randrange(9)]
            alive.append(engine.submit(greedy(prompt, rng.randrange(5), stop=("xyz",))))
            sent += 1
        for handle in rng.sample(alive, len(alive) // 30):
            engine.cancel(handle)
        ended = {handle for handle, delta in engine.step() if delta.finish is not None}
        alive = [h for h in alive if h not in ended and h in engine._rows]


def test_ten_thousand_requests_with_cancellations_leave_nothing_behind(build: Build) -> None:
    engine = build(cache_tokens=768, max_rows=64, speculation=1, chunk_tokens=256)
    rng = random.Random(8)
    storm(engine, 3000, rng)
    gc.collect()
    before, memory = sizes(engine), psutil.Process().memory_info().rss
    storm(engine, 7000, rng)
    gc.collect()
    stats, after = engine.stats(), sizes(engine)
    assert stats.pages_used == stats.waiting_tokens == stats.running == stats.waiting == 0
    assert stats.finished + stats.cancelled == 10_000
    assert min(stats.finished, stats.cancelled) > 2_000
    # one request's tokens, text and row are some 10 kB: a leak of each would be 70 MB
    assert psutil.Process().memory_info().rss - memory < 8_000_000
    bounded = {name for name in before if after[name] > before[name]}
    assert all(after[name] <= 768 // 8 + 1 for name in bounded), after
    assert engine._queue.pool.n_available == 768 // 8


def test_pages_exceed_the_tokens_they_hold_by_less_than_one_page_a_text(build: Build) -> None:
    """And stay within 5 % of them where texts are long."""
    engine = build(page_size=4, prefix_cache=False)
    for n in range(12):
        engine.submit(greedy(range(1, 80 + n), 8))
    while not engine.idle:
        engine.step()
        rows = engine._queue.running
        held = sum(row.computed for row in rows)
        room = engine.stats().pages_used * 4
        assert held <= room <= held + 4 * len(rows)
        assert room <= 1.05 * held


def test_a_shared_beginning_takes_its_pages_once(build: Build) -> None:
    engine = build(max_rows=16)
    shared = list(range(1, 65))
    for n in range(16):
        engine.submit(greedy([*shared, n], 12))
    while engine.stats().running < 16:
        engine.step()
    assert engine.stats().pages_used <= len(shared) // 8 + 16 * 2


def test_a_text_that_outgrows_the_whole_cache_ends_there(
    build: Build, reference: Reference
) -> None:
    """The last token needs no room: nothing follows it."""
    engine = build(cache_tokens=32, chunk_tokens=8)
    (found,) = generate(engine, [greedy(range(1, 21), 60)])
    assert found.ids == reference(list(range(1, 21)), 32 - 20 + 1)
    with pytest.raises(UsageError, match="raise cache_tokens"):
        engine.submit(greedy(range(1, 40), 4))


def test_nobody_starves_where_there_is_room_for_one_text_only(
    build: Build, reference: Reference
) -> None:
    engine = build(cache_tokens=CONTEXT, chunk_tokens=16, max_rows=8, page_size=4)
    prompts = [[n, *range(30)] for n in range(12)]
    order: list[int] = []
    handles = [engine.submit(greedy(prompt, 40)) for prompt in prompts]
    found: dict[int, list[int]] = {handle: [] for handle in handles}
    for _ in range(3000):
        for handle, delta in engine.step():
            found[handle].extend(delta.ids)
            order += [handle] if delta.finish is not None else []
    assert engine.idle
    assert order == handles  # first come, first served
    assert [found[handle] for handle in handles] == [reference(p, 40) for p in prompts]


def test_a_long_prompt_lets_the_others_write_on(build: Build) -> None:
    engine = build(chunk_tokens=8)
    short = engine.submit(greedy([1], 60))
    engine.step()
    engine.submit(greedy(range(1, 81), 1))
    for _ in range(10):  # 80 tokens in pieces of 8
        assert short in [handle for handle, _ in engine.step()]


def test_the_queue_is_bounded_by_requests_and_by_tokens(build: Build) -> None:
    engine = build(max_queue=3)
    for _ in range(3):
        engine.submit(greedy([1], 2))
    with pytest.raises(QueueFull, match="try again") as refused:
        engine.submit(greedy([1], 2))
    assert 1 <= refused.value.retry_after_s <= 60
    engine = build(max_queue_tokens=50)
    engine.submit(greedy([1] * 40, 2))
    with pytest.raises(QueueFull):
        engine.submit(greedy([1] * 11, 2))
    last = engine.submit(greedy([1] * 10, 2))
    assert engine.stats().waiting_tokens == 50
    engine.cancel(last)
    assert engine.stats().waiting_tokens == 40
    engine = build(max_queue_tokens=50)
    engine.submit(greedy([1] * 60, 2))  # nothing waits: one request may exceed the bound


def test_a_failing_pass_ends_only_the_requests_in_it(
    build: Build, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(max_rows=1)
    first, second = engine.submit(greedy([1], 5)), engine.submit(greedy([2], 5))

    def fail(*args: object) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "hidden", fail)
        ((handle, delta),) = engine.step()
    assert (handle, delta.finish, delta.error) == (first, "error", "RuntimeError: out of luck")
    text: list[int] = []
    while not engine.idle:
        for handle, delta in engine.step():
            assert handle == second
            text.extend(delta.ids)
    assert text == reference([2], 5)
    assert engine.stats().failed == 1
    assert engine.stats().pages_used == 0


def test_a_failing_drafter_ends_its_rows_and_the_engine_lives(
    build: Build, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(speculation=2)
    handle = engine.submit(greedy([1], 5))
    engine.step()

    def fail(*args: object) -> None:
        raise RuntimeError("out of ideas")

    with monkeypatch.context() as patch:
        patch.setattr(engine._drafter, "propose", fail)
        ((failed, delta),) = engine.step()
    assert (failed, delta.error) == (handle, "RuntimeError: out of ideas")
    assert engine.idle
    (found,) = generate(engine, [greedy([2], 5)])
    assert found.ids == reference([2], 5)


def test_weights_trained_in_place_are_seen_and_others_taken_over(tokenizer: Tokenizer) -> None:
    """In fp32, where engine and trainer hold the same tensors; the prefix cache must forget."""
    model, other = (tiny_llama(tokenizer.vocab_size, seed) for seed in (21, 22))
    engine = Engine(model, tokenizer, EngineConfig(weights="fp32", cache_tokens=1024))
    prompt = list(range(1, 40))

    def plain_text(of: torch.nn.Module) -> list[int]:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(8):
                ids.append(int(of(torch.tensor([ids]))[0, -1].argmax()))
        return ids[len(prompt) :]

    texts = [plain_text(model)]
    assert run(engine, [greedy(prompt, 8)]) == texts
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([prompt]))[0].logsumexp(-1).mean().backward()
    optimizer.step()
    engine.load_weights(model)
    assert engine.stats().pages_cached == 0
    texts.append(plain_text(model))
    assert run(engine, [greedy(prompt, 8)]) == texts[-1:]
    engine.load_weights(other)
    texts.append(plain_text(other))
    assert run(engine, [greedy(prompt, 8)]) == texts[-1:]
    assert len({tuple(text) for text in texts}) == 3
