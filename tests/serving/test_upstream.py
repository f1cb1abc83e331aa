"""A server in front of another, which here is a function that answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from puna.core.errors import UsageError
from puna.safety import OutputFilter, Safeguard, Subject, Verdict
from puna.serving import ServeConfig, create_app
from puna.serving.auth import KeyFile
from puna.serving.upstream import NoModels, Upstream, UpstreamConfig

SECRET = "sk-upstream-secret"
ASK: dict[str, Any] = {"model": "far", "messages": [{"role": "user", "content": "Hello"}]}
Answer = Callable[[httpx.Request], httpx.Response]


class Holding:
    """Holds a character until the next comes, and blocks at the word BAD."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        if "BAD" in text:
            self.verdict = Verdict("block", "a bad word")
            return text.split("BAD")[0]
        self._held = text[-3:]
        return text[:-3]

    def flush(self) -> str:
        return self._held


class Watching:
    """Refuses prompts with "forbidden" and takes "secret" out of them."""

    def __init__(self) -> None:
        self.subjects: list[Subject] = []

    async def admit(self, subject: Subject) -> Verdict:
        self.subjects.append(subject)
        texts = [subject.text, *(m.content for m in subject.messages)]
        bad = any("forbidden" in text for text in texts)
        return Verdict("block", "forbidden") if bad else Verdict()

    def output_filter(self, subject: Subject) -> OutputFilter:
        return Holding()

    def clean(self, text: str) -> str:
        return text.replace("secret", "[SECRET]")


@contextmanager
def proxied(answer: Answer, safeguard: Safeguard | None, **config: Any) -> Iterator[httpx.Client]:
    """A client of the application in front of ``answer``, each request on a loop of its own."""
    settings = UpstreamConfig.parse({"url": "http://far:1/v1"} | config, where="test")

    class Client:
        def request(self, method: str, path: str, **options: Any) -> httpx.Response:
            async def ask() -> httpx.Response:
                upstream = Upstream(settings, httpx.MockTransport(answer))
                serve = ServeConfig.parse(options.pop("serve", {}), where="test")
                app = create_app(NoModels(), serve, safeguard=safeguard, upstream=upstream)
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://localhost"
                ) as client:
                    found = await client.request(method, path, **options)
                    metrics = await client.get("/metrics", headers=options.get("headers"))
                    found.extensions["metrics"] = metrics.text
                await upstream.close()
                return found

            return asyncio.run(ask())

    yield Client()  # type: ignore[misc]


def chat_answer(text: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text} | more
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [1]}}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def streamed(pieces: list[dict[str, Any]], finish: str | None = "stop") -> httpx.Response:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n".encode()

    async def body() -> AsyncIterator[bytes]:
        yield b": comment\n\n"
        data = b"".join(chunk(piece) for piece in pieces)
        for start in range(0, len(data), 7):  # events come in pieces too
            yield data[start : start + 7]
        if finish is not None:
            yield chunk({}, finish)
        yield b"data: [DONE]\n\n"

    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body())


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(answer: httpx.Response) -> str:
    deltas = [c["delta"] for e in events(answer) for c in e["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def finish_of(answer: httpx.Response) -> str | None:
    return [c["finish_reason"] for e in events(answer) for c in e["choices"]][-1]


def test_without_a_safeguard_everything_passes_as_it_is() -> None:
    seen: list[dict[str, Any]] = []

    def far(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=chat_answer("Hi", extra={"a": 1}))

    body = ASK | {"future_field": [1, 2], "messages": [{"role": "user", "content": [{"x": 1}]}]}
    with proxied(far, None) as client:
        answer = client.request("POST", "/v1/chat/completions", json=body)
    assert answer.json() == chat_answer("Hi", extra={"a": 1})
    assert seen == [body]


def test_the_key_comes_from_the_environment_and_the_clients_own_stays_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setenv("PUNA_UPSTREAM_KEY", SECRET)
    seen: list[httpx.Headers] = []

    def far(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json=chat_answer("Hi"))

    keys, key = KeyFile().add("me", tokens_per_minute=10)
    keys.write(tmp_path / "keys.json")
    options = {
        "headers": {"authorization": f"Bearer {key}"},
        "serve": {"keys": tmp_path / "keys.json"},
    }
    with proxied(far, Watching()) as client:
        answer = client.request("POST", "/v1/chat/completions", json=ASK, **options)
        assert answer.json()["choices"][0]["message"]["content"] == "Hi"
        assert answer.headers["x-ratelimit-remaining-tokens"] in ("1", "2"), "usage is charged"
        denied = client.request("POST", "/v1/chat/completions", json=ASK, serve=options["serve"])
    assert denied.status_code == 401
    assert [headers["authorization"] for headers in seen] == [f"Bearer {SECRET}"]
    logs = capfd.readouterr()
    assert SECRET not in logs.err + logs.out
    assert '"generated_tokens":5' in logs.err


def test_a_stream_that_counts_no_tokens_is_charged_by_its_chunks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with proxied(lambda _: streamed([{"content": "ab"}] * 6), None) as client:
        client.request("POST", "/v1/chat/completions", json=ASK | {"stream": True})
    assert '"generated_tokens":7' in capfd.readouterr().err, "six pieces and the end"


def test_a_prompt_is_cleaned_and_admitted_before_it_is_sent() -> None:
    seen: list[dict[str, Any]] = []

    def far(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=chat_answer("Hi"))

    parts = [{"type": "text", "text": "my secret"}]
    with proxied(far, Watching()) as client:
        body = ASK | {"messages": [{"role": "user", "content": parts, "name": "me"}]}
        client.request("POST", "/v1/chat/completions", json=body)
        assert seen[0]["messages"] == [{"role": "user", "content": "my [SECRET]", "name": "me"}]
        for stream in (True, False):
            refused = client.request(
                "POST",
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "forbidden"}], "stream": stream},
            )
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "content_blocked"
        refused = client.request("POST", "/v1/completions", json={"prompt": ["a", "forbidden"]})
        assert refused.status_code == 400
        for body in (
            {"prompt": [1, 2]},
            {"prompt": "a", "echo": True},
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            {"messages": "text"},
        ):
            path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
            assert client.request("POST", path, json=body).status_code == 400
    assert len(seen) == 1
    assert (
        'puna_guard_verdicts_total{decision="block",stage="input"} 1.0'
        in refused.extensions["metrics"]
    )


@pytest.mark.parametrize("n_pieces", [1, 3, 40])
def test_a_bad_word_never_leaves_a_stream_and_good_text_is_unchanged(n_pieces: int) -> None:
    for text, good in (("One two three four five", True), ("One two three BAD four", False)):
        step = max(1, len(text) // n_pieces)
        pieces = [{"content": text[i : i + step]} for i in range(0, len(text), step)]

        def far(_: httpx.Request, pieces: Any = pieces) -> httpx.Response:
            return streamed([{"role": "assistant"}, *pieces])

        with proxied(far, Watching()) as client:
            answer = client.request("POST", "/v1/chat/completions", json=ASK | {"stream": True})
        assert text_of(answer) == (text if good else "One two three ")
        assert finish_of(answer) == ("stop" if good else "content_filter")
        if not good:
            last = events(answer)[-1]["choices"][0]
            assert last["puna"]["guard"] == {"decision": "block", "reason": "a bad word"}
            metrics = answer.extensions["metrics"]
            assert 'puna_guard_verdicts_total{decision="block",stage="output"} 1.0' in metrics


def test_a_bad_word_never_leaves_a_whole_answer_in_any_field() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "BAD"}'}}
    for more in (
        {"content": "Well, BAD"},
        {"content": "ok", "tool_calls": [call]},
        {"content": "ok", "reasoning_content": "I think BAD"},
        {"content": "ok", "unknown": "BAD"},
    ):

        def far(_: httpx.Request, more: Any = more) -> httpx.Response:
            return httpx.Response(200, json=chat_answer(**({"text": ""} | more)))

        with proxied(far, Watching()) as client:
            answer = client.request("POST", "/v1/chat/completions", json=ASK)
        assert answer.status_code == 200
        assert "BAD" not in answer.text
        choice = answer.json()["choices"][0]
        assert choice["logprobs"] is None
        assert choice["finish_reason"] == ("stop" if "unknown" in more else "content_filter")


def test_calls_of_tools_pass_whole() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 12345}'}}
    pieces = [
        {"tool_calls": [{"index": 0, **call, "function": {"name": "f", "arguments": ""}}]},
        *({"tool_calls": [{"index": 0, "function": {"arguments": c}}]} for c in '{"a": 12345}'),
    ]

    def far(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content).get("stream"):
            return streamed(pieces, "tool_calls")
        return httpx.Response(200, json=chat_answer("", tool_calls=[call]))

    with proxied(far, Watching()) as client:
        whole = client.request("POST", "/v1/chat/completions", json=ASK)
        assert whole.json()["choices"][0]["message"]["tool_calls"] == [call]
        answer = client.request("POST", "/v1/chat/completions", json=ASK | {"stream": True})
    made = [
        t for e in events(answer) for c in e["choices"] for t in c["delta"].get("tool_calls", [])
    ]
    assert made[0]["id"] == "c"
    assert "".join(t["function"]["arguments"] for t in made) == '{"a": 12345}'
    assert finish_of(answer) == "tool_calls"


def test_completions_pass_with_several_prompts_and_an_end_nobody_sent() -> None:
    def far(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if body.get("stream"):
            choice = {"index": 0, "text": "some text", "finish_reason": None}
            return httpx.Response(200, content=f"data: {json.dumps({'choices': [choice]})}\n\n")
        texts = ["fine text", "a BAD text"]
        choices = [{"index": n, "text": t, "finish_reason": "length"} for n, t in enumerate(texts)]
        return httpx.Response(200, json={"object": "text_completion", "choices": choices})

    with proxied(far, Watching()) as client:
        found = client.request("POST", "/v1/completions", json={"prompt": ["a", "b"]}).json()
        assert [(c["text"], c["finish_reason"]) for c in found["choices"]] == [
            ("fine text", "length"), ("a ", "content_filter")]  # fmt: skip
        answer = client.request("POST", "/v1/completions", json={"prompt": "a", "stream": True})
    assert "".join(c["text"] for e in events(answer) for c in e["choices"]) == "some text"
    assert finish_of(answer) == "stop"


def refuse(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no")


def silent(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("late")


def elsewhere(_: httpx.Request) -> httpx.Response:
    return httpx.Response(307, headers={"location": "http://other"}, text="{}")


def busy(_: httpx.Request) -> httpx.Response:
    return httpx.Response(429, headers={"retry-after": "7"}, json={"error": {"code": "busy"}})


@pytest.mark.parametrize(
    ("far", "status", "code"),
    [
        (refuse, 502, "bad_upstream"),
        (silent, 504, "timeout"),
        (lambda _: httpx.Response(200, text="<html>"), 502, "bad_upstream"),
        (lambda _: httpx.Response(401, json={"error": {"message": SECRET}}), 502, "bad_upstream"),
        (lambda _: httpx.Response(200, text="x" * 5000), 502, "bad_upstream"),
        (elsewhere, 502, "bad_upstream"),
        (busy, 429, "busy"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_wrong_with_the_other_server_is_said(
    far: Answer, status: int, code: str, stream: bool
) -> None:
    with proxied(far, Watching(), max_answer_bytes=4096) as client:
        answer = client.request("POST", "/v1/chat/completions", json=ASK | {"stream": stream})
    if answer.status_code == 200:  # a stream has begun
        assert stream
        assert '"code":"bad_upstream"' in answer.text or text_of(answer) == ""
        return
    assert answer.status_code == status
    assert SECRET not in answer.text
    assert answer.json()["error"]["code"] == code
    if status == 429:
        assert answer.headers["retry-after"] == "7"


def test_models_are_those_of_the_other_server() -> None:
    listed = {"object": "list", "data": [{"id": "far", "object": "model"}]}
    with proxied(lambda _: httpx.Response(200, json=listed), None) as client:
        assert client.request("GET", "/v1/models").json() == listed
        assert client.request("GET", "/ready").json() == {"status": "ready"}
        assert client.request("POST", "/v1/responses", json={}).status_code == 404


@pytest.mark.parametrize("url", ["far:8000", "ftp://far/v1", "http://", "http://me:pass@far/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--upstream"):
        Upstream(UpstreamConfig.parse({"url": url}, where="--upstream"))
