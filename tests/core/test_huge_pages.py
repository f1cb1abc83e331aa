"""Weights in huge pages: the same numbers, tied ones still tied, and memory marked as asked."""

import copy
import mmap
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from puna.core.huge_pages import move_to_huge_pages


class Odd(nn.Module):
    """Tensors of several kinds, two of them one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(300, 7), requires_grad=False)
        self.head = self.table
        self.narrow = nn.Parameter(torch.randn(33, 5).bfloat16(), requires_grad=False)
        self.turned = nn.Parameter(torch.randn(4, 6).t(), requires_grad=False)
        self.register_buffer("steps", torch.randint(-127, 127, (11, 13)).to(torch.int8))
        self.register_buffer("none", torch.empty(0))


def flags_at(address: int) -> list[str]:
    """What the system says of the memory at ``address``."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


def test_the_numbers_stay_and_what_was_one_tensor_stays_one() -> None:
    first, second = Odd(), nn.Linear(7, 300, bias=False)
    second.weight = nn.Parameter(first.table.detach().view(300, 7), requires_grad=False)
    before = copy.deepcopy((first.state_dict(), second.state_dict()))
    old = first.table.data_ptr()
    move_to_huge_pages([first, second])
    for module, state in zip((first, second), before, strict=True):
        for name, tensor in module.state_dict().items():
            assert tensor.dtype == state[name].dtype
            assert torch.equal(tensor, state[name])
    assert first.table.data_ptr() != old
    assert first.head.data_ptr() == first.table.data_ptr() == second.weight.data_ptr()
    places = [tensor.data_ptr() for tensor in (first.table, first.narrow, first.steps)]
    assert all(place % 64 == 0 for place in places)


def test_a_module_outside_keeps_its_own_memory() -> None:
    outside = nn.Linear(8, 8)
    twin = nn.Linear(8, 8)
    twin.weight = nn.Parameter(outside.weight.detach(), requires_grad=False)
    move_to_huge_pages([twin])
    twin.weight.data.zero_()
    assert outside.weight.abs().sum() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the question is Linux's")
def test_the_memory_is_asked_for_in_huge_pages() -> None:
    big = nn.Linear(1024, 4096)
    ordinary = mmap.mmap(-1, big.weight.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    big.weight.data = torch.frombuffer(ordinary, dtype=torch.float32).view(4096, 1024)
    assert "hg" not in flags_at(big.weight.data_ptr())
    move_to_huge_pages([big])
    assert "hg" in flags_at(big.weight.data_ptr())
    assert "hg" in flags_at(big.weight.data_ptr() + big.weight.nbytes - 1)
