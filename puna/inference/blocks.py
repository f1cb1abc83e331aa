"""Blocks whose decoding is compiled: whole for one text, between their products for several.

All layers share the compiled functions, with their tensors as arguments.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from puna.inference.attention import attend_one, fusion_barrier
from puna.inference.cache import PagedLayer, PagedView
from puna.inference.compiled import Step, compiles
from puna.inference.integers import Rounding, scaled_rows
from puna.inference.rotation import spread
from puna.inference.weights import Int8Rows, JoinedAttention
from puna.model.linear import rms_norm
from puna.model.llama import swiglu


def _stores(layer: PagedLayer) -> tuple[Tensor | None, ...]:
    view = layer.view
    stores = (layer.keys, layer.values, layer.key_scale, layer.value_scale)
    return (*stores, view.pages, view.offsets, view.table, view.lengths)


_N_STORES = 8
# after three other arguments they are 3 to 6, of the cache, and 7 to 10, of the view; the number of
# the cache's pages comes from the memory that is free
_CACHE: dict[int, Sequence[int]] = {3: [0], 4: [0], 5: [0], 6: [0]}


def _layer(
    # as `_stores` gives them: one token of each row needs no more
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    pages: Tensor,
    offsets: Tensor,
    table: Tensor,
    lengths: Tensor,
) -> PagedLayer:
    view = PagedView(
        pages=pages,
        offsets=offsets,
        table=table,
        lengths=lengths,
        mask=None,
        before=0,
        attend_one=attend_one,
    )
    return PagedLayer(keys, values, key_scale, value_scale, view)


class OneRow:
    """Blocks for one token of one row, each as one call of one compiled function.

    For products that it can hold, see `fits`.

    Args:
        blocks: of the model.
        facts: see `Step`.
    """

    def __init__(self, blocks: nn.ModuleList, facts: str) -> None:
        first: Any = blocks[0]
        names = list(first.state_dict())

        def whole(x: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> Any:
            tensors = dict(zip(names, rest[_N_STORES:], strict=True))
            layer = _layer(*rest[:_N_STORES])
            return functional_call(first, tensors, (x, cos, sin, None, layer))

        self._step = Step("block", facts, whole, {**_CACHE, 9: [1]})
        self._tensors = [tuple(block.state_dict().values()) for block in blocks]

    @staticmethod
    def fits(blocks: nn.ModuleList) -> bool:
        """Whether a compiled function can hold these blocks' products."""
        first: Any = blocks[0]
        return compiles(first.self_attn.o_proj)

    def __call__(
        self, x_btd: Tensor, cos: Tensor, sin: Tensor, layers: Sequence[PagedLayer]
    ) -> Tensor:
        """The stream after all blocks, in fp32: fewer conversions, less rounding."""
        x, step = x_btd.float(), self._step
        for layer, tensors in zip(layers, self._tensors, strict=True):
            x = step(x, cos, sin, *_stores(layer), *tensors)
        return x


class CompiledBlock(nn.Module):
    """A block of which what is between its products runs compiled.

    Args:
        one: for one token of one row; None leaves the block as it is.
        several: for several rows or positions; likewise.
    """

    def __init__(self, block: nn.Module, one: "Between | None", several: "Between | None") -> None:
        super().__init__()
        self.block = block
        self._one, self._several = one, several

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, layer: PagedLayer | None
    ) -> Tensor:
        between = self._one if x.numel() == x.shape[-1] else self._several
        if layer is None or between is None:
            result: Tensor = self.block(x, cos, sin, mask, layer)
            return result
        return between.run(self.block, x, cos, sin, mask, layer)


class Between:
    """What runs between the products of a block, compiled.

    What a product takes is "ready": one tensor, its rows; or two, where it takes rows rounded to 8
    bits, those and their scales, which its result still lacks.

    Args:
        attention: of any layer.
        eps: of the norms.
        rounding: of the rows that products take; None takes them as they are.
        several: for several rows or positions, or for one token of one row.
        facts: see `Step`.
    """

    def __init__(
        self,
        attention: JoinedAttention,
        eps: float,
        facts: str,
        *,
        rounding: Rounding | None,
        several: bool,
    ) -> None:
        self._attention = attention
        self._rounded = rounded = rounding is not None

        def ready(x: Tensor) -> tuple[Tensor, ...]:
            return (x,) if rounding is None else rounding.apply(x)

        def whole(product: Tensor, *scale: Tensor) -> Tensor:
            return scaled_rows(product, scale[0]) if rounded else product

        def enter(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return ready(rms_norm(x, weight, eps))

        def mix(joined: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            stores, scale = rest[:_N_STORES], rest[_N_STORES:]
            parts = attention.split(whole(joined, *scale)[:, None])
            return ready(attention.mix(*parts, cos, sin, None, _layer(*stores)).flatten(0, 1))

        def turn(x: Tensor, out: Tensor, weight: Tensor, *scale: Tensor) -> tuple[Tensor, ...]:
            x = x + whole(out, *scale)
            return x, *enter(x, weight)

        def activate(gate_up: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
            if not rounded:
                return (swiglu(*gate_up.chunk(2, -1)),)
            scale, factor = more
            made = fusion_barrier(swiglu(*whole(gate_up, scale).chunk(2, -1)).float())
            return ready(spread(made, factor))

        def leave(x: Tensor, out: Tensor, *scale: Tensor) -> Tensor:
            return x + whole(out, *scale)

        rows = [0] if several else []
        step = partial(Step, facts=facts)
        self._ready = step("ready", function=ready, varying={0: rows})
        self._whole = step("whole", function=whole, varying={0: rows, 1: rows})
        self._enter = step("enter", function=enter, varying={0: rows})
        by_row = dict.fromkeys((0, 1, 2, 7, 8, 10, 11), rows)
        self._mix = step("mix", function=mix, varying={**_CACHE, **by_row, 9: [*rows, 1]})
        self._turn = step("turn", function=turn, varying={0: rows, 1: rows, 3: rows})
        self._activate = step("activate", function=activate, varying={0: rows, 1: rows})
        self._leave = step("leave", function=leave, varying={0: rows, 1: rows, 2: rows})

    def run(
        self,
        block: Any,
        x_btd: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        layer: PagedLayer,
    ) -> Tensor:
        """As the block's own forward pass."""
        x = x_btd.reshape(-1, x_btd.shape[-1])
        rows, *scale = self._enter(x, block.input_layernorm.weight)
        joined = self._product(block.self_attn.qkv_proj, rows)
        if layer.view.attend_one is not None:
            rows, *mixed_scale = self._mix(joined, cos, sin, *_stores(layer), *scale)
        else:
            if self._rounded:
                joined = self._whole(joined, *scale)
            parts = self._attention.split(joined.unflatten(0, x_btd.shape[:-1]))
            mixed = block.self_attn.mix(*parts, cos, sin, mask, layer).flatten(0, 1)
            rows, *mixed_scale = self._ready(mixed) if self._rounded else (mixed,)
        out = self._product(block.self_attn.o_proj, rows)
        weight = block.post_attention_layernorm.weight
        x, rows, *scale = self._turn(x, out, weight, *mixed_scale)
        gate_up = self._product(block.mlp.gate_up_proj, rows)
        down = block.mlp.down_proj
        more = [*scale, down.factor] if self._rounded else []
        rows, *scale = self._activate(gate_up, *more)
        result: Tensor = self._leave(x, self._product(down, rows), *scale)
        return result.view_as(x_btd)

    def _product(self, module: Any, rows: Tensor) -> Tensor:
        product: Tensor = module.multiply(rows) if self._rounded else module(rows)
        return product


def compiled_blocks(blocks: nn.ModuleList, facts: str, *, several: bool) -> nn.ModuleList:
    """The blocks, compiled between their products where those are joined.

    Args:
        facts: see `Step`.
        several: whether for several rows or positions too, not only for what `OneRow` cannot hold.
    """
    first: Any = blocks[0]
    if not isinstance(first.self_attn, JoinedAttention):
        return blocks
    product = first.self_attn.o_proj
    rounding = product.rounding if isinstance(product, Int8Rows) else None
    between = partial(Between, first.self_attn, first.input_layernorm.eps, facts, rounding=rounding)
    one = None if OneRow.fits(blocks) else between(several=False)
    many = between(several=True) if several else None
    if one is None and many is None:
        return blocks
    return nn.ModuleList(CompiledBlock(block, one, many) for block in blocks)
