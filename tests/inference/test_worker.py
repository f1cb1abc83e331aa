"""The engine behind an event loop. No test waits longer than a few steps of the tiny model."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from tiny_engine import Build, Reference, greedy

from puna.core.errors import PunaError, UsageError
from puna.inference import AsyncEngine, Delta, Engine, QueueFull
from puna.inference.worker import PIECE_S, Answer, Pace, merge

LONG = 80


@asynccontextmanager
async def started(engine: Engine) -> AsyncIterator[AsyncEngine]:
    worker = AsyncEngine(engine)
    worker.start()
    try:
        yield worker
    finally:
        worker.close()
        assert not worker.alive


async def ids_of(answer: Answer) -> list[int]:
    return [i async for delta in answer for i in delta.ids]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def nothing_held(worker: AsyncEngine) -> bool:
    stats = worker.stats()
    return stats.running == stats.waiting == stats.pages_used == 0


def test_many_readers_get_each_their_own_text(build: Build, reference: Reference) -> None:
    prompts = [[n, n + 1] for n in range(1, 30)]

    async def scene() -> list[list[int]]:
        async with started(build(max_rows=8)) as worker:
            answers = await asyncio.gather(*(worker.submit(greedy(p, 12)) for p in prompts))
            return await asyncio.gather(*map(ids_of, answers))

    assert asyncio.run(scene()) == [reference(p, 12) for p in prompts]


def test_where_a_step_takes_all_cores_readers_have_it_before_the_next_one(
    build: Build, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.inference.worker._takes_all_cores", lambda _engine: True)
    monkeypatch.setattr("puna.inference.worker.HAND_OVER_S", 30)
    engine, happened = build(), list[str]()
    step = engine.step

    def noted() -> list[tuple[int, Delta]]:
        happened.append("step")
        deltas = step()
        happened.extend("made" for _, delta in deltas if delta.ids)
        return deltas

    monkeypatch.setattr(engine, "step", noted)

    async def scene() -> list[int]:
        found: list[int] = []
        async with started(engine) as worker:
            async for delta in await worker.submit(greedy([1, 2], 30)):
                happened.extend("read" for _ in delta.ids[:1])
                found += delta.ids
        return found

    assert asyncio.run(scene()) == reference([1, 2], 30)
    assert happened.count("made") == 30  # the first step may make two, read as one
    turns = list(pairwise(happened))
    assert ("made", "read") in turns
    assert ("made", "step") not in turns


async def close_at_once(worker: AsyncEngine) -> None:
    (await worker.submit(greedy([1], LONG))).close()


async def close_after_a_delta(worker: AsyncEngine) -> None:
    answer = await worker.submit(greedy([1], LONG))
    await anext(answer)
    await answer.aclose()
    assert [delta async for delta in answer] == []


async def break_out_of_the_loop(worker: AsyncEngine) -> None:
    async for _ in await worker.submit(greedy([1], LONG)):
        break


async def cancel_the_reader(worker: AsyncEngine) -> None:
    reader = asyncio.create_task(ids_of(await worker.submit(greedy([1], LONG))))
    await asyncio.sleep(0.005)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def cancel_while_it_enters(worker: AsyncEngine) -> None:
    entering = asyncio.create_task(worker.submit(greedy([1], LONG)))
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering


@pytest.mark.parametrize(
    "leave",
    [
        close_at_once,
        close_after_a_delta,
        break_out_of_the_loop,
        cancel_the_reader,
        cancel_while_it_enters,
    ],
)
def test_whoever_leaves_frees_rows_and_pages(
    build: Build, leave: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    async def scene() -> None:
        async with started(build()) as worker:
            await leave(worker)
            await until(lambda: worker.stats().cancelled == 1 and nothing_held(worker))
            await asyncio.wait_for(worker.drain(), 5)

    asyncio.run(scene())


def test_an_answer_closed_by_another_ends_for_its_reader(build: Build) -> None:
    async def scene() -> None:
        async with started(build(max_rows=1)) as worker:
            running = await worker.submit(greedy([1], LONG))
            waiting = await worker.submit(greedy([2], LONG))
            reader = asyncio.create_task(ids_of(waiting))
            await asyncio.sleep(0)
            waiting.close()
            assert await asyncio.wait_for(reader, 5) == []
            assert len(await ids_of(running)) == LONG

    asyncio.run(scene())


def test_a_slow_reader_finds_what_it_missed_in_one_piece(
    build: Build, reference: Reference
) -> None:
    async def scene() -> list[Delta]:
        async with started(build()) as worker:
            answer = await worker.submit(greedy([3, 4], 20, logprobs=0))
            await until(lambda: nothing_held(worker))
            await worker.embed([[1]])  # between two steps: what the last one wrote has arrived
            return [delta async for delta in answer]

    (only,) = asyncio.run(scene())
    assert list(only.ids) == reference([3, 4], 20)
    assert [entry.id for entry in only.logprobs] == list(only.ids)
    assert only.finish == "length"


def test_merging_keeps_the_first_words_and_the_last_verdict() -> None:
    first = Delta(ids=(1,), text="a", prompt_logprobs=(None,), cached_tokens=8)
    last = Delta(ids=(2, 3), text="bc", finish="stop", matched="X")
    merged = merge([first, last])
    assert merged == Delta((1, 2, 3), "abc", (), (None,), 8, "stop", "X")


def paced(n: int, step_s: float, steps: int) -> dict[int, list[tuple[float, Delta]]]:
    """What goes out, and when, of ``n`` answers that get a token in every step."""
    pace, out = Pace(), dict[int, list[tuple[float, Delta]]]()
    for step in range(steps):
        last = "length" if step == steps - 1 else None
        deltas = [(row, Delta(ids=(step,), text=f"{step} ", finish=last)) for row in range(n)]
        for handle, delta in pace.due(deltas, step * step_s):
            out.setdefault(handle, []).append((step * step_s, delta))
    return out


@pytest.mark.parametrize(("n", "step_s"), [(1, 0.001), (16, 0.025), (64, 0.07), (256, 0.02)])
def test_many_answers_are_told_of_less_often_and_lose_nothing(n: int, step_s: float) -> None:
    steps = 40
    out = paced(n, step_s, steps)
    assert set(out) == set(range(n))
    least = PIECE_S * n if n > 1 else 0
    for pieces in out.values():
        assert [i for _, delta in pieces for i in delta.ids] == list(range(steps))
        assert "".join(delta.text for _, delta in pieces) == "".join(f"{i} " for i in range(steps))
        times = [time_s for time_s, _ in pieces]
        assert times[0] == 0
        assert times[-1] == pytest.approx((steps - 1) * step_s)
        gaps = [after - before for before, after in pairwise(times[:-1])]
        assert all(least <= gap < least + 1.001 * step_s for gap in gaps)
    if n == 1:
        assert len(out[0]) == steps


def grown(text: str, rows: Sequence[int] = (0, 1, 2)) -> list[tuple[int, Delta]]:
    return [(row, Delta(text=text)) for row in rows]


def test_an_answer_whose_first_token_is_no_text_yet_is_not_held_back() -> None:
    pace = Pace()
    assert pace.due(grown(""), 0) == grown("")
    assert pace.due(grown("a"), 0) == grown("a")
    assert pace.due(grown("b"), 0) == []


def test_only_answers_that_grow_count_and_none_is_held_by_those_that_pause() -> None:
    pace = Pace()
    pace.due(grown("a"), 0)
    assert pace.due(grown("b"), PIECE_S) == []
    assert pace.due(grown("c", [0]), PIECE_S) == [
        (row, Delta(text=text)) for row, text in enumerate(["bc", "b", "b"])
    ]
    pace.due(grown("d"), PIECE_S)
    pace.forget(0)
    assert pace.due([], PIECE_S) == grown("d", [1, 2])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its first text and its end nothing of an answer is handed on, where several grow."""
    monkeypatch.setattr("puna.inference.worker.PIECE_S", 30)


@pytest.mark.usefixtures("patient")
def test_an_engine_hands_on_the_first_and_the_rest_merged(
    build: Build, reference: Reference
) -> None:
    prompts = [[n, n + 1] for n in range(1, 4)]

    async def scene() -> list[list[Delta]]:
        async def read(answer: Answer) -> list[Delta]:
            return [delta async for delta in answer]

        async with started(build()) as worker:
            answers = await asyncio.gather(*(worker.submit(greedy(p, 40)) for p in prompts))
            return await asyncio.gather(*map(read, answers))

    for prompt, deltas in zip(prompts, asyncio.run(scene()), strict=True):
        assert [i for delta in deltas for i in delta.ids] == reference(prompt, 40)
        assert len(deltas) < 20


@pytest.mark.usefixtures("patient")
def test_closing_hands_on_what_was_held(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build()
    step = engine.step

    def slow() -> list[tuple[int, Delta]]:
        time.sleep(0.01)
        return step()

    monkeypatch.setattr(engine, "step", slow)

    async def scene() -> list[list[Delta]]:
        worker = AsyncEngine(engine)
        worker.start()
        answers = [await worker.submit(greedy([n], LONG)) for n in range(1, 4)]
        firsts = [await anext(answer) for answer in answers]
        await until(lambda: len(worker._pace._held) == 3)
        worker.close()
        return [[first, await anext(answer)] for first, answer in zip(firsts, answers, strict=True)]

    for first, rest in asyncio.run(scene()):
        assert rest.finish == "cancelled"
        assert len(first.ids) < len(first.ids + rest.ids) < LONG


def test_what_whoever_left_held_is_forgotten(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with started(build()) as worker:
            monkeypatch.setattr("puna.inference.worker.PIECE_S", 30)
            answers = [await worker.submit(greedy([n], LONG)) for n in range(1, 3)]
            for answer in answers:
                await anext(answer)
                answer.close()
            await until(lambda: worker.stats().cancelled == 2 and nothing_held(worker))
            await worker.embed([[1]])
            assert not worker._pace._held
            assert not worker._pace._told

    asyncio.run(scene())


def test_what_cannot_be_run_is_told_to_its_caller_alone(build: Build) -> None:
    async def scene() -> None:
        async with started(build(max_rows=1, max_queue=1)) as worker:
            with pytest.raises(UsageError, match="empty"):
                await worker.submit(greedy([], 4))
            first = await worker.submit(greedy([1], LONG))
            begun = await anext(first)
            second = await worker.submit(greedy([2], LONG))
            with pytest.raises(QueueFull) as refused:
                await worker.submit(greedy([3], LONG))
            assert refused.value.retry_after_s >= 1
            second.close()
            assert len(begun.ids) + len(await ids_of(first)) == LONG

    asyncio.run(scene())


def test_draining_finishes_what_was_accepted_and_lets_nothing_in(build: Build) -> None:
    async def scene() -> None:
        async with started(build(max_rows=2)) as worker:
            entering = [asyncio.create_task(worker.submit(greedy([n], 30))) for n in range(1, 6)]
            await asyncio.sleep(0)  # accepted, though the engine has not seen them yet
            drained = asyncio.create_task(worker.drain())
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await worker.submit(greedy([9], 4))
            answers = await asyncio.gather(*entering)
            texts = await asyncio.gather(*map(ids_of, answers))
            await asyncio.wait_for(drained, 5)
            assert [len(text) for text in texts] == [30] * 5

    asyncio.run(scene())


@pytest.mark.parametrize("broken", ["_runner", "_queue"])
def test_a_failing_turn_ends_its_requests_and_the_next_one_works(
    build: Build, reference: Reference, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The model fails within a pass, or the turn itself does."""

    def fail(*args: object) -> None:
        raise RuntimeError("out of luck")

    async def scene() -> None:
        engine = build()
        method = {"_runner": "hidden", "_queue": "admit"}[broken]
        async with started(engine) as worker:
            with monkeypatch.context() as patch:
                patch.setattr(getattr(engine, broken), method, fail)
                answers = await asyncio.gather(
                    *(worker.submit(greedy([n], 5)) for n in range(1, 4))
                )
                for answer in answers:
                    (delta,) = [delta async for delta in answer]
                    assert delta.finish == "error"
                    assert delta.error == "RuntimeError: out of luck"
                await until(lambda: nothing_held(worker))
            assert await ids_of(await worker.submit(greedy([1], 5))) == reference([1], 5)

    asyncio.run(scene())


def test_closing_ends_readers_and_refuses_newcomers(build: Build) -> None:
    async def scene() -> None:
        worker = AsyncEngine(build(max_rows=1))
        worker.start()
        answer = await worker.submit(greedy([1], LONG))
        reader = asyncio.create_task(anext(answer))
        entering = asyncio.create_task(worker.submit(greedy([2], 4)))
        await reader
        await entering
        worker.close()
        assert [delta async for delta in answer][-1].finish == "cancelled"
        with pytest.raises(PunaError, match="stopped"):
            await worker.submit(greedy([3], 4))

    asyncio.run(scene())


@pytest.mark.clock
def test_an_idle_engine_uses_no_processor(build: Build) -> None:
    async def scene() -> None:
        async with started(build()) as worker:
            await ids_of(await worker.submit(greedy([1], 5)))
            begin = time.process_time()
            await asyncio.sleep(0.5)
            # a loop that looked every 10 ms would take some milliseconds
            assert time.process_time() - begin < 0.005

    asyncio.run(scene())
