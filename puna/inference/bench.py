"""Speed of an engine on this machine: what ``puna bench`` prints."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from puna.core.devices import memory_bandwidth, peak_memory
from puna.data.generators import generate_chats
from puna.inference.engine import Engine
from puna.inference.generate import generate, stream
from puna.inference.request import Request
from puna.inference.sampling import Sampling

PREFILL, DECODE, SHORT = 512, 128, 64
BATCHES = (16, 64)


class Start(Protocol):
    """Loads the model into a new engine, its prefix cache off."""

    def __call__(self, *, compiled: bool) -> Engine:
        """The engine."""
        ...


@dataclass(frozen=True)
class Figure:
    """A measurement taken several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Median, lowest and highest of ``values``."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Speed:
    """What was measured. Rates are tokens/s, times seconds, sizes bytes."""

    prompt: int
    """Tokens of the long prompt; fewer than 512 where the context is short."""
    new: int
    """Tokens decoded from a short prompt."""
    short: int
    """Tokens of the short prompts and of the answers in a batch."""
    prefill: Figure
    decode: Figure
    """A single text, after its first token."""
    batches: dict[int, Figure]
    """New tokens of all rows over the time from start to end, reading the prompts included."""
    first_token: Figure
    """From a short prompt to its first token, warm."""
    eager_start: float
    """From nothing loaded to the first token of a short prompt; imports not counted."""
    compiled_start: float | None
    """To the second token, the first that compiled code makes, if that was asked for."""
    weight_bytes: int
    """Weights read for one token."""
    cache_bytes_per_token: int
    peak_memory: int
    """The most this process held (CPU) or had allocated (GPU), loading included."""
    bandwidth: float
    """Of reading memory, bytes/s."""

    @property
    def bandwidth_share(self) -> float:
        """Weights read per second in decoding, over what memory gives.

        With speculation one reading serves several tokens: the share can pass 1.
        """
        return self.weight_bytes * self.decode.median / self.bandwidth


def run(
    start: Start, *, compiled: bool, runs: int, report: Callable[[str], None]
) -> tuple[Engine, Speed]:
    """Measure an engine; each figure ``runs`` times after a warm-up.

    Args:
        start: loads the model.
        compiled: whether figures are of compiled decoding.
        runs: how often each is taken.
        report: told what comes next.
    """
    report("start")
    engine, eager_start = _start(start, compiled=False)
    compiled_start = None
    if compiled:
        report("compilation")
        del engine
        engine, compiled_start = _start(start, compiled=True)
        if not engine.config.compile:  # nothing here can
            compiled_start = None
    bench = _Bench(engine, runs)
    device = engine.model.device.type
    report("prefill")
    prefill = bench.prefill()
    report("decoding")
    decode = bench.decode()
    report("first token")
    first_token = bench.first_token()
    batches = {}
    for n in BATCHES:
        report(f"{n} rows")
        batches[n] = bench.batch(n)
    report("memory")
    return engine, Speed(
        prompt=bench.prompt,
        new=bench.new,
        short=bench.short,
        prefill=prefill,
        decode=decode,
        batches=batches,
        first_token=first_token,
        eager_start=eager_start,
        compiled_start=compiled_start,
        weight_bytes=engine.weight_bytes,
        cache_bytes_per_token=engine.cache_bytes_per_token,
        peak_memory=peak_memory(device),
        bandwidth=memory_bandwidth(device),
    )


class _Bench:
    """Times requests; every prompt is another piece of generated text."""

    def __init__(self, engine: Engine, runs: int) -> None:
        self._engine = engine
        self._runs = runs
        room = engine.context // 2
        self.prompt, self.new, self.short = min(PREFILL, room), min(DECODE, room), min(SHORT, room)
        need = 2 * PREFILL + max(BATCHES) * SHORT
        self._text = _some_text(engine, need)
        self._at = 0

    def prefill(self) -> Figure:
        return self._figure(lambda: self.prompt / self.times(self.prompt, 1)[0])

    def first_token(self) -> Figure:
        return self._figure(lambda: self.times(self.short, 1)[0])

    def decode(self) -> Figure:
        def rate() -> float:
            first, last, n = self.times(self.short, self.new)
            return n / (last - first)

        return self._figure(rate)

    def batch(self, n: int) -> Figure:
        def rate() -> float:
            requests = [self._request(self.short, self.short) for _ in range(n)]
            began = time.perf_counter()
            answers = generate(self._engine, requests)
            return sum(len(a.ids) for a in answers) / (time.perf_counter() - began)

        return self._figure(rate)

    def _figure(self, measure: Callable[[], float]) -> Figure:
        measure()
        return Figure.of([measure() for _ in range(self._runs)])

    def times(self, n_prompt: int, n_new: int) -> tuple[float, float, int]:
        """Seconds to the first and the last token, and the tokens after the first ones."""
        began = time.perf_counter()
        arrived = [
            (time.perf_counter() - began, len(delta.ids))
            for delta in stream(self._engine, self._request(n_prompt, n_new))
        ]
        following = sum(n for _, n in arrived[1:])
        return arrived[0][0], arrived[-1][0], following

    def _request(self, n_prompt: int, n_new: int) -> Request:
        if self._at + n_prompt > len(self._text):
            self._at = 0
        prompt = self._text[self._at : self._at + n_prompt]
        self._at += n_prompt
        return Request(prompt, Sampling(max_new_tokens=n_new, ignore_stop_tokens=True))


def _start(start: Start, *, compiled: bool) -> tuple[Engine, float]:
    """A new engine, and the seconds of loading it and of its first tokens."""
    began = time.perf_counter()
    engine = start(compiled=compiled)
    loaded = time.perf_counter() - began
    bench = _Bench(engine, 1)
    _, last, _ = bench.times(bench.short, 2 if compiled else 1)
    return engine, loaded + last


def _some_text(engine: Engine, n: int) -> list[int]:
    """``n`` tokens of generated chats: words, so that speculation finds what it finds in text."""
    ids: list[int] = []
    seed = 0
    while len(ids) < n:
        for chat in generate_chats(seed, 100, ()):
            ids += engine.tokenizer.encode("\n".join(m.content for m in chat.messages) + "\n")
        seed += 1
    return ids[:n]
