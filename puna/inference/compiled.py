"""Compiled pieces of the model on CPU: what runs between and around the large products.

All layers share one compiled function, with their tensors as arguments. It is called without
`torch.compile`'s checks of its arguments, which cost as much as a tenth of a layer's time; so what
may vary is marked here, and all else must be as it was at the first call.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from puna.inference.adapters import Adapters
from puna.inference.attention import attend_one
from puna.inference.cache import AttendOne, PagedLayer, PagedView
from puna.inference.weights import JoinedAttention, JoinedFeedForward
from puna.model.linear import RMSNorm, rms_norm
from puna.model.llama import swiglu

_OPTIONS: dict[str, Any] = {
    "guard_filter_fn": lambda guards: [False for _ in guards],
    "assert_indirect_indexing": False,
    "cpp.enable_floating_point_contract_flag": "fast",
    "size_asserts": False,
    "alignment_asserts": False,
}


class Step:
    """A function compiled at its first call.

    Args:
        function: of tensors, and dictionaries of tensors; pure but for writes into its arguments.
        varying: for the number of an argument, which of its sizes may change from call to call;
            at the first call they must be above 1.
    """

    def __init__(
        self, function: Callable[..., Tensor], varying: dict[int, Sequence[int]] | None = None
    ) -> None:
        self._function = function
        self._varying = varying or {}
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, *args: Any) -> Tensor:
        if self._compiled is None:
            for number, sizes in self._varying.items():
                for size in sizes:
                    torch._dynamo.mark_dynamic(args[number], size)
            self._compiled = _compile(self._function, args)
        return self._compiled(*args)


def _compile(function: Callable[..., Tensor], args: Sequence[Any]) -> Callable[..., Tensor]:
    compiled: Any = torch.compile(function, fullgraph=True, options=_OPTIONS)
    # equal sizes of the first call are not taken for the same size
    settings: Any = torch.fx.experimental._config
    with settings.patch(use_duck_shape=False):
        ahead = compiled.aot_compile((tuple(args), {}))
    ahead.disable_guard_check()
    run: Callable[..., Tensor] = ahead.fn
    return run


def _stores(layer: PagedLayer) -> tuple[Tensor | None, ...]:
    view = layer.view
    stores = (layer.keys, layer.values, layer.key_scale, layer.value_scale)
    return (*stores, view.slots, view.seen, view.lengths)


def _layer(
    # as `_stores` gives them: one token of each row needs no more
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    slots: Tensor,
    seen: Tensor,
    lengths: Tensor,
) -> PagedLayer:
    view = PagedView(
        slots=slots,
        table=None,
        seen=seen,
        lengths=lengths,
        mask=None,
        before=0,
        page_size=0,
        attend_one=attend_one,
    )
    return PagedLayer(keys, values, key_scale, value_scale, view)


class CompiledBlock(nn.Module):
    """A block that runs whole as one compiled function for one token of one row.

    For more, and with adapters, its products run as they are and what is between them compiled.
    """

    def __init__(self, block: nn.Module, step: Step, adapters: Adapters) -> None:
        super().__init__()
        self.block = block
        self._adapters = adapters
        self._tensors = dict(block.state_dict())
        self._step = step

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, layer: PagedLayer | None
    ) -> Tensor:
        if layer is None or x.numel() > x.shape[-1] or self._adapters.in_use:
            result: Tensor = self.block(x, cos, sin, mask, layer)
            return result
        x = x.float()  # the stream of one token stays in fp32: fewer conversions, less rounding
        return self._step(self._tensors, x, cos, sin, *_stores(layer))


class _CompiledNorm(nn.Module):
    def __init__(self, norm: RMSNorm, step: Step) -> None:
        super().__init__()
        self.norm = norm
        self._step = step

    def forward(self, x: Tensor) -> Tensor:
        if _inside() or x.numel() == x.shape[-1]:
            result: Tensor = self.norm(x)
            return result
        return self._step(x.reshape(-1, x.shape[-1]), self.norm.weight).view_as(x)


class _CompiledFeedForward(nn.Module):
    def __init__(self, mlp: JoinedFeedForward, activate: Step) -> None:
        super().__init__()
        self.mlp = mlp
        self._activate = activate

    def forward(self, x: Tensor) -> Tensor:
        if _inside() or x.numel() == x.shape[-1]:
            result: Tensor = self.mlp(x)
            return result
        gate_up = self.mlp.gate_up_proj(x).flatten(0, -2)
        return self.mlp.down_proj(self._activate(gate_up)).view_as(x)


class _CompiledAttention(nn.Module):
    def __init__(self, attention: JoinedAttention, mix: Step) -> None:
        super().__init__()
        self.attention = attention
        self._mix = mix

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, layer: PagedLayer | None
    ) -> Tensor:
        one_token = layer is not None and layer.view.attend_one is not None
        if _inside() or not one_token or len(x) == 1:
            result: Tensor = self.attention(x, cos, sin, mask, layer)
            return result
        assert layer is not None
        mixed = self._mix(self.attention.qkv_proj(x), cos, sin, *_stores(layer))
        return self.attention.o_proj(mixed)


def _inside() -> bool:
    return torch.compiler.is_compiling()


def compiled_blocks(blocks: nn.ModuleList, adapters: Adapters) -> nn.ModuleList:
    """The blocks, compiled."""
    first: Any = blocks[0]
    attention, eps = first.self_attn, first.input_layernorm.eps

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, eps)

    def activate(gate_up: Tensor) -> Tensor:
        return swiglu(*gate_up.chunk(2, -1))

    def mix(joined: Tensor, cos: Tensor, sin: Tensor, *stores: Any) -> Tensor:
        return attention.mix(*attention.split(joined), cos, sin, None, _layer(*stores))

    def whole(tensors: dict[str, Tensor], x: Tensor, cos: Tensor, sin: Tensor, *stores: Any) -> Any:
        return functional_call(first, tensors, (x, cos, sin, None, _layer(*stores)))

    # numbers of `_stores`, after three or four other arguments: slots 7, seen 8, lengths 9
    step = Step(whole, {9: [1]})
    if isinstance(attention, JoinedAttention):
        norm_step, activate_step = Step(norm, {0: [0]}), Step(activate, {0: [0]})
        mix_step = Step(mix, {0: [0], 1: [0], 2: [0], 7: [0], 8: [0, 1], 9: [0]})
        block: Any
        for block in blocks:
            block.self_attn = _CompiledAttention(block.self_attn, mix_step)
            block.mlp = _CompiledFeedForward(block.mlp, activate_step)
            block.input_layernorm = _CompiledNorm(block.input_layernorm, norm_step)
            block.post_attention_layernorm = _CompiledNorm(
                block.post_attention_layernorm, norm_step
            )
    return nn.ModuleList(CompiledBlock(block, step, adapters) for block in blocks)


class CompiledHead(nn.Module):
    """The head, compiled for one row."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self._tensors = dict(head.state_dict())
        self._step = Step(lambda tensors, x: functional_call(head, tensors, (x,)))

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[-1]:
            result: Tensor = self.head(x)
            return result
        return self._step(self._tensors, x.float())  # bf16 after a prompt, fp32 after a token


@cache
def compiled_attend_one() -> AttendOne:
    """`attend_one`, compiled for any number of rows."""
    options: dict[str, Any] = {"assert_indirect_indexing": False}
    compiled: AttendOne = torch.compile(attend_one, dynamic=True, fullgraph=True, options=options)
    return compiled
