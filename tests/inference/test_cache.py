"""The paged cache: whatever its layout, attention sees the keys and values that were put in."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from puna.inference.attention import attend_one
from puna.inference.cache import PagedStore
from puna.inference.pages import SCRATCH
from puna.model import LlamaConfig, grouped_attention

LENGTHS = (11, 6)
PAGES = ([3, 1, 7, 9], [5, 2, 8, 4])
FIELDS = {
    "n_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "ffn_dim": 8,
    "vocab_size": 8,
    "context": 64,
}


def _attended(
    store: PagedStore, heads: Sequence[Tensor], starts: list[int], counts: list[int]
) -> Tensor:
    _, cache = store.batch(PAGES, starts, counts, heads[0].dtype)
    return cache.layers[0].attend(*heads)


@pytest.mark.parametrize("head_dim", [8, 24, 128])
@pytest.mark.parametrize(
    ("stored", "activations", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 3e-2),
        (torch.int8, torch.float32, 3e-2),
    ],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_attention_over_pages_is_attention_over_all_that_was_written(
    head_dim: int, stored: torch.dtype, activations: torch.dtype, tolerance: float, one_by_one: bool
) -> None:
    assert SCRATCH not in PAGES[0] + PAGES[1]
    config = LlamaConfig.parse(FIELDS | {"dim": 4 * head_dim}, where="test")
    one = attend_one if one_by_one else None
    store = PagedStore(config, 10, 4, stored, torch.device("cpu"), attend_one=one)
    generator = torch.Generator().manual_seed(head_dim)
    longest = max(LENGTHS)

    def drawn(heads: int, time: int) -> Tensor:
        return torch.randn(2, heads, time, head_dim, generator=generator).to(activations)

    prompts = [drawn(heads, longest) for heads in (4, 2, 2)]
    written = [[part[row, :, :0] for part in prompts] for row in range(2)]

    def go_on(new: list[Tensor], counts: list[int]) -> None:
        starts = [row[1].shape[1] for row in written]
        mixed = _attended(store, new, starts, counts)
        for row, count in enumerate(counts):
            queries, *stored_heads = (part[row, :, :count] for part in new)
            written[row][1:] = [
                torch.cat((former, late), 1)
                for former, late in zip(written[row][1:], stored_heads, strict=True)
            ]
            keys, values = (part[None].float() for part in written[row][1:])
            seen = torch.ones(count, starts[row] + count, dtype=torch.bool).tril(starts[row])
            expected = grouped_attention(queries[None].float(), keys, values, seen[None, None])
            found = mixed[row, :, :count].float()
            torch.testing.assert_close(found, expected[0], atol=tolerance, rtol=tolerance)

    go_on(prompts, list(LENGTHS))
    go_on([drawn(heads, 1) for heads in (4, 2, 2)], [1, 1])
    go_on([drawn(heads, 3) for heads in (4, 2, 2)], [3, 2])
    go_on([drawn(heads, 1) for heads in (4, 2, 2)], [1, 1])
