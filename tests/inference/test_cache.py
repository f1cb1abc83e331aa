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


def _written(
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
    _written(store, prompts, [0, 0], list(LENGTHS))
    new = [drawn(heads, 1) for heads in (4, 2, 2)]
    mixed = _written(store, new, list(LENGTHS), [1, 1])
    assert mixed.shape == new[0].shape
    for row, length in enumerate(LENGTHS):
        keys, values = (
            torch.cat((prompts[part][row, :, :length], new[part][row]), 1)[None].float()
            for part in (1, 2)
        )
        everything = torch.ones(1, 1, 1, length + 1, dtype=torch.bool)
        expected = grouped_attention(new[0][row][None].float(), keys, values, everything)
        torch.testing.assert_close(mixed[row].float(), expected[0], atol=tolerance, rtol=tolerance)
