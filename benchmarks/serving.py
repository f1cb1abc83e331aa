"""Many clients at once beside llama.cpp's server and transformers' continuous batching.

    python benchmarks/serving.py                     # everything, medians of 5: over half an hour
    python benchmarks/serving.py --only http --clients 16 --quick

SmolLM2-135M on 2 cores. Over HTTP: prompts of 64 tokens, none like another, answers of exactly 64,
streamed; each client asks again as soon as its answer is complete. The clients are a light process
of their own on the same cores (its share is printed). In the same rounds: Puna's engine without a
server, and transformers without one, with all prompts at hand, which favours it. Prefix: the
engine with and without its prefix cache, prompts of 512 shared tokens and 64 of their own. Idle:
processor time of a server that has nothing to do.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import peers
import psutil
import torch
from harness import (
    FIXED_THREADS,
    THREADS,
    Claim,
    Side,
    all_cores,
    answer_questions,
    finish,
    machine,
    print_table,
    rounds,
)

from puna.core.devices import fast_dtype
from puna.core.errors import PunaError
from puna.formats import load_tokenizer
from puna.formats.resolve import smollm2_folder
from puna.inference import EngineConfig, Request, Sampling, load_engine

PROMPT = ANSWER = 64
SHARED = 512
ROUNDS = {16: 8, 64: 3}  # answers each client waits for, so that a measure takes 15 to 30 s
IDLE_S = 10
STRIDE = 61  # between the beginnings of prompts; far more of them than any run needs
PEER_ROUNDS = 2  # transformers is slow and, without clients to wait for, steady

# --- prompts


class Prompts:
    """Windows of Python's language reference, each another; the shared prefix stands first."""

    def __init__(self, shared: int = 0) -> None:
        text = "\n\n".join(body for _, body in sorted(topics.items()))
        ids = load_tokenizer("smollm2").encode(text)
        self._prefix, self._ids = ids[:shared], ids[shared:]
        self._number = itertools.count()

    def take(self, count: int) -> list[list[int]]:
        """The next prompts."""
        most = len(self._ids) - PROMPT
        starts = [next(self._number) * STRIDE % most for _ in range(count)]
        return [[*self._prefix, *self._ids[start : start + PROMPT]] for start in starts]


# --- sides without a server, each in a process of its own


def engine_side(weights: str, prefix_cache: str) -> Callable[..., dict[str, float]]:
    config = {
        "weights": weights,
        "compile": True,
        "prefix_cache": prefix_cache == "on",
        "cache_tokens": max(ROUNDS) * (SHARED + PROMPT + ANSWER + 64),
    }
    engine = load_engine("smollm2", EngineConfig.parse(config, where="engine"))
    sampling = Sampling(max_new_tokens=ANSWER, ignore_stop_tokens=True)

    def answer(clients: int, prompts: list[list[int]]) -> dict[str, float]:
        started = time.perf_counter()
        submitted: dict[int, float] = {}
        first: dict[int, float] = {}
        waiting = deque(prompts)
        written = 0

        def submit() -> None:
            if waiting:
                handle = engine.submit(Request(waiting.popleft(), sampling))
                submitted[handle] = time.perf_counter()

        for _ in range(clients):
            submit()
        while not engine.idle:
            for handle, delta in engine.step():
                written += len(delta.ids)
                first.setdefault(handle, time.perf_counter() - submitted[handle])
                if delta.finish is not None:
                    submit()
        seconds = time.perf_counter() - started
        assert written == len(prompts) * ANSWER, written
        return {"tokens_per_s": written / seconds, "first_p50_s": statistics.median(first.values())}

    return answer


def transformers_side(how: str) -> Callable[..., dict[str, float]]:
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=fast_dtype("cpu"))
    settings = GenerationConfig(
        max_new_tokens=ANSWER,
        min_new_tokens=ANSWER if how == "static" else None,
        do_sample=False,
        eos_token_id=-1 if how == "continuous" else model.config.eos_token_id,
        pad_token_id=0,
    )

    def continuous(clients: int, prompts: list[list[int]]) -> int:
        config = ContinuousBatchingConfig(
            page_size=32,
            num_blocks=clients * (PROMPT + ANSWER) // 32 + clients,
            max_batch_tokens=clients * PROMPT,
            max_requests_per_batch=clients,
        )
        done = model.generate_batch(prompts, settings, config)
        return sum(len(each.generated_tokens) for each in done.values())

    def static(clients: int, prompts: list[list[int]]) -> int:
        written = 0
        for start in range(0, len(prompts), clients):
            ids = torch.tensor(prompts[start : start + clients])
            mask = torch.ones_like(ids)
            out = model.generate(ids, attention_mask=mask, generation_config=settings)
            written += out[:, PROMPT:].numel()
        return written

    def answer(clients: int, prompts: list[list[int]]) -> dict[str, float]:
        started = time.perf_counter()
        written = (continuous if how == "continuous" else static)(clients, prompts)
        assert written == len(prompts) * ANSWER, written
        return {"tokens_per_s": written / (time.perf_counter() - started)}

    return answer


SIDES: dict[str, Callable[..., Callable[..., dict[str, float]]]] = {
    "engine": engine_side,
    "transformers": transformers_side,
}


def ask_side(side: Side, clients: int, n: int, prompts: Prompts) -> dict[str, Any]:
    return side.ask(clients=clients, prompts=prompts.take(n * clients))


# --- servers


class Server:
    """A server in a process of its own, from its readiness to its end."""

    def __init__(self, command: Sequence[str | Path], port: int, ready: str) -> None:
        self.port = port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  the server writes on
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | FIXED_THREADS,
        )
        give_up = time.monotonic() + 120
        while not self._answers(ready):
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.close()
                raise PunaError(f"{command} did not start: {self.said()}")
            time.sleep(0.1)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def said(self) -> str:
        """The end of what it printed."""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")

    def close(self) -> None:
        """Stop it as an operator would; by force when that does not help."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def puna_server(weights: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "puna", "serve", "smollm2", "--port", str(port)]
    return Server([*command, "--weights", weights], port, "/ready")


def llama_server(kind: str, clients: int) -> Server:
    port = free_port()
    each = PROMPT + ANSWER + 16
    # Without its prompt cache: every prompt is new, so it would only cost time.
    command = [peers.program("llama-server"), "-m", peers.gguf(kind), "--port", str(port)]
    command += ["-np", str(clients), "-c", str(clients * each), "-t", str(THREADS)]
    return Server([*command, "--no-cache-prompt", "-cram", "0", "--no-webui"], port, "/health")


def http_load(server: Server, clients: int, n: int, prompts: Prompts) -> dict[str, float]:
    numbers = [str(number) for number in (server.port, clients, ANSWER)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("load.py"), *numbers],
        input=json.dumps(prompts.take(n * clients)),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise PunaError(f"an answer failed; the end of the server's log: {server.said()}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


# --- what is measured


def http(options: argparse.Namespace) -> tuple[dict[str, Any], list[Claim]]:
    report: dict[str, Any] = {}
    claims: list[Claim] = []
    for clients in options.clients:
        with ExitStack() as stack:
            measures = dict(http_measures(clients, options, stack))
            report[str(clients)] = found = rounds(measures, options.repeats)
        print(f"\n{clients} clients, prompts of {PROMPT} tokens, answers of {ANSWER}")
        print_table(
            ["", "tokens/s out", "first token p50, s", "p95, s", "share of a core for the clients"],
            [[name, *http_cells(figures)] for name, figures in found.items()],
        )
        claims += http_claims(clients, found)
    return report, claims


def http_measures(
    clients: int, options: argparse.Namespace, stack: ExitStack
) -> Iterator[tuple[str, Callable[[], Mapping[str, float]]]]:
    n = max(1, ROUNDS[clients] // 2) if options.quick else ROUNDS[clients]

    def closing(thing: Any) -> Any:
        stack.callback(thing.close)
        return thing

    server = closing(puna_server(options.weights))
    yield "Puna server", partial(http_load, server, clients, n, Prompts())
    for kind in options.types:
        server = closing(llama_server(kind, clients))
        yield f"llama.cpp {kind}", partial(http_load, server, clients, n, Prompts())
    side = closing(Side(__file__, "--side", "engine", options.weights, "on"))
    yield "Puna engine", partial(ask_side, side, clients, n, Prompts())
    for how in ("continuous", "static"):
        side = closing(Side(__file__, "--side", "transformers", how))
        n_peer = min(n, PEER_ROUNDS)
        yield f"transformers {how}", partial(ask_side, side, clients, n_peer, Prompts())


def http_cells(figures: Mapping[str, float]) -> list[str]:
    cells = [f"{figures['tokens_per_s']:,.0f}"]
    for key, form in (("first_p50_s", ".2f"), ("first_p95_s", ".2f"), ("load_cpu", ".1%")):
        cells.append(format(figures[key], form) if key in figures else "")
    return cells


def http_claims(clients: int, found: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    speed = {name: figures["tokens_per_s"] for name, figures in found.items()}
    ours = speed["Puna server"]
    required, goal = {16: (1.1, None), 64: (1.3, 2.5)}[clients]
    claims = []
    theirs = [name for name in found if name.startswith("llama.cpp")]
    if theirs:
        best = max(theirs, key=speed.__getitem__)
        claims = [
            Claim(f"{clients} clients, tokens/s", ours, required, speed[best], best, goal),
            Claim(
                f"{clients} clients, first token p50, s",
                found["Puna server"]["first_p50_s"],
                1.0,
                found[best]["first_p50_s"],
                best,
                at_most=True,
            ),
        ]
    peer, engine = "transformers continuous", "Puna engine"
    return [
        *claims,
        Claim(f"{clients} clients, tokens/s", ours, 4.0, speed[peer], peer),
        Claim(f"{clients} clients, tokens/s", ours, 0.9, speed[engine], "engine alone"),
    ]


def prefix(options: argparse.Namespace) -> tuple[dict[str, Any], list[Claim]]:
    report: dict[str, Any] = {}
    claims = []
    with ExitStack() as stack:
        sides = {
            state: Side(__file__, "--side", "engine", options.weights, state)
            for state in ("on", "off")
        }
        for side in sides.values():
            stack.callback(side.close)
        for clients in options.clients:
            measures = {
                f"prefix cache {state}": partial(ask_side, side, clients, 1, Prompts(SHARED))
                for state, side in sides.items()
            }
            report[str(clients)] = found = rounds(measures, options.repeats)
            speed = {name: figures["tokens_per_s"] for name, figures in found.items()}
            claims.append(
                Claim(
                    f"{clients} texts, {SHARED} tokens shared, tokens/s",
                    speed["prefix cache on"],
                    3.0,
                    speed["prefix cache off"],
                    "without the cache",
                )
            )
    return report, claims


def idle(options: argparse.Namespace) -> tuple[dict[str, Any], list[Claim]]:
    report = {}
    servers = {
        "Puna": partial(puna_server, options.weights),
        "llama.cpp": partial(llama_server, "BF16", 16),
    }
    for name, start in servers.items():
        server = start()
        try:
            http_load(server, 16, 1, Prompts())
            time.sleep(1)
            before = psutil.Process(server.process.pid).cpu_times()
            time.sleep(IDLE_S)
            after = psutil.Process(server.process.pid).cpu_times()
        finally:
            server.close()
        used = after.user + after.system - before.user - before.system
        report[name] = round(used / IDLE_S, 4)
        print(f"idle server of {name}: {report[name]:.2%} of a core")
    return report, [Claim("idle server, share of a core", report["Puna"], 0.005, at_most=True)]


MEASURES = {"http": http, "prefix": prefix, "idle": idle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=MEASURES, action="append", help="repeatable")
    parser.add_argument("--clients", type=int, choices=ROUNDS, nargs="+", default=list(ROUNDS))
    parser.add_argument("--types", choices=peers.TYPES, nargs="*", default=["BF16", "Q8_0", "Q4_0"])
    parser.add_argument("--weights", default="w8a8", help="Puna's")
    parser.add_argument("--repeats", type=int, help="default: 5, or 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.side:
        kind, *which = options.side
        answer_questions(SIDES[kind](*which))
        return
    options.repeats = options.repeats or (3 if options.quick else 5)
    all_cores()
    report: dict[str, Any] = {"machine": machine()}
    claims: list[Claim] = []
    for name in options.only or MEASURES:
        report[name], found = MEASURES[name](options)
        claims += found
    finish(report, claims, options.json)


if __name__ == "__main__":
    main()
