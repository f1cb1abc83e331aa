import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import Serve, router, slow_down, wait_until

from puna.inference import Engine
from puna.serving import Hub, ServeConfig, create_app
from puna.serving.auth import KeyFile
from puna.serving.limits import Bucket

pytestmark = pytest.mark.clock
ASK = {"prompt": [1, 2, 3]}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), min_size=1, max_size=60),
)
def test_a_bucket_lets_through_its_allowance_and_no_more(
    per_minute: int, events: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    taken, largest = 0, 0
    for pause, amount in events:
        clock.now += pause
        wait_s = bucket.take(amount)
        if wait_s == 0:
            taken += amount
            largest = max(largest, amount - per_minute)
        else:
            assert wait_s <= 60 * (per_minute + largest) / per_minute + 1e-6
            clock.now += wait_s + 1e-6
            assert bucket.take(amount) == 0, "what was promised after the wait is there"
            taken += amount
            largest = max(largest, amount - per_minute)
        # A full bucket at the start, its refill, and what one oversized amount may overdraw.
        assert taken <= per_minute + per_minute * clock.now / 60 + max(largest, 0) + 1e-3


def test_work_in_hand_may_overdraw_and_the_next_waits_for_it() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.take(10) == 0
    bucket.spend(80)
    assert bucket.take(1) == pytest.approx(31)
    clock.now = 31
    assert bucket.take(1) == 0


def test_a_bucket_without_a_limit_is_never_empty() -> None:
    bucket = Bucket(None)
    bucket.spend(10**9)
    assert bucket.take(10**9) == 0
    assert bucket.headers("requests") == []


@pytest.fixture
def keyed(hub: Hub, tmp_path: Path) -> Callable[..., tuple[FastAPI, dict[str, str]]]:
    """An application with one key of these limits, and the header that opens it."""

    def build(**limits: int) -> tuple[FastAPI, dict[str, str]]:
        file, key = KeyFile().add("ada", **limits)  # type: ignore[arg-type]
        file.write(tmp_path / "keys.json")
        config = ServeConfig(keys=tmp_path / "keys.json", log_requests=False)
        app = create_app(hub, config)
        app.include_router(router)
        return app, {"authorization": f"Bearer {key}"}

    return build


def test_a_key_has_so_many_requests_a_minute(
    keyed: Callable[..., tuple[FastAPI, dict[str, str]]], serve: Serve
) -> None:
    app, headers = keyed(requests_per_minute=3)
    with serve(app) as running, httpx.Client(base_url=running.url, headers=headers) as client:
        answers = [client.post("/test/generate", json=ASK) for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        refused = answers[3]
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
        left = [a.headers["x-ratelimit-remaining-requests"] for a in answers]
        assert left == ["2", "1", "0", "0"]
        assert client.get("/stats/data").status_code == 200, "looking is not limited"


def test_a_key_has_so_many_tokens_a_minute_read_and_written(
    keyed: Callable[..., tuple[FastAPI, dict[str, str]]], serve: Serve
) -> None:
    app, headers = keyed(tokens_per_minute=100)
    with serve(app) as running, httpx.Client(base_url=running.url, headers=headers) as client:
        asks = {"prompt": [1] * 20, "max_tokens": 20}
        answers = [client.post("/test/generate", json=asks | {"n": n}) for n in (1, 2, 1)]
        assert [a.status_code for a in answers] == [200, 200, 429]
        assert answers[2].json()["error"]["type"] == "tokens"
        remaining = int(answers[0].headers["x-ratelimit-remaining-tokens"])
        assert remaining == 60


@pytest.fixture
def limited(hub: Hub, serve: Serve) -> Iterator[int]:
    """Port of a server with small limits."""
    config = ServeConfig(max_body_bytes=2048, body_seconds=0.5, log_requests=False)
    app = create_app(hub, config)
    app.include_router(router)
    with serve(app, header_seconds=0.5, max_connections=8) as running:
        yield running.port


def talk(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What the server answers to raw bytes, until it closes or is silent for two seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=4) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(pause)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass
        return answer


HEAD = b"POST /test/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_a_body_that_declares_too_much_is_refused(limited: int) -> None:
    body = b"x" * 3000
    answer = talk(limited, HEAD + b"content-length: 3000\r\n\r\n", body)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer


def test_a_body_without_a_length_is_counted_as_it_comes(limited: int) -> None:
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    answer = talk(limited, HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 3, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(limited: int) -> None:
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    began = time.monotonic()
    answer = talk(limited, HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 200, pause=0.02)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - began < 6


def test_a_client_that_asks_first_is_told_before_it_sends(limited: int) -> None:
    answer = talk(limited, HEAD + b"expect: 100-continue\r\ncontent-length: 3000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_slow_body_times_out(limited: int) -> None:
    answer = talk(limited, HEAD + b"content-length: 100\r\n\r\n", *[b"x"] * 4, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer


def test_slow_headers_time_out(limited: int) -> None:
    answer = talk(limited, b"GET /health HTTP/1.1\r\n", *[b"x: 1\r\n"] * 4, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_second_request_on_a_connection_has_its_own_time_for_headers(limited: int) -> None:
    whole = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = talk(limited, whole, b"GET /health HTTP/1.1\r\n", *[b"x: 1\r\n"] * 4, pause=0.2)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.count(b"HTTP/1.1 408 ") == 1


def test_headers_without_end_are_refused(limited: int) -> None:
    lines = [b"x: " + b"y" * 4096 + b"\r\n"] * 40
    answer = talk(limited, b"GET /health HTTP/1.1\r\n", *lines)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert httpx.get(f"http://127.0.0.1:{limited}/health").status_code == 200


def test_what_is_not_http_is_refused(limited: int) -> None:
    assert talk(limited, b"\x16\x03\x01\x02\x00garbage\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_connections_beyond_the_limit_are_told_so(limited: int) -> None:
    held = [socket.create_connection(("127.0.0.1", limited)) for _ in range(8)]
    try:
        time.sleep(0.1)
        assert talk(limited).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)
    assert httpx.get(f"http://127.0.0.1:{limited}/health").status_code == 200


def test_json_nested_without_end_is_the_clients_mistake(limited: int) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{limited}/test/generate",
        content=b"[" * 2000,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_prompt_longer_than_the_context_is_refused(limited: int) -> None:
    url = f"http://127.0.0.1:{limited}/test/generate"
    answer = httpx.post(url, json={"prompt": [1] * 256})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert httpx.post(url, json={"prompt": []}).json()["error"]["code"] == "empty_prompt"


@pytest.mark.parametrize("fields", [{"max_queue": 2}, {"max_queue_tokens": 60}])
def test_a_full_queue_says_when_to_come_back_and_lets_in_all_choices_or_none(
    new_engine: Callable[..., Engine], serve: Serve, fields: dict[str, int]
) -> None:
    engine = new_engine(max_rows=1, **fields)
    slow_down(engine, 0.02)
    hub = Hub({"tiny": engine})
    hub.start()
    app = create_app(hub, ServeConfig(log_requests=False))
    app.include_router(router)
    try:
        with serve(app) as running:
            url = f"{running.url}/test/generate"
            ask = {"prompt": [1] * 30, "max_tokens": 4, "n": 8}
            answer = httpx.post(url, json=ask)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            wait_until(lambda: engine.idle)
            assert engine.stats().pages_used == 0
            assert httpx.post(url, json=ask | {"n": 1}).status_code == 200
    finally:
        hub.close()


@pytest.fixture
def hasty(new_engine: Callable[..., Engine], serve: Serve) -> Iterator[tuple[str, Engine]]:
    """A server whose answers may take three seconds, over an engine that takes eight."""
    engine = new_engine()
    slow_down(engine, 0.04)
    hub = Hub({"tiny": engine})
    hub.start()
    app = create_app(hub, ServeConfig(request_seconds=3, log_requests=False))
    app.include_router(router)
    with serve(app) as running:
        yield running.url, engine
    hub.close()


def test_an_answer_that_takes_too_long_is_given_up(hasty: tuple[str, Engine]) -> None:
    url, engine = hasty
    answer = httpx.post(f"{url}/test/generate", json=ASK | {"max_tokens": 200})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    wait_until(lambda: engine.idle)
    assert engine.stats().cancelled == 1


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_takes_too_long_ends_with_an_error(hasty: tuple[str, Engine], n: int) -> None:
    url, engine = hasty
    ask = ASK | {"max_tokens": 200, "stream": True, "n": n}
    answer = httpx.post(f"{url}/test/generate", json=ask)
    lines = answer.text.splitlines()
    assert answer.status_code == 200
    assert len(lines) > n + 1
    assert '"code": "timeout"' in lines[-1]
    wait_until(lambda: engine.idle)
    assert engine.stats().cancelled == n
