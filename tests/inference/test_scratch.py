"""Compiled code that works in the same memory again."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.inference.scratch import Scratch

guards: Any = torch._C._dynamo.guards

# As Inductor writes it: an inner tensor, views of it, of the input and of what is returned.
SOURCE = """
class Runner:
    def call(self, args):
        x, n = args
        n = SIZES
        args.clear()
        inner = empty_strided_cpu((n, 4), (4, 1), torch.float32)
        torch.mul(x, 2, out=inner)
        seen(inner)
        turned = reinterpret_tensor(inner, (4, n), (1, 4), 0)
        flat = reinterpret_tensor(x, (n * 4,), (1,), 0)
        out = empty_strided_cpu((n, 4), (4, 1), torch.float32)
        torch.add(turned.T, flat.view(n, 4), out=out)
        first = reinterpret_tensor(out, (4,), (1,), 0)
        return (out, first, x)
call = Runner().call
"""


class Inner:
    """The code above, what it must give, and where its inner tensor lay in each call."""

    def __init__(self, during: Callable[[], None] = lambda: None, sizes: str = "n") -> None:
        self.places: list[int] = []
        self._during = during
        scope: dict[str, Any] = {
            "torch": torch,
            "empty_strided_cpu": guards._empty_strided_cpu,
            "reinterpret_tensor": guards._reinterpret_tensor,
            "seen": self._see,
        }
        exec(SOURCE.replace("SIZES", sizes), scope)
        self.code: Callable[[list[Any]], Sequence[Any]] = scope["call"]

    def _see(self, inner: Tensor) -> None:
        self.places.append(inner.data_ptr())
        self._during()


def check(given: Sequence[Any], x: Tensor) -> None:
    out, first, same = given
    assert torch.equal(out, 3 * x)
    assert torch.equal(first, 3 * x[0])
    assert same is x


def test_calls_of_the_same_sizes_share_memory_and_nothing_that_leaves_does() -> None:
    inner = Inner()
    scratch = Scratch(inner.code)
    inputs = [torch.randn(3, 4) for _ in range(4)]
    results = [scratch([x, 3]) for x in inputs]
    for given, x in zip(results, inputs, strict=True):
        check(given, x)
    assert len(set(inner.places)) == 1
    assert len({given[0].data_ptr() for given in results}) == 4


def test_what_one_call_gave_may_be_what_the_next_takes() -> None:
    scratch = Scratch(Inner().code)
    x = start = torch.randn(3, 4)
    for _ in range(5):
        x = scratch([x, 3])[0]
    torch.testing.assert_close(x, start * 3**5)


def test_other_sizes_get_memory_of_theirs() -> None:
    inner = Inner()
    scratch = Scratch(inner.code)
    for rows in (3, 3, 5, 5, 3, 700, 3):
        x = torch.randn(rows, 4)
        check(scratch([x, rows]), x)


def test_memory_is_that_of_the_sizes_at_hand_wherever_the_code_has_them_from() -> None:
    inner = Inner(sizes="x.shape[0]")  # not from an integer that it is given
    scratch = Scratch(inner.code)
    for rows in (3, 3, 2, 9, 9, 9, 1, 3):
        x = torch.randn(rows, 4)
        check(scratch([x, 0]), x)
    assert inner.places[4] == inner.places[5]  # the call after a change keeps, the next one finds


def test_a_call_that_fails_leaves_the_next_ones_right() -> None:
    def fail() -> None:
        if fails:
            raise RuntimeError("broken")

    fails = False
    scratch = Scratch(Inner(fail).code)
    for rows, fails in ((3, False), (3, True), (3, False), (5, True), (5, False), (3, False)):
        x = torch.randn(rows, 4)
        if fails:
            with pytest.raises(RuntimeError, match="broken"):
                scratch([x, rows])
        else:
            check(scratch([x, rows]), x)


def test_a_call_within_another_works_in_memory_of_its_own() -> None:
    def other() -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: found.append(scratch([y, 3])))
            thread.start()
            thread.join()

    found: list[Sequence[Any]] = []
    inner = Inner(other)
    scratch = Scratch(inner.code)
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    for _ in range(3):
        check(scratch([x, 3]), x)
        check(found.pop(), y)
    outer, within = inner.places[::2], inner.places[1::2]
    assert not set(outer) & set(within)


def test_the_code_itself_is_left_as_it_was() -> None:
    inner = Inner()
    Scratch(inner.code)
    function: Any = inner.code
    assert function.__globals__["empty_strided_cpu"] is guards._empty_strided_cpu


def test_code_that_is_no_method_runs_as_it_is() -> None:
    assert Scratch(lambda inputs: [inputs[0] + 1])([1]) == [2]
