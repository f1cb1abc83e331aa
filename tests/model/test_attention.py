"""Ways to the same attention."""

import pytest
import torch

from puna.model.attention import _folded_attention, grouped_attention


@pytest.mark.parametrize(("heads", "groups", "time"), [(8, 2, 1), (8, 8, 3), (6, 2, 5)])
def test_heads_folded_into_positions_attend_as_heads(heads: int, groups: int, time: int) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, heads, time, 16, generator=generator)
    keys, values = (torch.randn(3, groups, 20, 16, generator=generator) for _ in range(2))
    mask = torch.rand(3, 1, time, 20, generator=generator) < 0.5
    mask[..., 0] = True
    expected = grouped_attention(queries, keys, values, mask)
    found = _folded_attention(queries, keys, values, mask)
    assert torch.allclose(found, expected, atol=1e-6)
