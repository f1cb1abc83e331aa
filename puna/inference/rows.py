"""A request on its way through the engine, and the two queues it passes."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from puna.inference.config import EngineConfig
from puna.inference.pages import PagePool, Prefix
from puna.inference.request import QueueFull, Request, TokenLogprob
from puna.inference.sampler import Chooser
from puna.inference.text import TextStream
from puna.tokenizer import Tokenizer


class Row:
    """One request: its tokens, its pages, how far it is."""

    def __init__(self, handle: int, request: Request, tokenizer: Tokenizer, context: int) -> None:
        self.handle = handle
        self.request = request
        self.tokens = list(request.prompt)
        self.n_prompt = len(self.tokens)
        self.limit = min(self.n_prompt + request.sampling.max_new_tokens, context)
        self.computed = 0
        """How many of ``tokens`` have their keys and values in the cache."""
        self.prefix = Prefix()
        self.n_cached = 0
        self.chooser = Chooser(request.sampling, request.prompt, request.constraint)
        self.text = TextStream(tokenizer, request.sampling.stop)
        self.draft: list[int] = []
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        self.reported = False

    @property
    def left(self) -> int:
        """Tokens still to pass through the model before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether only the newest token is left."""
        return self.left == 1 and len(self.tokens) > self.n_prompt


class Queue:
    """Requests waiting and running, and the pages they share.

    Requests start in order. When pages run out the youngest running request goes back to the front
    of the queue; it computes its tokens again later and goes on where it was.
    """

    def __init__(self, config: EngineConfig, pool: PagePool) -> None:
        self._config = config
        self.pool = pool
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self._finish_times: deque[float] = deque(maxlen=32)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens still to compute."""
        rows = [*self.waiting, *self.running]
        return sum(row.left for row in rows if not row.decoding)

    def add(self, row: Row) -> None:
        """Let ``row`` wait; raises `QueueFull`."""
        config = self._config
        tokens = sum(row.left for row in self.waiting)
        full = len(self.waiting) >= config.max_queue
        if full or (self.waiting and tokens + row.left > config.max_queue_tokens):
            raise QueueFull(self._seconds_to_a_place())
        self.waiting.append(row)

    def admit(self) -> None:
        """Start waiting requests while there are rows and pages for their next tokens."""
        promised = set(self._promised())
        while self.waiting and len(self.running) < self._config.max_rows:
            row = self.waiting[0]
            self._adopt_prefix(row)
            key = self.pool.next_key(row.prefix, row.tokens)
            if self._config.prefix_cache and key is not None and key in promised:
                self._abandon(row)  # another row is computing this very page: wait for it
                return
            if not self._grow(row, row.computed + min(row.left, self._config.chunk_tokens)):
                self._abandon(row)
                return
            promised.add(key)
            self.running.append(self.waiting.popleft())

    def reserve(self, rows: Sequence[Row], counts: Sequence[int]) -> list[Row]:
        """Give rows pages for their next ``counts`` tokens; those that stay in, oldest first."""
        for row, count in zip(rows, counts, strict=True):
            while row in self.running and not self._grow(row, row.computed + count):
                self._preempt(self.running[-1])
        return [row for row in rows if row in self.running]

    def publish(self, row: Row) -> None:
        """Offer the pages ``row`` has filled to others."""
        if self._config.prefix_cache:
            self.pool.publish(row.prefix, row.tokens[: row.computed])

    def remove(self, row: Row) -> None:
        """Take ``row`` out, wherever it is, and free its pages."""
        if row in self.running:
            self.running.remove(row)
            self._finish_times.append(time.monotonic())
        else:
            self.waiting.remove(row)
        self.pool.release(row.prefix)

    def _promised(self) -> Iterator[object]:
        for row in self.running:
            if not row.decoding and (key := self.pool.next_key(row.prefix, row.tokens)) is not None:
                yield key

    def _adopt_prefix(self, row: Row) -> None:
        usable = self._config.prefix_cache and not row.request.sampling.prompt_logprobs
        known = row.tokens[:-1] if usable else []  # the last token must pass to give logits
        row.prefix = self.pool.match(known, root=row.request.adapter)
        row.computed = len(row.prefix.pages) * self.pool.page_size
        row.n_cached = row.computed

    def _abandon(self, row: Row) -> None:
        self.pool.release(row.prefix)
        row.prefix, row.computed = Prefix(), 0

    def _preempt(self, row: Row) -> None:
        self.running.remove(row)
        self._abandon(row)
        row.draft = []
        self.waiting.appendleft(row)

    def _grow(self, row: Row, length: int) -> bool:
        missing = -(-length // self.pool.page_size) - len(row.prefix.pages)
        new = self.pool.allocate(max(missing, 0))
        if new is None:
            return False
        row.prefix.pages.extend(new)
        return True

    def _seconds_to_a_place(self) -> float:
        times = self._finish_times
        if len(times) < 2:
            return 1.0
        return max(1.0, (times[-1] - times[0]) / (len(times) - 1))
