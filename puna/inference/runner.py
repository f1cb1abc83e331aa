"""One forward pass for rows of the engine: cache pages in, logits out."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from puna.core.huge_pages import move_to_huge_pages
from puna.inference.adapters import Adapters
from puna.inference.blocks import Between, OneRow
from puna.inference.cache import PagedStore
from puna.inference.compiled import CompiledAttention, CompiledHead
from puna.inference.graphs import GraphedDecoding
from puna.inference.rotation import unrotated_hidden
from puna.inference.weights import Int8Rows, Weights, activation_dtype, ready_for_inference
from puna.model import Llama


class Runner:
    """A model with a paged cache.

    Args:
        model: whose weights to run.
        weights: their format.
        n_pages, page_size: size of the cache.
        cache_dtype: of keys and values; None is that of the activations.
        compiled: whether decoding is compiled, and on a GPU replayed as graphs.
        several: whether to compile for several rows or positions at once too, which takes longer.
        packed_copy: see `puna.inference.weights.Dense`.
        head: see `ready_for_inference`.
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
        several: bool = True,
        packed_copy: bool = False,
        head: Tensor | None = None,
    ) -> None:
        self.weights = weights
        self.dtype = activation_dtype(weights, model.device.type)
        self._head = head
        on_cpu = model.device.type == "cpu"
        self._compiled = compiled and on_cpu
        self._graphed = compiled and model.device.type == "cuda"
        self._several = several
        self._packed_copy = packed_copy and on_cpu
        self.adapters = Adapters()
        dtype = cache_dtype or self.dtype
        self.store = PagedStore(
            model.config,
            n_pages,
            page_size,
            dtype,
            model.device,
            attend_one=CompiledAttention() if self._compiled else None,
        )
        self.cache_bytes_per_token = PagedStore.bytes_per_token(model.config, dtype)
        self.load(model)

    def load(self, model: Llama) -> None:
        """Take over the weights of ``model``."""
        twin, head = ready_for_inference(
            model,
            self.weights,
            packed_copy=self._packed_copy,
            head=self._head,
            compiles=self._compiled,
        )
        # memory is ample, no weights are shared with training, and compiled code will read them
        if self._packed_copy and self._compiled:
            move_to_huge_pages([twin, head])
        self.model, self.head = twin, head
        turned = self.weights == "w8a8"
        norm = model.model.norm.weight.detach()
        self._restore = partial(unrotated_hidden, norm) if turned else None
        self.adapters.attach(twin)
        self._one: OneRow | Between | None = None
        self._more: Between | None = None
        if self._compiled:
            trunk = twin.model
            facts = f"{model.config.model_dump_json()} {trunk.layers[0]}"
            self.head = CompiledHead(head)
            if OneRow.fits(trunk):
                self._one = OneRow(trunk, facts)
            else:
                self._one = Between(trunk, facts, several=False)
            if self._several and Between.fits(trunk):
                self._more = Between(trunk, facts, several=True)
        self._graphs = GraphedDecoding(twin, self.store) if self._graphed else None

    @property
    def weight_bytes(self) -> int:
        """Weights that a pass with one token reads: all but the table of embeddings."""
        table = self.model.model.embed_tokens.weight
        tensors = [*self.model.state_dict().values(), *self.head.state_dict().values()]
        products = [*self.model.modules(), *self.head.modules()]
        packed = sum(each.packed_bytes for each in products if isinstance(each, Int8Rows))
        return sum(t.nbytes for t in tensors) - table.nbytes + packed

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> Tensor:
        """Final hidden states (batch, time, dim) of each row's new tokens, padded at the end."""
        counts = [len(row) for row in tokens]
        if self._graphs is not None and max(counts) == 1 and not self.adapters.in_use:
            return self._graphs([row[0] for row in tokens], pages, starts)
        positions, cache = self.store.batch(pages, starts, counts, self.dtype)
        padded = [[*row, *[0] * (max(counts) - len(row))] for row in tokens]
        ids = torch.tensor(padded, device=positions.device)
        blocks = self._one if counts == [1] else self._more
        if blocks is None or (self.adapters.in_use and not blocks.adapts):
            return self.model.hidden(ids, positions_bt=positions, cache=cache)
        # that positions fit the context was checked where the request came in
        x = self.model.model.embed_tokens(ids).to(self.dtype)
        return blocks(x, *self.model.rope(positions), cache.layers)

    @torch.inference_mode()
    def features(self, prompt: Sequence[int]) -> Tensor:
        """Final hidden states (time, dim) of one text, in the model's own basis, without cache."""
        hidden = self.model.hidden(torch.tensor([list(prompt)], device=self.model.device))[0]
        return hidden if self._restore is None else self._restore(hidden)

    @torch.inference_mode()
    def logits(self, hidden_nd: Tensor) -> Tensor:
        """Logits (n, vocab_size)."""
        logits: Tensor = self.head(hidden_nd)
        return logits
