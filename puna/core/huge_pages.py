"""Tensors in memory of few, large pages.

Weights are read once a token, all of them, as fast as memory gives them. With pages of 4 KiB a part
of that time goes into looking up addresses: a sum over 256 MiB runs at 31 GB/s, in pages of 2 MiB
at 35 (docs/log.md).
"""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_PAGE = 2**21  # of x86-64, and of ARM with base pages of 4 KiB
LINE = 64  # bytes: what a processor fetches at once, and the widest vector


def move_to_huge_pages(modules: Sequence[nn.Module]) -> None:
    """Give all CPU tensors of ``modules`` new memory in huge pages, without gradients.

    What shares memory with another module outside no longer does. Two names of one tensor stay
    one. Where the system has no such pages, or no memory for them, nothing changes.
    """
    tensors = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.device.type == "cpu" and not tensor.is_mkldnn
    }
    twins: dict[tuple[int, torch.Size, torch.dtype], list[Tensor]] = {}
    for tensor in tensors.values():
        twins.setdefault((tensor.data_ptr(), tensor.shape, tensor.dtype), []).append(tensor)
    groups = [group for group in twins.values() if group[0].numel() and group[0].is_contiguous()]
    places, end = [], 0
    for group in groups:
        places.append(end)
        end += -(-group[0].nbytes // LINE) * LINE
    arena = _arena(end)
    if arena is None:
        return
    with torch.inference_mode(mode=False), torch.no_grad():
        for place, group in zip(places, groups, strict=True):
            first = group[0]
            moved = arena[place : place + first.nbytes].view(first.dtype).view(first.shape)
            moved.copy_(first)
            for tensor in group:
                tensor.data = moved


def _arena(n_bytes: int) -> Tensor | None:
    """Fresh bytes in huge pages; they take memory once they are written."""
    if not n_bytes or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        memory = mmap.mmap(-1, n_bytes + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return None
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    start = -raw.data_ptr() % _PAGE
    return raw[start : start + n_bytes]
