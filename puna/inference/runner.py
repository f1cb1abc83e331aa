"""One forward pass for rows of the engine: cache pages in, logits out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from puna.inference.cache import PagedStore
from puna.inference.weights import Weights, compute_dtype, ready_for_inference
from puna.model import Llama


class Runner:
    """A model with a paged cache.

    Args:
        model: whose weights to run.
        weights: their format.
        n_pages, page_size: size of the cache.
        cache_dtype: of keys and values; None is that of the activations.
        compile_blocks: whether decoding is compiled.
    """

    def __init__(
        self,
        model: Llama,
        weights: Weights,
        n_pages: int,
        page_size: int,
        *,
        cache_dtype: torch.dtype | None = None,
        compile_blocks: bool = False,
    ) -> None:
        self.weights = weights
        self._compiled = compile_blocks
        self.load(model)
        dtype = cache_dtype or compute_dtype(weights)
        self.store = PagedStore(model.config, n_pages, page_size, dtype, model.device)
        self.cache_bytes_per_token = PagedStore.bytes_per_token(model.config, dtype)

    def load(self, model: Llama) -> None:
        """Take over the weights of ``model``."""
        self.model, self.head = ready_for_inference(model, self.weights)
        if self._compiled:
            for module in (*self.model.model.layers, self.head):
                _compile(module)

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
        positions, cache = self.store.batch(pages, starts, counts)
        padded = [[*row, *[0] * (max(counts) - len(row))] for row in tokens]
        ids = torch.tensor(padded, device=positions.device)
        return self._decide(max(counts), self.model.hidden)(
            ids, positions_bt=positions, cache=cache
        )

    @torch.inference_mode()
    def logits(self, hidden_nd: Tensor) -> Tensor:
        """Logits (n, vocab_size)."""
        return self._decide(len(hidden_nd), self.head)(hidden_nd)

    def _decide(self, width: int, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if width == 1 or not self._compiled:
            return call

        def eager(*args: Any, **kwargs: Any) -> Tensor:
            with torch.compiler.set_stance("force_eager"):
                return call(*args, **kwargs)

        return eager


def _compile(module: nn.Module) -> None:
    """Compile with few guards: a block's weights and settings never change shape."""

    def keep(guards: Sequence[Any]) -> list[bool]:
        return [
            ("self" not in guard.name and guard.guard_type == "TENSOR_MATCH")
            or guard.guard_type == "SHAPE_ENV"
            for guard in guards
        ]

    module.compile(dynamic=True, fullgraph=True, options={"guard_filter_fn": keep})
