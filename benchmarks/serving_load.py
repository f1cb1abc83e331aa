"""Hundreds of clients at once, well-behaved and not, and SIGTERM in the middle of it.

    python benchmarks/serving_load.py                     # 500 clients for 2 minutes, a tiny model
    python benchmarks/serving_load.py smollm2 --clients 100 --seconds 60

Starts ``puna serve`` and lets clients ask it again and again. Most ask well and must get the very
text that the server gave each prompt when it was alone. Beside them, all the time: readers that
hardly read, clients that leave, bodies that are too large or are not JSON, wrong keys, headers that
never end. At the end the server gets SIGTERM under full load and must lose nothing it accepted.
Prints one JSON object; ``faults`` is empty when all went well.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from puna.formats import save_model
from puna.model import Llama, LlamaConfig
from puna.serving.auth import KeyFile
from puna.tokenizer import Tokenizer

ANSWER = 24  # tokens
N_PROMPTS = 40
ACCEPTED_S = 1.0  # a request sent this long before SIGTERM has surely been accepted
END_S = 60.0  # after SIGTERM everything must be over by then
TEXT = "The llama grazes on the high grassland, 4,000 metres above the sea. "


@dataclass
class Run:
    """What all clients share."""

    port: int
    key: str
    right: dict[tuple[int, ...], str] = field(default_factory=dict)
    """The text that belongs to each prompt."""
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    stopped_at: float = float("inf")
    """When SIGTERM was sent."""

    def check(self, kind: str, sent: float, status: int, right: bool) -> None:
        """Note an outcome; anything but the one that belongs to this kind is a fault."""
        self.outcomes[f"{kind} {status or 'cut off'}"] += 1
        late = sent > self.stopped_at - ACCEPTED_S
        if not right and not (late and status in (0, 503)):
            self.faults[f"{kind}: {status or 'no whole answer'}"] += 1


class CutOff(Exception):
    """The connection ended before a whole answer came."""


async def connect(run: Run, receive_buffer: int | None = None) -> Any:
    """A new connection: reader and writer."""
    made = socket.socket()
    made.setblocking(False)
    if receive_buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", run.port))
    return await asyncio.open_connection(sock=made)


def head(run: Run, length: int | None, *, key: str | None = None) -> bytes:
    """Request line and headers of a completion; without ``length`` its body comes in chunks."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{size}\r\n"
        f"authorization: Bearer {key or run.key}\r\ncontent-type: application/json\r\n\r\n"
    ).encode()


def body_of(prompt: tuple[int, ...], **fields: Any) -> bytes:
    """A request for a greedy completion of ``prompt``."""
    wanted = {"model": "served", "prompt": prompt, "max_tokens": ANSWER, "temperature": 0}
    return json.dumps(wanted | {"ignore_eos": True} | fields).encode()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of a whole answer; raises `CutOff` for a part of one."""
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        if "content-length" in headers:
            return status, await reader.readexactly(int(headers["content-length"]))
        body = b""
        while size := int(await reader.readline() or b"x", 16):
            body += (await reader.readexactly(size + 2))[:-2]
        return status, body
    except (asyncio.IncompleteReadError, ConnectionError, ValueError, IndexError) as error:
        raise CutOff from error


async def exchange(run: Run, *pieces: bytes) -> tuple[int, bytes]:
    """Send ``pieces`` on a new connection and read the answer; status 0 when there is none."""
    try:
        reader, writer = await connect(run)
    except OSError:
        return 0, b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await answer_of(reader)
    except (CutOff, ConnectionError):
        return 0, b""
    finally:
        writer.close()


async def ask_well(run: Run, *, stream: bool) -> None:
    """Ask and compare the whole answer with the right one."""
    prompt = random.choice(list(run.right))
    body = body_of(prompt, stream=stream)
    sent = time.monotonic()
    status, answer = await exchange(run, head(run, len(body)) + body)
    kind = "streamed" if stream else "whole"
    run.check(kind, sent, status, status == 200 and text_of(answer, stream) == run.right[prompt])
    if status == 200:
        run.seconds.append(time.monotonic() - sent)


def text_of(answer: bytes, stream: bool) -> str | None:
    """The text of a completion; None when a stream lacks its end."""
    if not stream:
        return str(json.loads(answer)["choices"][0]["text"])
    events = [line[6:] for line in answer.decode().splitlines() if line.startswith("data: ")]
    if not events or events.pop() != "[DONE]":
        return None
    choices = [choice for event in events for choice in json.loads(event).get("choices", ())]
    return "".join(choice["text"] for choice in choices)


async def read_slowly(run: Run) -> None:
    """Ask for much, read little of it, go."""
    body = body_of(random.choice(list(run.right)), stream=True, n=4, max_tokens=100)
    try:
        reader, writer = await connect(run, receive_buffer=2048)
        writer.write(head(run, len(body)) + body)
        for _ in range(random.randrange(40)):
            await reader.read(64)
            await asyncio.sleep(0.1)
        writer.transport.abort()
    except OSError:
        pass
    run.outcomes["slow reader left"] += 1


async def leave(run: Run) -> None:
    """Ask and go, at any moment."""
    body = body_of(random.choice(list(run.right)), stream=random.random() < 0.5, max_tokens=100)
    request = head(run, len(body)) + body
    if random.random() < 0.3:
        request = request[: random.randrange(len(request))]
    try:
        _, writer = await connect(run)
        writer.write(request)
        await asyncio.sleep(random.random())
        writer.transport.abort()
    except OSError:
        pass
    run.outcomes["client left"] += 1


async def send_too_much(run: Run) -> None:
    """A body of 2 MB where 1 MB is allowed, with and without a length."""
    part = b" " * 65_536
    pieces = [part] * 32
    sent = time.monotonic()
    if random.random() < 0.5:
        status, _ = await exchange(run, head(run, 32 * len(part)), *pieces)
    else:
        chunks = [b"10000\r\n" + part + b"\r\n" for part in pieces]
        status, _ = await exchange(run, head(run, None), *chunks, b"0\r\n\r\n")
    run.check("too large", sent, status, status == 413)


async def send_nonsense(run: Run) -> None:
    """What is not JSON, or not what a completion is asked with."""
    bodies = (b"{", b"[" * 5_000, b"\xff\xfe", b"null", b'{"model": "served", "prompt": {}}', b"")
    body = random.choice(bodies)
    sent = time.monotonic()
    status, _ = await exchange(run, head(run, len(body)) + body)
    run.check("nonsense", sent, status, status == 400)


async def send_wrong_key(run: Run) -> None:
    """A key that nobody was given."""
    body = body_of(random.choice(list(run.right)))
    sent = time.monotonic()
    status, _ = await exchange(run, head(run, len(body), key="pk-wrong") + body)
    run.check("wrong key", sent, status, status == 401)


async def never_end_headers(run: Run) -> None:
    """Header after header; the server has the last word, or closes."""
    sent = time.monotonic()
    lines = [b"x: " + b"y" * 8_000 + b"\r\n"] * 20
    status, _ = await exchange(run, b"GET /health HTTP/1.1\r\n", *lines)
    run.check("endless headers", sent, status, status in (0, 431))


async def ask_whole(run: Run) -> None:
    """`ask_well`, in one piece."""
    await ask_well(run, stream=False)


async def ask_streamed(run: Run) -> None:
    """`ask_well`, streamed."""
    await ask_well(run, stream=True)


KINDS: dict[Callable[[Run], Awaitable[None]], int] = {
    ask_whole: 38,
    ask_streamed: 38,
    read_slowly: 6,
    leave: 6,
    send_too_much: 3,
    send_nonsense: 3,
    send_wrong_key: 3,
    never_end_headers: 3,
}
"""Kinds of clients, and how many of a hundred."""


async def client(run: Run, behave: Callable[[Run], Awaitable[None]]) -> None:
    """Behave in one way until the server is stopped."""
    well = behave in (ask_whole, ask_streamed)
    while time.monotonic() < run.stopped_at:
        await behave(run)
        if not well:
            await asyncio.sleep(random.random())


async def crowd(run: Run, server: subprocess.Popen[str], n: int, seconds: float) -> dict[str, Any]:
    """Let everybody ask, stop the server under load, and see what became of it."""
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    clients = [asyncio.create_task(client(run, kinds[i * 100 // n % 100])) for i in range(n)]
    process = psutil.Process(server.pid)
    memory: list[float] = []
    files: list[int] = []
    began = time.monotonic()
    while time.monotonic() - began < seconds and server.poll() is None:
        await asyncio.sleep(0.5)
        memory.append(process.memory_info().rss / 2**20)
        files.append(process.num_fds())
    if server.poll() is not None:
        run.faults["the server died"] += 1
    answers = len(run.seconds)
    run.stopped_at = time.monotonic()
    server.send_signal(signal.SIGTERM)
    _, stuck = await asyncio.wait(clients, timeout=END_S)
    for task in stuck:
        task.cancel()
    if stuck:
        run.faults["stuck clients"] += len(stuck)
    failed = [task.exception() for task in clients if task.done() and not task.cancelled()]
    run.faults.update(f"client: {error!r}" for error in failed if error is not None)
    exit_code = server.wait(timeout=END_S)
    if exit_code:
        run.faults[f"exit code {exit_code}"] += 1
    middle = memory[len(memory) // 2 :]
    return {
        "clients": n,
        "seconds": seconds,
        "right_answers": len(run.seconds),
        "right_answers_per_s": round(answers / seconds, 1),
        "tokens_per_s": round(answers * ANSWER / seconds, 1),
        "answer_s_p50": round(statistics.median(run.seconds), 3),
        "answer_s_p95": round(statistics.quantiles(run.seconds, n=20)[-1], 3),
        "memory_mb_first": round(memory[0]),
        "memory_mb_middle": round(middle[0]),
        "memory_mb_last": round(memory[-1]),
        "memory_mb_most": round(max(memory)),
        "open_files_most": max(files),
        "seconds_to_end": round(time.monotonic() - run.stopped_at, 2),
        "outcomes": dict(sorted(run.outcomes.items())),
        "faults": dict(run.faults),
    }


def tiny_model(folder: Path) -> Path:
    """A random model of 60 thousand parameters: the server is what is tried here."""
    tokenizer = Tokenizer.train([TEXT] * 8, vocab_size=320, n_special=32)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=64,
        context=256,
    )
    model = Llama(config)
    model.init_weights(seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # probabilities that differ, so that the best token is clear
    save_model(folder, model, tokenizer)
    return folder


def start(model: str, folder: Path) -> tuple[subprocess.Popen[str], Run]:
    """Start ``puna serve`` with a key; returns when it answers."""
    keys, key = KeyFile().add("load")
    keys.write(folder / "keys.json")
    command = [sys.executable, "-c", "from puna.cli.main import main; main()", "serve"]
    options = {
        "--weights": "fp32",
        "--keys": str(folder / "keys.json"),
        "--port": "0",
        "--cache-tokens": "32768",
        "--max-body-mb": "1",
        "--drain-seconds": str(END_S),
    }
    flat = [part for pair in options.items() for part in pair]
    server = subprocess.Popen(
        [*command, f"served={model}", "--no-compile", *flat],
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        sys.exit((folder / "log").read_text())
    return server, Run(int(line.split("127.0.0.1:")[1].split("/")[0]), key)


async def learn(run: Run) -> None:
    """Ask each prompt alone: this is the right text."""
    for n in range(N_PROMPTS):
        prompt = tuple((7 * n + 3 * i) % 250 + 1 for i in range(4 + n % 29))
        body = body_of(prompt)
        status, answer = await exchange(run, head(run, len(body)) + body)
        assert status == 200, answer
        run.right[prompt] = str(text_of(answer, stream=False))


async def measure(model: str | None, n: int, seconds: float) -> dict[str, Any]:
    """The whole run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, run = start(model or str(tiny_model(folder / "model")), folder)
        try:
            await learn(run)
            return await crowd(run, server, n, seconds)
        finally:
            server.kill()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="default: a tiny random one")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    random.seed(0)
    report = uvloop.run(measure(options.model, options.clients, options.seconds))
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
