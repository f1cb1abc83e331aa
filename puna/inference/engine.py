"""The engine: continuous batching over a paged cache. One call of `Engine.step` is one turn."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from puna.core.devices import default_device, fast_bf16, keep_freed_memory
from puna.core.errors import UsageError
from puna.formats import load_model
from puna.inference.cache import PagedStore
from puna.inference.config import EngineConfig
from puna.inference.constraint import Grammars
from puna.inference.packed import packed_itemsize
from puna.inference.pages import PagePool
from puna.inference.request import Delta, Finish, Request, Stats, TokenLogprob, check_fits
from puna.inference.rows import Queue, Row
from puna.inference.runner import Runner
from puna.inference.sampler import choose, top_logprobs
from puna.inference.speculation import Drafter, DraftModel, LookUp
from puna.inference.weights import Weights, activation_dtype
from puna.model import Llama
from puna.tokenizer import Tokenizer

if TYPE_CHECKING:
    from puna.inference.part import Shared

LOGITS_ROWS = 256  # prompt log-probabilities are computed for this many positions at a time


@dataclass
class _Counters:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Engine:
    """Generates for many requests at once.

    Each step passes a chunk of prompts and one token of every running text through the model. What
    runs beside a text changes it by rounding only. Not for several threads: see `AsyncEngine`.

    Args:
        model: its weights are shared where their format allows, so training in place is seen but
            for what the prefix cache holds; `load_weights` takes over others and drops that.
        tokenizer: for text and stop texts.
        config: settings.
        draft: a smaller model with the same vocabulary that proposes tokens, with
            ``config.speculation`` set; without it they come from the row's own text.
        shared: the processes that have the rest of ``model``, where this one has a part.

    Raises `UsageError` for weights that cannot run here or a draft with other tokens.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        *,
        draft: Llama | None = None,
        shared: "Shared | None" = None,
    ) -> None:
        self.config = (config or EngineConfig()).on(model.device.type)
        self.tokenizer = tokenizer
        self.context = model.config.context
        weights = _weights(self.config, model.dtype)
        n_pages = _n_pages(self.config, model, weights) + 1
        int8_cache = torch.int8 if self.config.cache_weights == "int8" else None
        sizes = (n_pages, self.config.page_size)
        self._shared = shared
        self._runner = (
            Runner(
                model,
                weights,
                *sizes,
                cache_dtype=int8_cache,
                compiled=self.config.compile,
                # a single text starts sooner; its prompt is read a little slower
                several=self.config.max_rows > 1 or self.config.speculation > 0,
                packed_copy=bool(self.config.packed_copy),
            )
            if shared is None
            else shared.runner(model, weights, *sizes, int8_cache=int8_cache is not None)
        )
        if weights == "w8a8":
            self._runner.adapters.turn(model)
        self._drafter: Drafter = LookUp() if draft is None else DraftModel(draft, weights, sizes)
        if draft is not None and draft.config.vocab_size != model.config.vocab_size:
            raise UsageError("the draft model has another vocabulary: use one of the same family")
        self._queue = Queue(self.config, PagePool(n_pages, self.config.page_size))
        self._rows: dict[int, Row] = {}
        self._handles = itertools.count(1)
        self._counters = _Counters()

    @cached_property
    def grammars(self) -> Grammars:
        """Makes the constraints of structured output; the first use takes some tenths of a second.

        Any thread may use it.
        """
        return Grammars(self.tokenizer)

    @property
    def model(self) -> Llama:
        """The network that runs, its weights in the engine's format."""
        return self._runner.model

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._rows

    @property
    def weights(self) -> Weights:
        """Format of the weights; "auto" is resolved."""
        return self._runner.weights

    @property
    def n_params(self) -> int:
        """Parameters of the whole model."""
        return self.model.config.n_params() if self._shared is None else self._shared.n_params

    @property
    def weight_bytes(self) -> int:
        """Weights that a pass with one token reads in this process."""
        return self._runner.weight_bytes

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory that keys and values of one token take."""
        return self._runner.cache_bytes_per_token

    def submit(self, request: Request) -> int:
        """Let a request in; its handle marks its deltas. Raises `UsageError`, `QueueFull`."""
        check_fits(request.prompt, self.context)
        self._check(request)
        row = Row(next(self._handles), request, self.tokenizer, self.context)
        self._queue.add(row)
        self._rows[row.handle] = row
        return row.handle

    def cancel(self, handle: int) -> None:
        """End a request at once, without a further delta; its pages are free now."""
        row = self._rows.pop(handle, None)
        if row is not None:
            self._queue.remove(row)
            self._counters.cancelled += 1

    def load_weights(self, model: Llama) -> None:
        """Take over other weights of the same shape; what is cached of the old ones is dropped."""
        assert self.idle, "weights change between generations"
        self._check_whole("its weights are changed")
        self._runner.load(model)
        if self.weights == "w8a8":
            self._runner.adapters.turn(model)
        self._queue.pool.forget()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that requests may ask for."""
        return self._runner.adapters.names

    def load_adapter(self, name: str, folder: Path) -> None:
        """Let requests ask for the PEFT adapter in ``folder`` as ``name``, also between steps.

        Raises `UsageError` for a name that is taken and an adapter that does not fit the model.
        """
        self._check_whole("an adapter is loaded")
        self._runner.adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter, and with it what is cached of earlier texts.

        Raises `UsageError` for a name that is not loaded or that a request still uses.
        """
        users = sum(row.request.adapter == name for row in self._rows.values())
        if users:
            still = "1 request still uses" if users == 1 else f"{users} requests still use"
            raise UsageError(f"{still} the adapter '{name}': wait for the end")
        self._runner.adapters.unload(name)
        self._queue.pool.forget()  # another one may come by the same name

    def close(self) -> None:
        """End the other processes of the model, if there are any."""
        if self._shared is not None:
            self._shared.team.close()

    def _check_whole(self, when: str) -> None:
        if self._shared is not None:
            raise UsageError(f"the model has to be in one process when {when}: no tensor_parallel")

    @property
    def lost(self) -> str:
        """Why nothing can be generated any more, as another process of the model has ended."""
        return "" if self._shared is None else self._shared.team.lost

    def step(self) -> list[tuple[int, Delta]]:
        """One turn: a chunk of prompts, then a token of every running text.

        When the model fails, every request of that turn ends with an error, and the engine lives.
        """
        self._queue.admit()
        deltas: list[tuple[int, Delta]] = []
        for take in (self._prompt_rows, self._decode_rows):
            rows: list[Row] = []
            try:
                rows, counts = take()
                if rows:
                    deltas += self._pass(rows, counts)
            except Exception as error:  # noqa: BLE001  one turn's failure must not end the engine
                hit = rows or list(self._queue.running)
                deltas += [self._fail(row, error) for row in hit if row.handle in self._rows]
        return deltas

    def stats(self) -> Stats:
        """Figures of this moment."""
        pool = self._queue.pool
        return Stats(
            running=len(self._queue.running),
            waiting=len(self._queue.waiting),
            waiting_tokens=self._queue.waiting_tokens,
            pages=pool.n_pages,
            pages_used=pool.n_used,
            pages_cached=pool.n_cached,
            page_size=pool.page_size,
            **vars(self._counters),
        )

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Mean of the final hidden states of each text, of length 1: (n, dim), fp32."""
        vectors = []
        for prompt in prompts:
            check_fits(prompt, self.context + 1)
            hidden = self._runner.features(prompt)
            vectors.append(torch.nn.functional.normalize(hidden.float().mean(0), dim=0))
        return torch.stack(vectors)

    def _check(self, request: Request) -> None:
        if request.adapter is not None:
            self._runner.adapters.check(request.adapter)
        vocabulary = self.model.config.vocab_size
        wrong = [
            i for i in (*request.prompt, *request.sampling.logit_bias) if not 0 <= i < vocabulary
        ]
        if wrong:
            raise UsageError(f"token id {wrong[0]} is outside this vocabulary of {vocabulary}")
        pages = -(-(len(request.prompt) + 1) // self.config.page_size)
        if pages > self._queue.pool.n_pages:
            raise UsageError(
                f"the prompt has {len(request.prompt)} tokens and the cache holds "
                f"{self._queue.pool.n_pages * self.config.page_size}: raise cache_tokens"
            )

    def _prompt_rows(self) -> tuple[list[Row], list[int]]:
        """Rows whose prompts are computed in this turn, and how many tokens of each.

        Rows are padded to the longest: one that would waste much of the turn waits for the next.
        """
        budget = self.config.chunk_tokens
        rows: list[Row] = []
        width = 0
        for row in self._queue.running:
            if row.decoding:
                continue
            count = min(row.left, budget)
            padded = max(width, count) * (len(rows) + 1)
            if rows and (padded > budget or 2 * min(width, count) < max(width, count)):
                break
            rows.append(row)
            width = max(width, count)
        counts = [min(row.left, budget) for row in rows]
        kept = self._queue.reserve(rows, counts)
        return kept, [min(row.left, budget) for row in kept]

    def _decode_rows(self) -> tuple[list[Row], list[int]]:
        rows = [row for row in self._queue.running if row.decoding]
        if self.config.speculation and rows:
            self._drafter.propose(rows, self.config.speculation, self._queue.reserve)
        kept = self._queue.reserve(rows, [1 + len(row.draft) for row in rows])
        self._counters.drafted_tokens += sum(len(row.draft) for row in kept)
        return kept, [1 + len(row.draft) for row in kept]

    def _pass(self, rows: list[Row], counts: list[int]) -> list[tuple[int, Delta]]:
        tokens = [
            [*row.tokens[row.computed : row.computed + count], *row.draft][:count]
            for row, count in zip(rows, counts, strict=True)
        ]
        pages = [row.prefix.pages for row in rows]
        starts = [row.computed for row in rows]
        with self._runner.adapters.used_by_rows([row.request.adapter for row in rows]):
            hidden = self._runner.hidden(tokens, pages, starts)
        if self.config.speculation:
            self._drafter.follow(tokens, pages, starts)
        ready: list[tuple[int, Row, int]] = []
        for n, (row, count) in enumerate(zip(rows, counts, strict=True)):
            self._count_prompt(row, count, hidden[n])
            own = count - len(row.draft)
            row.computed += own
            self._queue.publish(row)
            if row.left == 0:
                ready.append((n, row, own - 1))
        return self._choose(hidden, ready) if ready else []

    def _choose(self, hidden: Tensor, ready: list[tuple[int, Row, int]]) -> list[tuple[int, Delta]]:
        """Choose tokens; where a draft guessed right the next choice is made at once."""
        written: dict[int, list[TokenLogprob | int]] = {row.handle: [] for _, row, _ in ready}
        ended: dict[int, Finish] = {
            row.handle: "length" for _, row, _ in ready if len(row.tokens) >= row.limit
        }
        active = [entry for entry in ready if entry[1].handle not in ended]
        depth = 0
        while active:
            picked = torch.tensor([n for n, _, _ in active], device=hidden.device)
            places = torch.tensor([at + depth for _, _, at in active], device=hidden.device)
            logits = self._runner.logits(hidden[picked, places])
            chosen = choose(logits, [row.chooser for _, row, _ in active])
            details = _details(logits, chosen, [row for _, row, _ in active])
            following = []
            for (n, row, at), token, detail in zip(active, chosen, details, strict=True):
                if _stops(row, token):
                    ended[row.handle] = "stop"
                    continue
                written[row.handle].append(token if detail is None else detail)
                finish = self._take(row, token)
                if finish is not None:
                    ended[row.handle] = finish
                elif depth < len(row.draft) and row.draft[depth] == token:
                    row.computed += 1
                    self._counters.accepted_tokens += 1
                    following.append((n, row, at))
            active, depth = following, depth + 1
        return [
            (row.handle, self._delta(row, written[row.handle], ended.get(row.handle)))
            for _, row, _ in ready
        ]

    def _take(self, row: Row, token: int) -> Finish | None:
        """Add a chosen token; why the text ends with it, if it does."""
        row.chooser.accept(token)
        row.tokens.append(token)
        self._counters.generated_tokens += 1
        constraint = row.request.constraint
        if constraint is not None and constraint.finished():
            return "stop" if constraint.error is None else "error"
        return "length" if len(row.tokens) >= row.limit else None

    def _delta(self, row: Row, written: list[TokenLogprob | int], finish: Finish | None) -> Delta:
        ids = [entry if isinstance(entry, int) else entry.id for entry in written]
        text = ""
        for n, token in enumerate(ids):
            text += row.text.push(token)
            if row.text.matched is not None:
                ids, written, finish = ids[: n + 1], written[: n + 1], "stop"
                break
        error = None
        if finish is not None:
            text += row.text.flush()
            self._finish(row, finish)
        if finish == "error" and row.request.constraint is not None:
            error = row.request.constraint.error
        row.draft = []
        first, row.reported = not row.reported, True
        wants_prompt = first and row.request.sampling.prompt_logprobs
        return Delta(
            ids=tuple(ids),
            text=text,
            logprobs=tuple(entry for entry in written if isinstance(entry, TokenLogprob)),
            prompt_logprobs=tuple(row.prompt_logprobs) if wants_prompt else None,
            cached_tokens=row.n_cached if first else 0,
            finish=finish,
            matched=row.text.matched,
            error=error,
        )

    def _count_prompt(self, row: Row, count: int, hidden_td: Tensor) -> None:
        """Count the prompt's tokens and keep their log-probabilities where asked."""
        end = min(row.computed + count, row.n_prompt)
        if row.decoding or row.reported:
            return
        self._counters.prompt_tokens += max(end - row.computed, 0)
        if row.computed == row.n_cached:
            self._counters.cached_tokens += row.n_cached
        sampling = row.request.sampling
        if not sampling.prompt_logprobs:
            return
        following = row.tokens[row.computed + 1 : end + 1]
        for at in range(0, len(following), LOGITS_ROWS):
            part = following[at : at + LOGITS_ROWS]
            logits = self._runner.logits(hidden_td[at : at + len(part)])
            row.prompt_logprobs += top_logprobs(logits, part, sampling.logprobs or 0)

    def _finish(self, row: Row, finish: Finish) -> None:
        self._queue.remove(row)
        del self._rows[row.handle]
        if finish == "error":
            self._counters.failed += 1
        else:
            self._counters.finished += 1

    def _fail(self, row: Row, error: Exception) -> tuple[int, Delta]:
        self._queue.remove(row)
        del self._rows[row.handle]
        self._counters.failed += 1
        return row.handle, Delta(finish="error", error=f"{type(error).__name__}: {error}")


def _stops(row: Row, token: int) -> bool:
    stops = not row.request.sampling.ignore_stop_tokens
    return stops and token in row.request.stop_ids


def _details(logits: Tensor, chosen: list[int], rows: list[Row]) -> list[TokenLogprob | None]:
    """Log-probabilities of the rows that ask for them."""
    details: list[TokenLogprob | None] = [None] * len(rows)
    asked = [n for n, row in enumerate(rows) if row.request.sampling.logprobs is not None]
    if asked:
        most = max(rows[n].request.sampling.logprobs or 0 for n in asked)
        found = top_logprobs(logits[asked], [chosen[n] for n in asked], most)
        for n, entry in zip(asked, found, strict=True):
            n_top = rows[n].request.sampling.logprobs or 0
            details[n] = TokenLogprob(entry.id, entry.logprob, entry.top[:n_top])
    return details


def _weights(config: EngineConfig, dtype: torch.dtype) -> Weights:
    if config.weights == "auto":
        return "fp32" if dtype == torch.float32 else "bf16"
    return config.weights


def _n_pages(config: EngineConfig, model: Llama, weights: Weights) -> int:
    tokens = config.cache_tokens
    if tokens is None:
        dtype = activation_dtype(weights, model.device.type)
        dtype = torch.int8 if config.cache_weights == "int8" else dtype
        each = PagedStore.bytes_per_token(model.config, dtype)
        if model.device.type == "cuda":
            free = torch.cuda.mem_get_info(model.device)[0]
        else:
            free = psutil.virtual_memory().available // config.tensor_parallel
        tokens = min(free // 4 // each, config.max_rows * model.config.context)
    return max(1, -(-tokens // config.page_size))


def load_engine(
    name: str, config: EngineConfig | None = None, *, draft: str | None = None
) -> Engine:
    """The model called ``name`` (see `load_model`) in an engine, on the GPU where there is one."""
    config = config or EngineConfig()
    device = default_device()
    auto = device.type == "cpu" or fast_bf16(device.type)  # a CPU reads half as much
    bf16 = config.weights == "bf16" or (auto and config.weights == "auto")
    dtype = torch.bfloat16 if bf16 else torch.float32  # integers come from unrounded weights
    if config.tensor_parallel > 1:
        return _shared_engine(name, config, dtype, device, draft)
    model, tokenizer = load_model(name, dtype=dtype, device=device)
    if device.type == "cpu":
        keep_freed_memory()
        if config.packed_copy is None:
            rows = activation_dtype("bf16" if bf16 else "fp32", device.type)
            copied = packed_itemsize(dtype, rows, model.config.dim) * model.config.n_params()
            ample = copied < psutil.virtual_memory().available / 4
            config = config.model_copy(update={"packed_copy": ample})
    small = None if draft is None else load_model(draft, dtype=dtype, device=device)[0]
    return Engine(model, tokenizer, config, draft=small)


def _shared_engine(
    name: str,
    config: EngineConfig,
    dtype: torch.dtype,
    device: torch.device,
    draft: str | None,
) -> Engine:
    """As `load_engine`, the model spread over processes that are started here."""
    from puna.inference.part import lead

    weights = _weights(config, dtype)
    config = config.model_copy(update={"compile": False, "packed_copy": False})
    model, tokenizer, shared = lead(name, config.tensor_parallel, weights, dtype, device)
    try:
        small = None if draft is None else load_model(draft, dtype=dtype, device=device)[0]
        return Engine(model, tokenizer, config, draft=small, shared=shared)
    except BaseException:
        shared.team.close()
        raise
