"""One forward pass for rows of the engine: cache pages in, logits out."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from puna.inference.attention import attend_one
from puna.inference.cache import AttendOne, PagedLayer, PagedStore, PagedView
from puna.inference.weights import Weights, compute_dtype, ready_for_inference
from puna.model import Llama


class Runner:
    """A model with a paged cache.

    Args:
        model: whose weights to run.
        weights: their format.
        n_pages, page_size: size of the cache.
        cache_dtype: of keys and values; None is that of the activations.
        compiled: whether decoding is compiled.
        packed_copy: see `puna.inference.weights.Dense`.
    """

    def __init__(
        self,
        model: Llama,
        weights: Weights,
        n_pages: int,
        page_size: int,
        *,
        cache_dtype: torch.dtype | None = None,
        compiled: bool = False,
        packed_copy: bool = False,
    ) -> None:
        self.weights = weights
        self._dtype = compute_dtype(weights)
        on_cpu = model.device.type == "cpu"
        self._compiled = compiled and on_cpu
        self._packed_copy = packed_copy and on_cpu
        self.load(model)
        dtype = cache_dtype or self._dtype
        self.store = PagedStore(
            model.config,
            n_pages,
            page_size,
            dtype,
            model.device,
            attend_one=_compiled_attend_one() if self._compiled else None,
        )
        self.cache_bytes_per_token = PagedStore.bytes_per_token(model.config, dtype)

    def load(self, model: Llama) -> None:
        """Take over the weights of ``model``."""
        twin, head = ready_for_inference(model, self.weights, packed_copy=self._packed_copy)
        self.model, self.head = twin, head
        if self._compiled:
            step = _block_step(twin.model.layers[0])
            blocks = (_CompiledBlock(block, step) for block in twin.model.layers)
            twin.model.layers = nn.ModuleList(blocks)
            self.head = _CompiledHead(head)

    @property
    def weight_bytes(self) -> int:
        """Weights that a pass with one token reads: all but the table of embeddings."""
        table = self.model.model.embed_tokens.weight
        tensors = [*self.model.state_dict().values(), *self.head.state_dict().values()]
        return sum(t.nbytes for t in tensors) - table.nbytes

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> Tensor:
        """Final hidden states (batch, time, dim) of each row's new tokens, padded at the end."""
        counts = [len(row) for row in tokens]
        positions, cache = self.store.batch(pages, starts, counts, self._dtype)
        padded = [[*row, *[0] * (max(counts) - len(row))] for row in tokens]
        ids = torch.tensor(padded, device=positions.device)
        return self.model.hidden(ids, positions_bt=positions, cache=cache)

    @torch.inference_mode()
    def logits(self, hidden_nd: Tensor) -> Tensor:
        """Logits (n, vocab_size)."""
        logits: Tensor = self.head(hidden_nd)
        return logits


class _CompiledBlock(nn.Module):
    """A block that runs compiled for one token of one row, and as it is for all else."""

    def __init__(self, block: nn.Module, step: "_Step") -> None:
        super().__init__()
        self.block = block
        self._tensors = dict(block.state_dict())
        self._step = step

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: PagedLayer | None
    ) -> Tensor:
        if cache is None or x.numel() > x.shape[-1]:
            result: Tensor = self.block(x, cos, sin, mask, cache)
            return result
        x = x.float()  # the stream of one token stays in fp32: fewer conversions, less rounding
        view = cache.view
        stores = (cache.keys, cache.values, cache.key_scale, cache.value_scale)
        return self._step(self._tensors, x, cos, sin, *stores, view.slots, view.seen, view.lengths)


class _CompiledHead(nn.Module):
    """The head, compiled for one row."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self._tensors = dict(head.state_dict())
        self._step = _Step(lambda tensors, x: functional_call(head, tensors, (x,)))

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[-1]:
            result: Tensor = self.head(x)
            return result
        return self._step(self._tensors, x)


class _Step:
    """A function compiled at its first call, for the shapes of that call but the cache's length.

    All layers share one, with their tensors as arguments. It is called without `torch.compile`'s
    checks of its arguments, which cost as much as a tenth of the time of a layer.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, *args: Any) -> Tensor:
        if self._compiled is None:
            self._compiled = _compile_ahead(self._function, args)
        return self._compiled(*args)


def _block_step(block: nn.Module) -> _Step:
    def step(
        tensors: dict[str, Tensor],
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        key_scale: Tensor | None,
        value_scale: Tensor | None,
        slots: Tensor,
        seen: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        view = PagedView(slots, None, seen, lengths, None, 0, 0, attend_one)
        layer = PagedLayer(keys, values, key_scale, value_scale, view)
        result: Tensor = functional_call(block, tensors, (x, cos, sin, None, layer))
        return result

    return _Step(step)


def _compile_ahead(function: Callable[..., Tensor], args: Sequence[Any]) -> Callable[..., Tensor]:
    options: dict[str, Any] = {
        "guard_filter_fn": lambda guards: [False for _ in guards],
        "assert_indirect_indexing": False,
        "cpp.enable_floating_point_contract_flag": "fast",
        "size_asserts": False,
        "alignment_asserts": False,
    }
    compiled = torch.compile(function, fullgraph=True, options=options)
    ahead = compiled.aot_compile((tuple(args), {}))
    ahead.disable_guard_check()
    return ahead.fn


@cache
def _compiled_attend_one() -> AttendOne:
    options: dict[str, Any] = {"assert_indirect_indexing": False}
    return torch.compile(attend_one, dynamic=True, fullgraph=True, options=options)
