"""Memory that compiled code works in, kept from call to call.

Inductor's code allocates what it works in at each call and takes views of it: for one block of a
model thirty tensors, a tenth of the time of a token of a small one (docs/log.md). Which ones they
are follows from the sizes it is given.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from types import FunctionType
from typing import Any

from torch import Tensor

_EMPTY, _VIEW = "empty_strided_cpu", "reinterpret_tensor"  # as the code calls what makes tensors
Code = Callable[[list[Any]], Sequence[Any]]


class Scratch:
    """``code``, in the same memory as the call before where the sizes are the same.

    What leaves the code is made anew at each call, and so is every view of an input.

    Args:
        code: Inductor's. A copy of it is made, whose memory no one else uses.
    """

    def __init__(self, code: Code) -> None:
        self._plain = code
        self._code: Code | None = None
        self._sizes: list[int] | None = None
        self._kept: list[Tensor | None] = []  # in the order of the code; None is to be made anew
        self._made: list[Tensor] = []
        self._empties: list[Tensor] = []
        self._next: Callable[[], Tensor | None] = repeat(None).__next__
        self._one_at_a_time = threading.Lock()
        function = getattr(code, "__func__", None)
        if isinstance(function, FunctionType) and _EMPTY in function.__globals__:
            scope = {**function.__globals__, **self._makers(function.__globals__)}
            copied = FunctionType(function.__code__, scope)
            self._code = copied.__get__(getattr(code, "__self__", None))

    def _makers(self, scope: dict[str, Any]) -> dict[str, Any]:
        empty: Any = scope[_EMPTY]
        view: Any = scope.get(_VIEW)
        made, empties = self._made, self._empties

        def kept_empty(*how: Any) -> Tensor:
            found = self._next()
            if found is None:
                found = empty(*how)
                made.append(found)
                empties.append(found)
            return found

        def kept_view(*how: Any) -> Tensor:
            found = self._next()
            if found is None:
                found = view(*how)
                made.append(found)
            return found

        return {_EMPTY: kept_empty, _VIEW: kept_view}

    def __call__(self, inputs: list[Any], sizes: list[int]) -> Sequence[Any]:
        """The code's outputs.

        Args:
            inputs: which the code empties.
            sizes: the integers among them.
        """
        if self._code is None or not self._one_at_a_time.acquire(blocking=False):
            return self._plain(inputs)
        try:
            same = sizes == self._sizes
            self._next = self._in_turn() if same else repeat(None).__next__
            outputs = self._code(inputs)
            if not same:
                self._kept, self._sizes = self._keep(outputs), sizes
            return outputs
        finally:
            self._made.clear()
            self._empties.clear()
            self._one_at_a_time.release()

    def _in_turn(self) -> Callable[[], Tensor | None]:
        turns: Iterator[Tensor | None] = iter(self._kept)
        return turns.__next__

    def _keep(self, outputs: Sequence[Any]) -> list[Tensor | None]:
        leaving = {_memory(each) for each in outputs if isinstance(each, Tensor)}
        own = {_memory(each) for each in self._empties} - leaving
        return [each if _memory(each) in own else None for each in self._made]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
