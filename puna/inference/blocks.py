"""Blocks whose decoding is compiled: whole for one text, between their products for several.

All layers share the compiled functions, with their tensors as arguments.
"""

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import functional_call

from puna.inference.attention import attend_one, fusion_barrier
from puna.inference.cache import PagedLayer, PagedView
from puna.inference.compiled import CHUNK, CHUNK_OF_ROWS, Step, compiles
from puna.inference.integers import scaled_rows
from puna.inference.packed import Product
from puna.inference.rotation import spread
from puna.inference.weights import Int8Rows, JoinedAttention
from puna.model.linear import rms_norm
from puna.model.llama import Trunk, swiglu
from puna.model.rope import apply_rope


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
        trunk: of the model.
        facts: see `Step`.

    Attributes:
        adapts: whether hooks on the products run.
    """

    adapts = False

    def __init__(self, trunk: Trunk, facts: str) -> None:
        blocks = trunk.layers
        first: Any = blocks[0]
        names = list(first.state_dict())

        def whole(x: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> Any:
            tensors = dict(zip(names, rest[_N_STORES:], strict=True))
            layer = _layer(*rest[:_N_STORES])
            return functional_call(first, tensors, (x, cos, sin, None, layer))

        self._step = Step("block", facts, whole, {**_CACHE, 9: [1]})
        self._tensors = [tuple(block.state_dict().values()) for block in blocks]
        self._norm = trunk.norm

    @staticmethod
    def fits(trunk: Trunk) -> bool:
        """Whether a compiled function can hold the blocks' products."""
        first: Any = trunk.layers[0]
        return compiles(first.self_attn.o_proj)

    def __call__(
        self, x_btd: Tensor, cos: Tensor, sin: Tensor, layers: Sequence[PagedLayer]
    ) -> Tensor:
        """Final hidden states (1, 1, dim), in fp32: fewer conversions, less rounding.

        Args:
            x_btd: embeddings (1, 1, dim).
            cos, sin: of RoPE, (1, 1, 1, head_dim / 2).
        """
        x, step = x_btd.float(), self._step
        for layer, tensors in zip(layers, self._tensors, strict=True):
            x = step(x, cos, sin, *_stores(layer), *tensors)
        hidden: Tensor = self._norm(x)
        return hidden


class _Parts(NamedTuple):
    """What `Between` asks of a block, found once: modules look their parts up by name."""

    first_norm: Tensor
    """Its weight (dim,), as those of the others."""
    joined: Product
    """For queries, keys and values."""
    out: Product
    """Of what the heads read, into the stream."""
    second_norm: Tensor
    gate_up: Product
    factor: tuple[Tensor, ...]
    """What `spread` needs before a product of rounded rows."""
    down: Product
    """Of what SwiGLU makes, into the stream."""
    next_norm: Tensor | None
    """The first norm of the block behind it, if there is one."""


class Between:
    """Blocks with joined products (see `fits`): what runs between the products is compiled.

    What a product takes is "ready": one tensor, its rows; or two, where it takes rows rounded to 8
    bits, those and their scales, which its result still lacks.

    Args:
        trunk: of the model.
        facts: see `Step`.
        several: for several rows or positions, or for one token of one row.

    Attributes:
        adapts: see `OneRow`; rounded rows go from product to product, past the hooks.
    """

    def __init__(self, trunk: Trunk, facts: str, *, several: bool) -> None:
        first: Any = trunk.layers[0]
        attention: JoinedAttention = first.self_attn
        eps = first.input_layernorm.eps
        rounding = attention.o_proj.rounding if isinstance(attention.o_proj, Int8Rows) else None
        self._rounded = rounded = rounding is not None
        self.adapts = not rounded
        self._norm = trunk.norm.weight
        blocks = list(trunk.layers)
        self._parts = [
            self._parts_of(block, after)
            for block, after in zip_longest(blocks, blocks[1:])  # None behind the last
        ]

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

        def heads(joined: Tensor, cos: Tensor, sin: Tensor, *scale: Tensor) -> tuple[Tensor, ...]:
            parts = attention.split(whole(joined, *scale))
            queries, keys, values = (
                part.unflatten(-1, (-1, attention.head_dim)).contiguous() for part in parts
            )
            return apply_rope(queries, cos, sin), apply_rope(keys, cos, sin), values

        def turn(x: Tensor, out: Tensor, weight: Tensor, *scale: Tensor) -> tuple[Tensor, ...]:
            x = x + whole(out, *scale)
            return x, *enter(x, weight)

        def activate(gate_up: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
            if not rounded:
                return (swiglu(*gate_up.chunk(2, -1)),)
            scale, factor = more
            made = fusion_barrier(swiglu(*whole(gate_up, scale).chunk(2, -1)).float())
            return ready(spread(made, factor))

        def leave(x: Tensor, out: Tensor, weight: Tensor, *scale: Tensor) -> Tensor:
            return rms_norm(x + whole(out, *scale), weight, eps)

        rows = [0] if several else []
        step = partial(Step, facts=facts, chunk=CHUNK_OF_ROWS if several else CHUNK)
        self._ready = step("ready", function=ready, varying={0: rows})
        self._heads = step("heads", function=heads, varying=dict.fromkeys((0, 1, 2, 3), rows))
        self._enter = step("enter", function=enter, varying={0: rows})
        by_row = dict.fromkeys((0, 1, 2, 7, 8, 10, 11), rows)
        self._mix = step("mix", function=mix, varying={**_CACHE, **by_row, 9: [*rows, 1]})
        self._turn = step("turn", function=turn, varying={0: rows, 1: rows, 3: rows})
        self._activate = step("activate", function=activate, varying={0: rows, 1: rows})
        self._leave = step("leave", function=leave, varying={0: rows, 1: rows, 3: rows})

    @staticmethod
    def fits(trunk: Trunk) -> bool:
        """Whether the blocks' products are joined."""
        first: Any = trunk.layers[0]
        return isinstance(first.self_attn, JoinedAttention)

    def _parts_of(self, block: Any, after: Any) -> _Parts:
        attention, mlp = block.self_attn, block.mlp

        def product(module: Any) -> Product:
            found: Product = module.multiply if self._rounded else module
            return found

        return _Parts(
            block.input_layernorm.weight,
            product(attention.qkv_proj),
            product(attention.o_proj),
            block.post_attention_layernorm.weight,
            product(mlp.gate_up_proj),
            (mlp.down_proj.factor,) if self._rounded else (),
            product(mlp.down_proj),
            None if after is None else after.input_layernorm.weight,
        )

    def __call__(
        self, x_btd: Tensor, cos: Tensor, sin: Tensor, layers: Sequence[PagedLayer]
    ) -> Tensor:
        """Final hidden states (batch, time, dim).

        Args:
            x_btd: embeddings.
            cos, sin: of RoPE, (batch, 1, time, head_dim / 2).
        """
        shape = x_btd.shape
        x = x_btd.flatten(0, 1)
        rows, *scale = self._enter(x, self._parts[0].first_norm)
        for part, layer in zip(self._parts, layers, strict=True):
            joined = part.joined(rows)
            if layer.view.attend_one is not None:
                rows, *scale = self._mix(joined, cos, sin, *_stores(layer), *scale)
            else:
                angles = (each.view(len(x), 1, -1) for each in (cos, sin))  # of each token
                heads = self._heads(joined, *angles, *scale)
                by_row = (each.unflatten(0, shape[:-1]).transpose(1, 2) for each in heads)
                rows = layer.attend(*by_row).transpose(1, 2).flatten(2).flatten(0, 1)
                if self._rounded:
                    rows, *scale = self._ready(rows)
            x, rows, *scale = self._turn(x, part.out(rows), part.second_norm, *scale)
            rows, *scale = self._activate(part.gate_up(rows), *scale, *part.factor)
            down = part.down(rows)
            if part.next_norm is not None:
                x, rows, *scale = self._turn(x, down, part.next_norm, *scale)
        hidden: Tensor = self._leave(x, down, self._norm, *scale)
        return hidden.view(shape)
