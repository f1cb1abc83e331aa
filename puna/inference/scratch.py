"""Memory that compiled code works in, kept from call to call.

Inductor's code allocates what it works in at each call and takes views of it: for one block of a
model thirty tensors, a tenth of the time of a token of a small one (docs/log.md).
"""

import threading
from collections.abc import Callable, Sequence
from itertools import repeat
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor

from puna.inference.kept_code import Code

_EMPTY, _VIEW = "empty_strided_cpu", "reinterpret_tensor"  # as the code calls what makes tensors


class _Made(NamedTuple):
    """A tensor, and how the code asked for it: by its layout, and of which other it is a view."""

    tensor: Tensor
    layout: tuple[Any, ...]
    base: Tensor | None


class Scratch:
    """``code``, in the same memory as the call before where it asks for the same tensors in turn.

    Where it does not, all is made anew and kept by the next call. What leaves the code is always
    made anew, and so is a view of an input.

    Args:
        code: Inductor's. A copy of it is made, whose memory no one else uses.
    """

    def __init__(self, code: Code) -> None:
        self._plain = code
        self._code: Code | None = None
        self._kept: list[_Made | None] = []  # in the order of the code; None is to be made anew
        self._made: list[_Made] = []
        self._next: Callable[[], _Made | None] = _nothing
        self._one_at_a_time = threading.Lock()
        function = getattr(code, "__func__", None)
        if isinstance(function, FunctionType) and _EMPTY in function.__globals__:
            scope = {**function.__globals__, **self._makers(function.__globals__)}
            copied = FunctionType(function.__code__, scope)
            self._code = copied.__get__(getattr(code, "__self__", None))

    @property
    def keeps(self) -> bool:
        """Whether the next call finds memory of an earlier one."""
        return any(self._kept)

    def _makers(self, scope: dict[str, Any]) -> dict[str, Any]:
        empty: Any = scope[_EMPTY]
        view: Any = scope.get(_VIEW)

        def kept_empty(*layout: Any) -> Tensor:
            found = self._next()
            if found is not None:
                if found.layout == layout:
                    return found.tensor
                self._forget()
            tensor: Tensor = empty(*layout)
            self._made.append(_Made(tensor, layout, None))
            return tensor

        def kept_view(base: Tensor, *layout: Any) -> Tensor:
            found = self._next()
            if found is not None:
                if found.base is base and found.layout == layout:
                    return found.tensor
                self._forget()
            tensor: Tensor = view(base, *layout)
            self._made.append(_Made(tensor, layout, base))
            return tensor

        return {_EMPTY: kept_empty, _VIEW: kept_view}

    def __call__(self, inputs: list[Any]) -> Sequence[Any]:
        """The code's outputs; it empties ``inputs``."""
        if self._code is None or not self._one_at_a_time.acquire(blocking=False):
            return self._plain(inputs)
        try:
            first = not self._kept
            self._next = _nothing if first else iter(self._kept).__next__
            outputs = self._code(inputs)
            if first:
                self._kept = self._keep(outputs)
            return outputs
        finally:
            self._made.clear()
            self._one_at_a_time.release()

    def _forget(self) -> None:
        self._kept, self._next = [], _nothing

    def _keep(self, outputs: Sequence[Any]) -> list[_Made | None]:
        leaving = {_memory(each) for each in outputs if isinstance(each, Tensor)}
        own = {_memory(each.tensor) for each in self._made if each.base is None} - leaving
        return [each if _memory(each.tensor) in own else None for each in self._made]


_nothing = repeat(None).__next__


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
