"""FlexAttention's masks and results, without a GPU: what runs there is compiled from the same."""

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from puna.model import Llama, LlamaConfig, attention
from puna.model import flex as ours

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_compiled", lambda name: getattr(flex, name))


DOCUMENTS = torch.tensor([[0] * 40 + [1] * 90 + [2] * 60 + [-1] * 10, [3] * 150 + [4] * 50])
PREFIXES = DOCUMENTS.clone()
PREFIXES[0, 130:190] = 0  # the third document goes on from the first


@pytest.mark.parametrize("prefixes", [None, PREFIXES])
def test_blocks_hold_what_the_matrix_says(prefixes: torch.Tensor | None) -> None:
    made = ours.block_mask(DOCUMENTS, prefixes)
    matrix = flex.create_mask(made.mask_mod, 2, 1, 200, 200, device="cpu")
    assert torch.equal(matrix, attention.document_mask(DOCUMENTS, prefixes))
    assert made.kv_num_blocks.sum() == 6  # of 8: what is above the diagonal is skipped


@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_a_model_gives_the_same_logits_by_blocks(
    n_kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(
        vocab_size=50, dim=64, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads, ffn_dim=96, context=200
    )
    model = Llama(config)
    model.init_weights(seed=1)
    ids = torch.randint(0, 50, (2, 200), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(ids, documents_bt=DOCUMENTS, prefixes_bt=PREFIXES)
        monkeypatch.setattr("puna.model.llama.packed_mask", ours.block_mask)
        found = model(ids, documents_bt=DOCUMENTS, prefixes_bt=PREFIXES)
    real = DOCUMENTS >= 0
    assert torch.allclose(found[real], expected[real], atol=1e-5)  # fp32, sums in another order


def test_documents_begin_where_their_number_changes() -> None:
    begins = torch.tensor([[0] * 40 + [40] * 90 + [130] * 60 + [190] * 10, [0] * 150 + [150] * 50])
    assert torch.equal(ours.first_positions(DOCUMENTS), begins.int())
