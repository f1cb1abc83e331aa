import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import Serve, router, wait_until

from puna.inference import Delta, Engine, TokenLogprob
from puna.safety import OutputFilter, Subject, Verdict
from puna.serving import Hub, ServeConfig, create_app
from puna.serving.guard import Filtered

ASK = {"prompt": [1, 2, 3], "max_tokens": 40}


class WordFilter:
    """Blocks an answer at a word, and holds back what may be its beginning."""

    def __init__(self, word: str) -> None:
        self.verdict = Verdict()
        self._word = word
        self._held = ""

    def push(self, text: str) -> str:
        self._held += text
        if self._word in self._held:
            self.verdict = Verdict("block", f"the word {self._word!r}")
            return self._held.split(self._word)[0]
        keep = next(
            n for n in range(len(self._word) - 1, -1, -1) if self._held.endswith(self._word[:n])
        )
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return released

    def flush(self) -> str:
        return self._held


class FakeGuard:
    """Says what it is told to say."""

    def __init__(self, verdict: Verdict | None = None, word: str = "\0") -> None:
        self.verdict = verdict or Verdict()
        self.word = word
        self.subjects: list[Subject] = []

    async def admit(self, subject: Subject) -> Verdict:
        self.subjects.append(subject)
        return self.verdict

    def output_filter(self, subject: Subject) -> OutputFilter:
        return WordFilter(self.word)


Guarded = Callable[[FakeGuard], str]


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine()


@pytest.fixture
def guarded(engine: Engine, serve: Serve) -> Iterator[Guarded]:
    """Serves the tiny model under a guard; its address."""
    from contextlib import ExitStack

    hub = Hub({"tiny": engine})
    hub.start()
    with ExitStack() as stack:

        def start(guard: FakeGuard) -> str:
            app = create_app(hub, ServeConfig(log_requests=False), safeguard=guard)
            app.include_router(router)
            return stack.enter_context(serve(app)).url

        yield start
    hub.close()


def answer(url: str, **fields: Any) -> dict[str, Any]:
    found = httpx.post(f"{url}/test/generate", json=ASK | fields)
    assert found.status_code == 200, found.text
    result: dict[str, Any] = found.json()
    return result


def verdicts(url: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = httpx.get(f"{url}/stats/data").json()["guard"]
    return counts


def test_a_blocked_prompt_never_reaches_the_engine(guarded: Guarded, engine: Engine) -> None:
    url = guarded(FakeGuard(Verdict("block", "about bombs")))
    refused = httpx.post(f"{url}/test/generate", json=ASK | {"n": 3})
    error = refused.json()["error"]
    assert refused.status_code == 400
    assert (error["type"], error["code"]) == ("safety_error", "content_blocked")
    assert "about bombs" in error["message"]
    assert engine.stats().prompt_tokens == 0
    assert verdicts(url)["input"] == {"allow": 0, "warn": 0, "block": 1}


def test_a_warning_is_reported_beside_the_answer(guarded: Guarded) -> None:
    url = guarded(FakeGuard(Verdict("warn", "hm")))
    assert answer(url)["verdicts"] == [{"decision": "warn", "reason": "hm"}]
    counts = verdicts(url)
    assert (counts["input"]["warn"], counts["output"]["allow"]) == (1, 1)


def test_the_guard_sees_the_prompt_as_the_model_reads_it(guarded: Guarded, engine: Engine) -> None:
    guard = FakeGuard()
    url = guarded(guard)
    ids = engine.tokenizer.encode("The llama grazes")
    answer(url, prompt=ids)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    httpx.post(f"{url}/v1/chat/completions", json=asked)
    assert guard.subjects[0].text == "The llama grazes"
    assert "Hello" in guard.subjects[1].text
    assert guard.subjects[1].model == "tiny"


def test_equal_prompts_of_one_request_are_admitted_once(guarded: Guarded) -> None:
    guard = FakeGuard()
    answer(guarded(guard), n=4)
    assert len(guard.subjects) == 1


def test_a_guard_that_allows_changes_no_text(guarded: Guarded, engine: Engine) -> None:
    plain = answer(guarded(FakeGuard()))["texts"]
    assert plain == answer(guarded(FakeGuard(word="never-written")))["texts"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_answer_ends_before_the_word_and_frees_the_engine(
    guarded: Guarded, engine: Engine, stream: bool
) -> None:
    (text,) = answer(guarded(FakeGuard()))["texts"]
    word = text[10:14]
    url = guarded(FakeGuard(word=word))
    found = httpx.post(f"{url}/test/generate", json=ASK | {"stream": stream})
    if stream:
        lines = [json.loads(line) for line in found.text.splitlines()]
        written, finish = "".join(line["text"] for line in lines), lines[-1]["finish"]
    else:
        written, finish = found.json()["texts"][0], found.json()["finishes"][0]
        assert found.json()["verdicts"][0]["decision"] == "block"
    assert (written, finish) == (text.split(word)[0], "content_filter")
    wait_until(lambda: engine.idle)
    assert engine.stats().cancelled == 1
    assert verdicts(url)["output"]["block"] == 1


def test_one_blocked_choice_leaves_the_others_alone(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = answer(guarded(FakeGuard()))["texts"]
    guard = FakeGuard()
    words = iter([text[10:14], "never-written", text[10:14], "never-written"])
    monkeypatch.setattr(guard, "output_filter", lambda subject: WordFilter(next(words)))
    found = answer(guarded(guard), n=4)
    assert found["finishes"] == ["content_filter", "length"] * 2
    assert found["texts"][1] == found["texts"][3] == text
    assert found["texts"][0] == found["texts"][2] != text


def test_a_guard_that_fails_lets_nothing_through(
    guarded: Guarded, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = FakeGuard()

    async def failing(subject: Subject) -> Verdict:
        raise ConnectionError

    monkeypatch.setattr(guard, "admit", failing)
    found = httpx.post(f"{guarded(guard)}/test/generate", json=ASK)
    assert found.status_code == 500
    assert engine.stats().prompt_tokens == 0


TOKENS = st.lists(st.text("abx", min_size=1, max_size=4), min_size=1, max_size=30)


@given(TOKENS, st.booleans())
def test_ids_and_log_probabilities_never_overtake_their_text(pieces: list[str], ends: bool) -> None:
    """Each token's id is its number: those released must all belong to released text."""
    filtered = Filtered(WordFilter("abba"))
    text, ids, logprobs, finish = "", [], [], None
    for n, piece in enumerate(pieces):
        last = n == len(pieces) - 1 and ends
        entry = TokenLogprob(n, -1.0)
        pushed = Delta((n,), piece, (entry,), finish="length" if last else None)
        delta = asyncio.run(filtered.push(pushed))
        text += delta.text
        ids += delta.ids
        logprobs += [entry.id for entry in delta.logprobs]
        assert len("".join(pieces[: len(ids)])) <= len(text)
        finish = delta.finish
        if finish is not None:
            break
    whole = "".join(pieces)
    assert ids == logprobs == list(range(len(ids)))
    if "abba" in whole:
        assert text == whole.split("abba")[0]
        assert finish == "content_filter"
    elif ends:
        assert (text, finish) == (whole, "length")
        assert len(ids) == len(pieces), "what was held leaves with the end"
