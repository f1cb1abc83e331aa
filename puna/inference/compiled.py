"""Functions compiled for CPU and called without `torch.compile`'s checks of their arguments.

The checks cost as much as a tenth of a layer's time; so what may vary is marked here, and all else
must be as it was at the first call.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from puna.inference.attention import attend_one
from puna.inference.cache import AttendOne
from puna.inference.shortcut import Shortcut

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
        function: of tensors, or None, to one or several; pure but for writes into its arguments.
        varying: for the number of an argument, if there is one, which of its sizes may change from
            call to call; at the first call they must be above 1.
    """

    def __init__(
        self, function: Callable[..., Any], varying: dict[int, Sequence[int]] | None = None
    ) -> None:
        self._function = function
        self._varying = varying or {}
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._compiled is None:
            for number, sizes in self._varying.items():
                if number < len(args):
                    for size in sizes:
                        torch._dynamo.mark_dynamic(args[number], size)
            self._compiled = _compile(self._function, args)
        return self._compiled(*args)


def _compile(function: Callable[..., Any], args: Sequence[Any]) -> Callable[..., Any]:
    compiled: Any = torch.compile(function, fullgraph=True, options=_OPTIONS)
    # equal sizes of the first call are not taken for the same size
    settings: Any = torch.fx.experimental._config
    with settings.patch(use_duck_shape=False):
        ahead = compiled.aot_compile((tuple(args), {}))
    ahead.disable_guard_check()
    return Shortcut(ahead.fn)


class CompiledHead(nn.Module):
    """The head, compiled for one row."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        state = head.state_dict()
        self._tensors = list(state.values())

        def call(x: Tensor, *tensors: Tensor) -> Any:
            return functional_call(head, dict(zip(state, tensors, strict=True)), (x,))

        self._step = Step(call)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[-1]:
            result: Tensor = self.head(x)
            return result
        # bf16 after a prompt, fp32 after a token
        compiled: Tensor = self._step(x.float(), *self._tensors)
        return compiled


@cache
def compiled_attend_one() -> AttendOne:
    """`attend_one`, compiled for any number of rows."""
    options: dict[str, Any] = {"assert_indirect_indexing": False}
    compiled: AttendOne = torch.compile(attend_one, dynamic=True, fullgraph=True, options=options)
    return compiled
