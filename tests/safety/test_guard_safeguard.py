import asyncio
from typing import Any

import pytest
from guard_parts import SAFE, BrokenClassifier, FakeClassifier, finds, said
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.safety import Cleaner, SlowFilter, Subject, Verdict
from puna.safety.guard import Guard, Judgement, Policy
from puna.safety.guard.sensitive import Finder
from puna.tokenizer import Message


def policy(**fields: Any) -> Policy:
    return Policy.parse(fields, where="test")


def admit(guard: Guard, subject: Subject) -> Verdict:
    return asyncio.run(guard.admit(subject))


def watched(guard: Guard, pieces: list[str], subject: Subject | None = None) -> tuple[str, Verdict]:
    """What leaves of an answer in pieces, and what the guard thinks of it."""

    async def run() -> tuple[str, Verdict]:
        watch = guard.output_filter(subject or said("Hello"))
        out = ""
        for piece in pieces:
            out += watch.push(piece)
            await asyncio.sleep(0)
            if watch.verdict.decision == "block":
                return out, watch.verdict
        await watch.settled()
        return out + watch.flush(), watch.verdict

    return asyncio.run(run())


def test_a_prompt_is_judged_as_the_policy_says() -> None:
    rules = {"S1": "block", "S6": "warn", "S8": "allow"}
    for code, decision in rules.items():
        guard = Guard(policy(hazards=rules), finds("bad", code))
        assert admit(guard, said("bad")).decision == decision
    blocked = admit(Guard(policy(), finds("bad", "S1")), said("bad"))
    assert blocked == Verdict("block", "hazard S1, Violent Crimes")
    assert admit(Guard(policy(), finds("bad")), said("bad")) == Verdict("block", "harmful content")
    assert admit(Guard(policy(), finds("bad", "S1")), said("good")) == Verdict()


def test_the_strictest_of_several_hazards_counts() -> None:
    guard = Guard(policy(hazards={"S6": "warn", "S7": "allow"}), finds("bad", "S7", "S6", "S2"))
    assert admit(guard, said("bad")) == Verdict("block", "hazard S2, Non-Violent Crimes")


def test_a_threshold_of_the_policy_replaces_the_guards_own() -> None:
    classifier = FakeClassifier(lambda _: Judgement(False, 0.4, ("S1",)))
    assert admit(Guard(policy(), classifier), said("x")).decision == "allow"
    assert admit(Guard(policy(threshold=0.3), classifier), said("x")).decision == "block"
    rules = {"S1": {"threshold": 0.5}}
    assert admit(Guard(policy(threshold=0.3, hazards=rules), classifier), said("x")) == Verdict()


def test_the_users_last_turn_is_judged_also_behind_an_opened_answer() -> None:
    guard = Guard(policy(), finds("bad", "S1"))
    assert admit(guard, said("bad", "Sure, here")).decision == "block"
    assert admit(guard, said("hello", "bad")).decision == "block"
    classifier = finds("bad", "S1")
    admit(Guard(policy(), classifier), said("one", "two", "three", system="never judged"))
    assert [[m.content for m in asked] for asked in classifier.asked] == [["one", "two", "three"]]


def test_an_injection_is_looked_for_in_every_turn_but_the_assistants() -> None:
    guard = Guard(policy(), detector=finds("ignore", "injection"))
    assert admit(guard, said("ignore", "no", "hello")).decision == "block"
    assert admit(guard, said("hello", "ignore", "hello")).decision == "allow"
    tool = Subject("", [Message("user", "read it"), Message("tool", "ignore")], "m", None)
    assert admit(guard, tool) == Verdict("block", "prompt injection or jailbreak")
    assert admit(Guard(policy(injection="allow"), detector=finds("ignore")), tool) == Verdict()


def test_a_text_without_a_conversation_is_judged_as_a_users_turn() -> None:
    guard = Guard(policy(), finds("bad", "S1"))
    assert admit(guard, Subject("a bad text", (), "m", None)).decision == "block"


@pytest.mark.parametrize("decision", ["block", "warn", "allow"])
def test_a_guard_that_fails_or_is_late_does_what_the_policy_says(decision: str) -> None:
    late = FakeClassifier(lambda _: SAFE, seconds=5)
    for classifier in (BrokenClassifier(), late):
        guard = Guard(policy(on_error=decision, seconds=0.01), classifier)
        assert admit(guard, said("x")).decision == decision
        released, verdict = watched(guard, ["some ", "text"])
        assert verdict.decision == decision
        assert released == ("" if decision == "block" else "some text")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("ab ", min_size=1, max_size=9), min_size=1, max_size=30), st.booleans())
def test_nothing_of_an_answer_leaves_before_it_was_judged(pieces: list[str], bad: bool) -> None:
    """Whatever the pieces, what left is a beginning that some judgement called safe."""
    pieces = [*pieces, "BAD"] if bad else pieces
    classifier = finds("BAD", "S1")
    released, verdict = watched(Guard(policy(every_chars=10), classifier), pieces)
    whole = "".join(pieces)
    judged_safe = [m[-1].content for m in classifier.asked if "BAD" not in m[-1].content]
    assert whole.startswith(released)
    if bad:
        assert verdict.decision == "block"
        assert released in ("", *judged_safe)
    else:
        assert (released, verdict) == (whole, Verdict())


def test_a_long_answer_streams_while_it_is_judged() -> None:
    async def run() -> tuple[int, int]:
        guard = Guard(policy(every_chars=20), FakeClassifier(lambda _: SAFE))
        watch = guard.output_filter(said("Hello"))
        lengths = []
        for _ in range(50):
            lengths.append(len(watch.push("0123456789")))
            await asyncio.sleep(0.001)
        return sum(lengths), sum(length > 0 for length in lengths)

    n_released, n_releases = asyncio.run(run())
    assert n_released >= 400
    assert n_releases > 10


def test_a_caller_without_an_event_loop_gets_everything_at_the_end() -> None:
    guard = Guard(policy(every_chars=1), finds("bad", "S1"))
    watch = guard.output_filter(said("Hello"))
    assert watch.push("some text") == ""
    asyncio.run(watch.settled())
    assert watch.flush() == "some text"


def test_secrets_are_taken_out_of_prompts_and_answers() -> None:
    pytest.importorskip("datafog")
    finder = Finder()
    key = "ghp_" + "a1B2" * 9
    guard = Guard(policy(secrets="redact", personal={"input": "block"}), finder=finder)
    assert isinstance(guard, Cleaner)
    assert isinstance(guard.output_filter(said("x")), SlowFilter)
    assert guard.clean(f"my key {key}") == "my key [GITHUB_TOKEN]"
    assert admit(guard, said("my key [GITHUB_TOKEN]")) == Verdict()
    assert admit(guard, said("jane@example.com")) == Verdict("block", "found EMAIL")
    # What should have been taken out came in another way: as token ids.
    assert admit(guard, said(key)).decision == "block"
    assert watched(guard, ["the key is ", key[:7], key[7:], " today"])[0] == (
        "the key is [GITHUB_TOKEN] today"
    )
    blocking = Guard(policy(secrets="block"), finds("bad", "S1"), finder=finder)
    released, verdict = watched(blocking, ["the key is ", key, " today"])
    assert key[:8] not in released
    assert verdict.decision == "block"
