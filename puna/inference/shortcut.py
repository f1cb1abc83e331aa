"""The short way to a compiled function: past the Python that torch puts around it.

A call of a compiled function passes through half a dozen layers of torch before it reaches
Inductor's code, which for one block of a small model cost a fifth of its time (docs/log.md). What
that code is given, some of the arguments' tensors and some of their sizes, is learned by watching
calls; from then on it is given the same without the layers.
"""

import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from puna.inference.kept_code import CodeShelf
from puna.inference.scratch import Scratch

_watching = threading.Lock()


class _Size(NamedTuple):
    """A size or a stride of an argument."""

    argument: int
    dimension: int
    stride: bool

    def of(self, args: Sequence[Any]) -> int:
        tensor = args[self.argument]
        return int(tensor.stride(self.dimension) if self.stride else tensor.shape[self.dimension])


class _Call(NamedTuple):
    graph: Any  # CompiledFxGraph
    inputs: list[Any]
    outputs: Sequence[Any]


class Shortcut:
    """A compiled function of tensors, or None, called the short way once that is known to be right.

    An integer that the code is given may be one of several sizes, equal so far. All stay
    candidates: where they differ in a call, it goes the long way and more is learned.

    Args:
        compiled: makes the compiled function, without guards; its code changes no arguments'
            metadata. Called when it is needed.
        shelf: where what was learned is kept, and found.
    """

    def __init__(self, compiled: Callable[[], Callable[..., Any]], shelf: CodeShelf) -> None:
        self._compiled = compiled
        self._shelf = shelf
        self._run: Callable[..., Any] | None = None
        self._code: Scratch | None = None
        self._inputs: list[int | list[_Size]] = []
        self._tensors: Callable[[Sequence[Any]], Sequence[Any]] = tuple  # those of the inputs
        self._sizes: list[tuple[int, list[_Size]]] = []  # the others, and their places
        # the arguments whose shapes, or strides where True, tell the sizes; the latest of them, and
        # the places and sizes they told: equal ones tell the same
        self._sized: list[tuple[int, bool]] = []
        self._latest: tuple[list[Any], list[tuple[int, int]]] = ([], [])
        self._outputs: list[int] = []
        self._single = True
        self._learnable = True
        if kept := shelf.load():
            self._code = Scratch(kept.code)
            self._take([_from_json(source) for source in kept.rule["inputs"]])
            self._outputs, self._single = kept.rule["outputs"], kept.rule["single"]

    def __call__(self, *args: Any) -> Any:
        if self._code is None:
            return self._watched(args) if self._learnable else self._the_long_way(args)
        inputs = list(self._tensors(args))
        shapes, numbers = self._latest
        now = [args[n].stride() if strides else args[n].shape for n, strides in self._sized]
        if now != shapes:  # to ask for every size in every call takes longer than some code
            found = self._numbers(args)
            if found is None:
                return self._watched(args)
            self._latest, numbers = (now, found), found
        for place, number in numbers:
            inputs.insert(place, number)
        outputs = self._code(inputs)
        if self._single:
            return outputs[self._outputs[0]]
        return tuple(outputs[place] for place in self._outputs)

    def _numbers(self, args: Sequence[Any]) -> list[tuple[int, int]] | None:
        """The inputs that are sizes, with their places; None where candidates differ."""
        numbers = []
        for place, sizes in self._sizes:
            found = {size.of(args) for size in sizes}
            if len(found) > 1:
                return None
            numbers.append((place, found.pop()))
        return numbers

    def _take(self, inputs: list[int | list[_Size]]) -> None:
        self._inputs = inputs
        places = [source for source in inputs if isinstance(source, int)]
        # for a single place `itemgetter` gives no tuple
        self._tensors = itemgetter(*places) if len(places) > 1 else lambda args: [args[places[0]]]
        self._sizes = [(n, source) for n, source in enumerate(inputs) if isinstance(source, list)]
        asked = {(size.argument, size.stride) for _, sizes in self._sizes for size in sizes}
        self._sized, self._latest = sorted(asked), ([], [])

    def _the_long_way(self, args: Sequence[Any]) -> Any:
        if self._run is None:
            self._run = self._compiled()
        return self._run(*args)

    def _watched(self, args: Sequence[Any]) -> Any:
        from torch._inductor.output_code import CompiledFxGraph  # a second, not for kept code

        calls: list[_Call] = []
        thread = threading.get_ident()
        with _watching:
            kind: Any = CompiledFxGraph
            original = kind.__call__

            def watch(graph: CompiledFxGraph, inputs: Sequence[Any]) -> Any:
                given = list(inputs)  # the code empties the list
                outputs = original(graph, inputs)
                if threading.get_ident() == thread:
                    calls.append(_Call(graph, given, outputs))
                return outputs

            kind.__call__ = watch
            try:
                result = self._the_long_way(args)
            finally:
                kind.__call__ = original
        self._learnable = len(calls) == 1 and self._learn(calls[0], args, result)
        if not self._learnable:
            self._code = None
        return result

    def _learn(self, call: _Call, args: Sequence[Any], result: Any) -> bool:
        """Whether the call says how to make its inputs and its result."""
        known: Sequence[int | list[_Size] | None] = self._inputs or [None] * len(call.inputs)
        inputs = [
            _source(given, args, former) for given, former in zip(call.inputs, known, strict=True)
        ]
        self._single = isinstance(result, Tensor)
        results = [result] if self._single else list(result)
        outputs = [_place(each, call.outputs) for each in results]
        if None in outputs or not all(source is not None and source != [] for source in inputs):
            return False
        self._take([source for source in inputs if source is not None])
        self._outputs = [place for place in outputs if place is not None]
        code: Any = call.graph.current_callable
        if code is None:
            return False
        self._code = Scratch(code)
        if not call.graph.constants:
            rule = {"inputs": self._inputs, "outputs": self._outputs, "single": self._single}
            self._shelf.save(call.graph.source_code, code, rule)
        return True


def _from_json(source: Any) -> int | list[_Size]:
    return source if isinstance(source, int) else [_Size(*size) for size in source]


def _place(wanted: Any, among: Sequence[Any]) -> int | None:
    return next((place for place, each in enumerate(among) if each is wanted), None)


def _source(
    given: Any, args: Sequence[Any], former: int | list[_Size] | None
) -> int | list[_Size] | None:
    """The argument that ``given`` is, or the sizes it may be."""
    if isinstance(given, Tensor):
        return _place(given, args)
    if isinstance(former, list):
        sizes = former
    else:
        sizes = [
            _Size(number, dimension, stride)
            for number, argument in enumerate(args)
            if isinstance(argument, Tensor)
            for dimension in range(argument.ndim)
            for stride in (False, True)
        ]
    return [size for size in sizes if size.of(args) == given]
