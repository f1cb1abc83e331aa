from dataclasses import replace

import pytest
from tiny_engine import CONTEXT, Build, Reference, greedy

from puna.core.errors import PunaError, UsageError
from puna.inference import generate, stream


def test_greedy_text_equals_the_text_without_a_cache(build: Build, reference: Reference) -> None:
    prompts = [[1, 2, 3], [9], list(range(20)), [4, 4]]
    found = generate(build(), [greedy(prompt, 12) for prompt in prompts])
    assert [g.ids for g in found] == [reference(prompt, 12) for prompt in prompts]
    assert not any(g.stopped for g in found)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(
    build: Build, reference: Reference
) -> None:
    free = reference([5, 6], 10)
    stop = free[4]
    request = replace(greedy([5, 6], 10), stop_ids=frozenset({stop}))
    engine = build()
    (found,) = generate(engine, [request])
    assert found.stopped
    assert found.ids == free[: free.index(stop)]
    deltas = list(stream(engine, request))
    assert [i for delta in deltas for i in delta.ids] == found.ids
    assert deltas[-1].finish == "stop"


def test_a_stop_token_is_text_where_stops_are_to_be_ignored(
    build: Build, reference: Reference
) -> None:
    free = reference([5, 6], 10)
    request = replace(greedy([5, 6], 10, ignore_stop_tokens=True), stop_ids=frozenset({free[4]}))
    (found,) = generate(build(), [request])
    assert found.ids == free


def test_text_ends_where_the_context_does(build: Build) -> None:
    (found,) = generate(build(), [greedy([1] * 88, 100)])
    assert len(found.ids) == CONTEXT - 88
    assert not found.stopped


def test_a_long_prompt_in_the_list_does_not_cut_the_others_short(build: Build) -> None:
    short, long = generate(build(), [greedy([1, 2], 20), greedy([1] * 92, 20)])
    assert (len(short.ids), len(long.ids)) == (20, 4)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([1] * CONTEXT, f"{CONTEXT} tokens"), ([1, 999], "token id 999")],
)
def test_a_prompt_that_cannot_be_read_says_so(
    build: Build, prompt: list[int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        generate(build(), [greedy(prompt, 4)])
    with pytest.raises(UsageError, match=message):
        next(stream(build(), greedy(prompt, 4)))


def test_more_texts_than_the_queue_holds_are_all_written(
    build: Build, reference: Reference
) -> None:
    engine = build(max_queue=2, max_queue_tokens=8, max_rows=3)
    prompts = [[i, i + 1, i + 2] for i in range(12)]
    found = generate(engine, [greedy(prompt, 3) for prompt in prompts])
    assert [g.ids for g in found] == [reference(prompt, 3) for prompt in prompts]


def test_leaving_a_stream_early_leaves_nothing_behind(build: Build) -> None:
    engine = build()
    for _ in stream(engine, greedy([1, 2], 50)):
        break
    assert engine.idle
    assert engine.stats().pages_used == 0


def test_two_callers_of_one_engine_cannot_take_each_others_text(build: Build) -> None:
    engine = build()
    first = stream(engine, greedy([1, 2], 50))
    next(first)
    with pytest.raises(PunaError, match="AsyncEngine"):
        generate(engine, [greedy([3], 2)])
    with pytest.raises(PunaError, match="AsyncEngine"):
        next(stream(engine, greedy([3], 2)))
    assert sum(len(delta.ids) for delta in first) == 49
