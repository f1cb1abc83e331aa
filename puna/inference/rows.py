"""A request on its way through the engine, and the two queues it passes."""

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from puna.inference.config import EngineConfig
from puna.inference.pages import PagePool, Prefix
from puna.inference.request import QueueFull, Request, TokenLogprob
from puna.inference.sampler import Chooser
from puna.inference.text import TextStream
from puna.tokenizer import Tokenizer

LONGEST_RETRY_S = 60.0


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
        self.running = False
        """Whether it is among the rows that compute; else it waits."""

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
    of the queue; it computes its tokens again later and goes on where it was. The oldest is never
    sent back, so there is always progress.
    """

    def __init__(self, config: EngineConfig, pool: PagePool) -> None:
        self._config = config
        self.pool = pool
        self.waiting: OrderedDict[int, Row] = OrderedDict()
        """By handle, in the order they will start."""
        self.running: list[Row] = []
        """Oldest first."""
        self._tokens_waiting = 0
        self._finish_times: deque[float] = deque(maxlen=32)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens still to compute."""
        return self._tokens_waiting + sum(row.left for row in [*self.running] if not row.decoding)

    def add(self, row: Row) -> None:
        """Let ``row`` wait; raises `QueueFull`."""
        config = self._config
        full = len(self.waiting) >= config.max_queue
        tokens = self._tokens_waiting + row.left
        if full or (self.waiting and tokens > config.max_queue_tokens):
            raise QueueFull(self._seconds_to_a_place())
        # the last token of a text needs no room in the cache: nothing follows it
        row.limit = min(row.limit, self.pool.n_pages * self.pool.page_size + 1)
        self._wait(row)

    def admit(self) -> None:
        """Start waiting requests while there are rows and pages for all their tokens."""
        if not self.waiting or len(self.running) >= self._config.max_rows:
            return
        promised = set(self._promised())
        while self.waiting and len(self.running) < self._config.max_rows:
            row = next(iter(self.waiting.values()))
            self._tokens_waiting -= row.left
            self._adopt_prefix(row)
            key = self.pool.next_key(row.prefix, row.tokens)
            # another row is computing this very page: wait for it
            shared = self._config.prefix_cache and key is not None and key in promised
            if shared or self._missing(row, len(row.tokens)) > self.pool.n_available:
                self._abandon(row)
                self._tokens_waiting += row.left
                return
            promised.add(key)
            del self.waiting[row.handle]
            row.running = True
            self.running.append(row)

    def reserve(self, rows: Sequence[Row], counts: Sequence[int]) -> list[Row]:
        """Give rows pages for their next ``counts`` tokens; those that stay in, oldest first."""
        for row, count in zip(rows, counts, strict=True):
            while row.running and not self._grow(row, row.computed + count):
                self._preempt(self.running[-1])
        return [row for row in rows if row.running]

    def publish(self, row: Row) -> None:
        """Offer the pages ``row`` has filled to others."""
        if self._config.prefix_cache:
            self.pool.publish(row.prefix, row.tokens, row.computed)

    def remove(self, row: Row) -> None:
        """Take ``row`` out, wherever it is, and free its pages."""
        if row.running:
            row.running = False
            self.running.remove(row)
            self._finish_times.append(time.monotonic())
        else:
            del self.waiting[row.handle]
            self._tokens_waiting -= row.left
        self.pool.release(row.prefix)

    def _wait(self, row: Row) -> None:
        self.waiting[row.handle] = row
        self._tokens_waiting += row.left

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
        row.prompt_logprobs = [None]

    def _preempt(self, row: Row) -> None:
        row.running = False
        self.running.remove(row)
        self._abandon(row)
        row.draft = []
        self._wait(row)
        self.waiting.move_to_end(row.handle, last=False)

    def _missing(self, row: Row, length: int) -> int:
        """Pages ``row`` lacks to hold ``length`` tokens."""
        return max(-(-length // self.pool.page_size) - len(row.prefix.pages), 0)

    def _grow(self, row: Row, length: int) -> bool:
        new = self.pool.allocate(self._missing(row, length))
        if new is None:
            return False
        row.prefix.pages.extend(new)
        return True

    def _seconds_to_a_place(self) -> float:
        """Mean time between the latest ends; a pause among them must not make it absurd."""
        times = self._finish_times
        if len(times) < 2:
            return 1.0
        return min(max(1.0, (times[-1] - times[0]) / (len(times) - 1)), LONGEST_RETRY_S)
