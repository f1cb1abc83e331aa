"""Functions compiled for CPU and called without `torch.compile`'s checks of their arguments.

The checks cost as much as a tenth of a layer's time; so what may vary is marked here, and all else
must be as it was at the first call.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from puna.inference.attention import attend_one
from puna.inference.kept_code import CodeShelf
from puna.inference.kernels import VEC_ISA_OK
from puna.inference.shortcut import Shortcut
from puna.inference.weights import Int8Rows

_OPTIONS: dict[str, Any] = {
    "guard_filter_fn": lambda guards: [False for _ in guards],
    "assert_indirect_indexing": False,
    "cpp.enable_floating_point_contract_flag": "fast",
    "size_asserts": False,
    "alignment_asserts": False,
    "cpp.vec_isa_ok": VEC_ISA_OK,
}
# Numbers that a loop must have for each thread to be shared by them: else one is done before they
# have met. Between products of several rows they are awake (docs/log.md).
CHUNK, CHUNK_OF_ROWS = 2048, 512


class Step:
    """A function compiled at its first call.

    Args:
        name: under which its code is kept.
        facts: what shapes its code beside its arguments.
        function: of tensors, or None, to one or several; pure but for writes into its arguments.
        varying: for the number of an argument, if there is one, which of its sizes may change from
            call to call; at the first call they must be above 1.
        chunk: numbers that a loop must have for each thread to be shared by them.
    """

    def __init__(
        self,
        name: str,
        facts: str,
        function: Callable[..., Any],
        varying: dict[int, Sequence[int]] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._name, self._facts, self._chunk = name, facts, chunk
        self._function = function
        self._varying = varying or {}
        self._compiled: Shortcut | None = None

    def __call__(self, *args: Any) -> Any:
        if self._compiled is None:
            facts = f"{self._facts} {self._chunk}"
            shelf = CodeShelf(self._name, facts, args, self._varying)
            self._compiled = Shortcut(partial(self._compile, args), shelf)
        return self._compiled(*args)

    def _compile(self, args: Sequence[Any]) -> Callable[..., Any]:
        for number, sizes in self._varying.items():
            if number < len(args) and args[number] is not None:
                for size in sizes:
                    torch._dynamo.mark_dynamic(args[number], size)
        return _compile(self._function, args, self._chunk)


def _compile(function: Callable[..., Any], args: Sequence[Any], chunk: int) -> Callable[..., Any]:
    options = _OPTIONS | {"cpp.min_chunk_size": chunk}
    compiled: Any = torch.compile(function, fullgraph=True, options=options)
    # equal sizes of the first call are not taken for the same size
    settings: Any = torch.fx.experimental._config
    with settings.patch(use_duck_shape=False):
        ahead = compiled.aot_compile((tuple(args), {}))
    ahead.disable_guard_check()
    run: Callable[..., Any] = ahead.fn
    return run


def compiles(product: nn.Module) -> bool:
    """Whether a compiled function can hold this product of one row."""
    return not (isinstance(product, Int8Rows) and product.packed_bytes)


class CompiledHead(nn.Module):
    """The head, compiled for one row; for several only what follows a product of integers."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        state = head.state_dict()
        self._tensors = list(state.values())

        def call(x: Tensor, *tensors: Tensor) -> Any:
            return functional_call(head, dict(zip(state, tensors, strict=True)), (x,))

        self._step = Step("head", repr(head), call)

        def scaled(product: Tensor, scale: Tensor) -> Tensor:
            return product.float() * scale  # tokens are chosen in fp32 anyway

        self._scaled = Step("scaled", "", scaled, {0: [0], 1: [0]})

    def forward(self, x: Tensor) -> Tensor:
        several = x.numel() > x.shape[-1]
        if several and isinstance(self.head, Int8Rows):
            rows, scale = self.head.rounding.apply(x)
            scaled: Tensor = self._scaled(self.head.multiply(rows), scale)
            return scaled
        if several or not compiles(self.head):
            result: Tensor = self.head(x)
            return result
        # bf16 after a prompt, fp32 after a token
        compiled: Tensor = self._step(x.float(), *self._tensors)
        return compiled


class CompiledAttention:
    """`attend_one`, compiled once for single rows and once for several."""

    def __init__(self) -> None:
        self._steps: dict[bool, Step] = {}

    def __call__(self, queries_bh1d: Tensor, *args: Any) -> Tensor:
        several = len(queries_bh1d) > 1
        if several not in self._steps:
            pages = {number: [0] for number in range(1, 5)}  # of the cache, see `attend_one`
            rows = {0: [0], 5: [0, 1], 6: [0]} if several else {5: [1]}
            self._steps[several] = Step("attend_one", "", attend_one, {**pages, **rows})
        attended: Tensor = self._steps[several](queries_bh1d, *args)
        return attended
