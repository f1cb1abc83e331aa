import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from fastapi import FastAPI
from serving_helpers import Running, Serve, router, slow_down, wait_until
from typer.testing import CliRunner

from puna.cli.main import app as cli
from puna.core.errors import UsageError
from puna.formats import save_model
from puna.inference import Engine
from puna.model import Llama
from puna.serving import Hub, ServeConfig, create_app
from puna.serving.lifecycle import listen
from puna.tokenizer import Tokenizer

pytestmark = pytest.mark.clock
ASK = {"prompt": [1, 2, 3]}


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine()


@pytest.fixture
def slow_app(engine: Engine) -> Iterator[FastAPI]:
    """An application whose engine needs 20 ms a token more."""
    slow_down(engine, 0.02)
    hub = Hub({"tiny": engine})
    hub.start()
    app = create_app(hub, ServeConfig(send_seconds=0.5, log_requests=False))
    app.include_router(router)
    yield app
    hub.close()


@pytest.fixture
def slow(slow_app: FastAPI, serve: Serve) -> Iterator[Running]:
    with serve(slow_app, drain_seconds=10) as running:
        yield running


def open_request(port: int, **fields: Any) -> socket.socket:
    """Send a request and return the connection, with nothing read."""
    body = json.dumps(ASK | fields).encode()
    head = f"POST /test/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    return connection


def status(url: str) -> int:
    return httpx.get(url).status_code


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_everything_at_once(
    slow: Running, engine: Engine, stream: bool, n: int
) -> None:
    connection = open_request(slow.port, max_tokens=240, stream=stream, n=n)
    wait_until(lambda: engine.stats().running == n)
    connection.close()
    wait_until(lambda: engine.stats().cancelled == n, seconds=1)
    assert engine.idle
    assert engine.stats().pages_used == 0
    figures = httpx.get(f"{slow.url}/stats/data").json()
    assert figures["requests"]["in_hand"] == 0


def test_an_answer_may_take_longer_than_a_piece_may_lie_unread(slow: Running) -> None:
    """The limit is half a second; the answer takes three times as long, read as it comes."""
    began = time.monotonic()
    asked = ASK | {"max_tokens": 70, "stream": True}
    with httpx.stream("POST", f"{slow.url}/test/generate", json=asked, timeout=10) as reply:
        assert reply.status_code == 200
        pieces = list(reply.iter_raw())
    assert time.monotonic() - began > 1.2
    assert len(pieces) > 20


def test_a_client_that_leaves_while_it_waits_in_the_queue_is_forgotten(
    new_engine: Callable[..., Engine], serve: Serve
) -> None:
    engine = new_engine(max_rows=1)
    slow_down(engine, 0.02)
    hub = Hub({"tiny": engine})
    hub.start()
    app = create_app(hub, ServeConfig(log_requests=False))
    app.include_router(router)
    try:
        with serve(app) as running:
            first = open_request(running.port, max_tokens=200)
            wait_until(lambda: engine.stats().running == 1)
            second = open_request(running.port, max_tokens=200)
            wait_until(lambda: engine.stats().waiting == 1)
            second.close()
            wait_until(lambda: engine.stats().waiting == 0, seconds=1)
            assert engine.stats().running == 1
            first.close()
            wait_until(lambda: engine.idle, seconds=1)
    finally:
        hub.close()


def test_a_client_that_leaves_before_its_body_is_complete_leaves_no_trace(slow: Running) -> None:
    with socket.create_connection(("127.0.0.1", slow.port)) as connection:
        connection.sendall(b"POST /test/generate HTTP/1.1\r\nhost: localhost\r\n")
        connection.sendall(b"content-length: 100\r\n\r\n{")
        wait_until(lambda: _in_hand(slow) == 1)
    wait_until(lambda: _in_hand(slow) == 0, seconds=1)


def _in_hand(running: Running) -> int:
    return int(httpx.get(f"{running.url}/stats/data").json()["requests"]["in_hand"])


def test_a_client_that_does_not_read_is_left(serve: Serve, slow_app: FastAPI) -> None:
    """Its socket's buffers fill, then the server's, then its time runs out."""
    endless = b"x" * 65536
    sent = []

    @slow_app.post("/test/endless", response_model=None)
    async def endlessly() -> Any:
        from fastapi.responses import StreamingResponse

        async def pieces() -> Any:
            while True:
                sent.append(len(endless))
                yield endless

        return StreamingResponse(pieces())

    with serve(slow_app) as running, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        connection.sendall(
            b"POST /test/endless HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"
        )
        wait_until(lambda: _in_hand(running) == 1)
        wait_until(lambda: _in_hand(running) == 0, seconds=5)
        assert sum(sent) < 16 * 1024 * 1024, "what the kernel buffers, and no more"
        wait_until(lambda: len(running.server.server_state.connections) == 0, seconds=2)


def test_a_failing_model_answers_500_and_the_next_request_works(
    slow: Running, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    working = engine._runner.hidden

    def failing(*args: Any) -> torch.Tensor:
        raise RuntimeError("secret detail")

    engine._runner.hidden = failing  # type: ignore[method-assign]
    answer = httpx.post(f"{slow.url}/test/generate", json=ASK)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert "RuntimeError: secret detail" in capfd.readouterr().err
    engine._runner.hidden = working  # type: ignore[method-assign]
    assert httpx.post(f"{slow.url}/test/generate", json=ASK).status_code == 200
    assert status(f"{slow.url}/health") == 200


def test_a_model_that_fails_in_mid_stream_ends_the_stream_with_an_error(
    slow: Running, engine: Engine
) -> None:
    working, calls = engine._runner.hidden, 0

    def failing_later(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise RuntimeError("no")
        return working(*args)

    engine._runner.hidden = failing_later  # type: ignore[method-assign]
    answer = httpx.post(f"{slow.url}/test/generate", json=ASK | {"stream": True, "max_tokens": 30})
    lines = answer.text.splitlines()
    assert answer.status_code == 200
    assert len(lines) >= 4
    assert json.loads(lines[-1])["error"]["code"] == "internal_error"


def test_an_endpoint_that_breaks_answers_500_in_one_line_of_the_log(
    slow_app: FastAPI, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    @slow_app.get("/test/broken")
    @slow_app.post("/test/broken")
    async def broken() -> None:
        raise ZeroDivisionError("a secret")

    with serve(slow_app) as running:
        for call in (httpx.get, httpx.post):
            answer = call(f"{running.url}/test/broken")
            assert answer.status_code == 500
            assert "secret" not in answer.text
            error = capfd.readouterr().err
            assert error.count("\n") == 1
            assert "ZeroDivisionError: a secret" in json.loads(error)["error"]


def test_an_engine_that_died_shows_in_health(slow: Running, slow_app: FastAPI) -> None:
    assert (status(f"{slow.url}/health"), status(f"{slow.url}/ready")) == (200, 200)
    slow_app.state.hub.close()
    assert (status(f"{slow.url}/health"), status(f"{slow.url}/ready")) == (503, 503)


def test_a_draining_server_finishes_what_it_accepted_and_takes_nothing_new(
    slow: Running,
) -> None:
    url = f"{slow.url}/test/generate"
    with ThreadPoolExecutor(8) as pool:
        asks = [{"max_tokens": 60, "stream": n % 2 == 0, "n": 1 + n % 3} for n in range(8)]
        accepted = [pool.submit(httpx.post, url, json=ASK | ask, timeout=30) for ask in asks]
        wait_until(lambda: _in_hand(slow) == 8)
        slow.stop()
        wait_until(lambda: status(f"{slow.url}/ready") == 503, seconds=1)
        assert status(f"{slow.url}/health") == 200
        refused = httpx.post(url, json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        for ask, answer in zip(asks, [future.result() for future in accepted], strict=True):
            assert answer.status_code == 200
            if ask["stream"]:
                lines = [json.loads(line) for line in answer.text.splitlines()]
                assert sum(line["ids"] for line in lines) == 60 * int(ask["n"])
            else:
                assert answer.json()["ids"] == [60] * int(ask["n"])
    wait_until(lambda: _refuses(slow.port), seconds=5)
    assert slow.server.complete


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_drain_has_its_limit(slow_app: FastAPI, serve: Serve) -> None:
    with serve(slow_app, drain_seconds=0.3) as running, ThreadPoolExecutor(2) as pool:
        url = f"{running.url}/test/generate"
        whole = pool.submit(httpx.post, url, json=ASK | {"max_tokens": 240})
        streamed = pool.submit(httpx.post, url, json=ASK | {"max_tokens": 240, "stream": True})
        wait_until(lambda: _in_hand(running) == 2)
        running.stop()
        answer = whole.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopped")
        assert '"code": "stopped"' in streamed.result().text.splitlines()[-1]
        wait_until(lambda: _refuses(running.port), seconds=5)
        assert not running.server.complete


def test_an_address_in_use_is_said_before_a_model_is_loaded() -> None:
    with listen(ServeConfig(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}.*--port"):
            listen(ServeConfig(port=port))


@pytest.fixture
def folder(tmp_path: Path, llama: Llama, tokenizer: Tokenizer) -> Path:
    """The tiny model as a folder."""
    save_model(tmp_path / "model", llama, tokenizer)
    return tmp_path / "model"


@contextmanager
def puna_serve(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``puna serve`` as users start it; the process and its address."""
    command = [sys.executable, "-c", "from puna.cli.main import main; main()", "serve"]
    options = ("--no-compile", "--cache-tokens", "8192", "--port", "0", "--no-logs", *options)
    process = subprocess.Popen(
        [*command, f"tiny={folder}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("tiny: http://127.0.0.1:"), process.stderr
        assert "Ctrl-C stops" in line
        yield process, line.split("chat: ")[1].split(" ")[0].rstrip("/")
    finally:
        process.kill()
        process.communicate()


def chat(url: str, tokens: int, n: int = 1) -> httpx.Response:
    ask = {
        "n": n,
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    return httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=60)


def test_an_idle_server_uses_no_cpu_and_sigterm_under_load_loses_nothing(folder: Path) -> None:
    with puna_serve(folder) as (process, url):
        assert chat(url, 5).status_code == 200

        def used(seconds: float) -> float:
            before = psutil.Process(process.pid).cpu_times()
            time.sleep(seconds)
            after = psutil.Process(process.pid).cpu_times()
            return after.user + after.system - before.user - before.system

        # what the shield needs is loaded in the background
        wait_until(lambda: used(0.5) < 0.01, seconds=60)
        assert used(5) < 0.05

        with ThreadPoolExecutor(16) as pool:
            accepted = [pool.submit(chat, url, 200) for _ in range(16)]
            wait_until(
                lambda: httpx.get(f"{url}/stats/data").json()["requests"]["in_hand"] == 16,
                seconds=30,
            )
            process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in accepted]
        assert [a.status_code for a in answers] == [200] * 16
        assert {a.json()["usage"]["completion_tokens"] for a in answers} == {200}
        assert process.wait(timeout=10) == 0


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    with puna_serve(folder) as (process, url):
        lost: list[int] = []

        def ask() -> None:
            try:
                lost.append(chat(url, 200, n=16).status_code)
            except httpx.HTTPError:
                lost.append(0)

        clients = [threading.Thread(target=ask) for _ in range(24)]
        for client in clients:
            client.start()
        wait_until(
            lambda: httpx.get(f"{url}/stats/data").json()["requests"]["in_hand"] == 24, seconds=30
        )
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 1
        assert time.monotonic() - began < 3
        for client in clients:
            client.join()
        assert set(lost) <= {0, 200, 503}
        assert lost.count(200) < 24
        assert process.stderr is not None
        assert "stopped before every accepted request was done" in process.stderr.read()


def test_wrong_use_is_said_before_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "none.json"
    for options, message in (
        (["--host", "0.0.0.0"], "give --keys FILE"),
        (["--adapter-folder", str(tmp_path)], "give --keys FILE"),
        (["--keys", str(keys)], "puna keys add"),
        (["--adapter", "x"], "NAME=FOLDER"),
        (["--adapter", "x=y@z"], "no model is served as 'z'"),
        ([str(folder), str(folder)], "is taken"),
    ):
        found = CliRunner().invoke(cli, ["serve", "tiny=no-such-model", *options])
        assert isinstance(found.exception, UsageError)
        assert message in str(found.exception)
