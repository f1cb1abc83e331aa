"""The model against transformers' Llama: an independent implementation of the same function."""

import pytest
import torch
from transformers import LlamaConfig as PeerConfig
from transformers import LlamaForCausalLM as Peer

from puna.inference.cache import PagedStore
from puna.model import Llama, LlamaConfig, llama

# Sums of a few hundred fp32 products in another order differ by a few parts in 10^6.
TOLERANCE = 1e-5
SCALING = {"factor": 8.0, "original_context": 8192}
SHAPES = {
    "multi-head": {"n_heads": 4, "n_kv_heads": 4},
    "grouped": {"n_heads": 4, "n_kv_heads": 2},
    "multi-query": {"n_heads": 6, "n_kv_heads": 1, "dim": 96},
    "wide heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 32},
    "tied": {"n_heads": 4, "n_kv_heads": 2, "tie_embeddings": True},
    "scaled": {"n_heads": 4, "n_kv_heads": 2, "rope_scaling": SCALING, "context": 131_072},
    "scaled by 32": {
        "n_heads": 8,
        "n_kv_heads": 2,
        "rope_scaling": SCALING | {"factor": 32.0},
        "context": 131_072,
        "tie_embeddings": True,
    },
}


def build(**changes: object) -> Llama:
    fields = {"vocab_size": 97, "dim": 64, "n_layers": 3, "ffn_dim": 112, "context": 16_384}
    model = Llama(LlamaConfig.parse(fields | changes, where="test"))
    model.init_weights(seed=5)
    with torch.no_grad():  # weights large enough that every part matters
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def peer_of(model: Llama) -> Peer:
    config = model.config
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling:
        rope = {
            "rope_type": "llama3",
            "rope_theta": config.rope_theta,
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_context,
        }
    peer = Peer(
        PeerConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            rope_parameters=rope,
        )
    )
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    if config.tie_embeddings:
        peer.tie_weights()
    return peer.eval()


def random_ids(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, 97, (batch, time), generator=torch.Generator().manual_seed(11))


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_logits_equal_the_peers(shape: str) -> None:
    model = build(**SHAPES[shape])
    ids = random_ids(2, 70)
    assert_equal(model(ids), peer_of(model)(ids).logits)


@pytest.mark.parametrize("shape", ["grouped", "scaled", "scaled by 32"])
@torch.inference_mode()
def test_logits_past_the_original_context_equal_the_peers(shape: str) -> None:
    model = build(**SHAPES[shape])
    ids = random_ids(1, 24)
    positions = torch.arange(9_000, 9_024)[None]
    theirs = peer_of(model)(ids, position_ids=positions, use_cache=False).logits
    assert_equal(model(ids, positions_bt=positions), theirs)


@torch.inference_mode()
def test_a_whole_row_longer_than_the_original_context_equals_the_peers() -> None:
    model = build(**SHAPES["scaled"], n_layers=1)
    ids = random_ids(1, 8_300)
    assert_equal(model(ids)[:, -50:], peer_of(model)(ids, use_cache=False).logits[:, -50:])


@pytest.mark.parametrize("shape", ["grouped", "tied", "scaled"])
@torch.inference_mode()
def test_packed_documents_equal_the_peers_on_each_document_alone(shape: str) -> None:
    model = build(**SHAPES[shape])
    lengths = [13, 1, 30, 20]
    ids = random_ids(1, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(ids, positions_bt=positions, documents_bt=documents)
    peer = peer_of(model)
    alone = [peer(part).logits for part in ids.split(lengths, dim=1)]
    assert_equal(packed, torch.cat(alone, dim=1))


@pytest.mark.parametrize("shape", ["grouped", "tied"])
@torch.inference_mode()
def test_answers_that_share_a_prompt_in_one_row_equal_the_peers_on_each_alone(shape: str) -> None:
    model = build(**SHAPES[shape], context=20)  # fewer than the row holds, enough for each
    lengths = [11, 5, 7, 6, 9]  # a prompt with two answers, a prompt with one
    ids = random_ids(1, sum(lengths))
    counts = torch.tensor(lengths)
    starts = [0, 11, 11, 0, 6]
    row = model(
        ids,
        positions_bt=torch.cat([s + torch.arange(n) for s, n in zip(starts, lengths, strict=True)])[
            None
        ],
        documents_bt=torch.repeat_interleave(torch.arange(5), counts)[None],
        prefixes_bt=torch.repeat_interleave(torch.tensor([0, 0, 0, 3, 3]), counts)[None],
    )
    peer = peer_of(model)
    parts = ids.split(lengths, dim=1)
    for answer, prompt, places in (
        (1, 0, row[:, 11:16]),
        (2, 0, row[:, 16:23]),
        (4, 3, row[:, 29:]),
    ):
        alone = peer(torch.cat([parts[prompt], parts[answer]], dim=1)).logits
        assert_equal(places, alone[:, lengths[prompt] :])


@pytest.mark.parametrize("shape", ["grouped", "multi-query", "scaled"])
@torch.inference_mode()
def test_logits_with_a_cache_equal_the_peers_without(shape: str) -> None:
    model = build(**SHAPES[shape])
    ids = random_ids(2, 40)
    store = PagedStore(model.config, 11, 8, torch.float32, model.device)
    pages = [[1, 3, 5, 7, 9], [10, 8, 6, 4, 2]]
    pieces = []
    for start, end in [(0, 25), (25, 26), (26, 27), (27, 40)]:
        counts = [end - start] * 2
        positions, cache = store.batch(pages, [start, start], counts, torch.float32)
        pieces.append(model(ids[:, start:end], positions_bt=positions, cache=cache))
    assert_equal(torch.cat(pieces, dim=1), peer_of(model)(ids).logits)


@torch.inference_mode()
def test_rows_of_unequal_length_share_a_cache() -> None:
    model = build(**SHAPES["grouped"])
    ids = random_ids(2, 30)
    store = PagedStore(model.config, 9, 8, torch.float32, model.device)
    pages = [[1, 2, 3, 4], [5, 6, 7, 8]]
    # The shorter row's padding is written aside, never seen.
    positions, cache = store.batch(pages, [0, 0], [7, 20], torch.float32)
    model(ids[:, :20], positions_bt=positions, cache=cache)
    positions, cache = store.batch(pages, [7, 20], [1, 1], torch.float32)
    step = torch.stack([ids[0, 7:8], ids[1, 20:21]])
    logits = model(step, positions_bt=positions, cache=cache)
    peer = peer_of(model)
    assert_equal(logits[0, -1], peer(ids[:1, :8]).logits[0, -1])
    assert_equal(logits[1, -1], peer(ids[1:, :21]).logits[0, -1])


def test_gradients_equal_the_peers() -> None:
    model = build(**SHAPES["tied"])
    peer = peer_of(model)
    ids = random_ids(2, 33)
    torch.nn.functional.cross_entropy(
        model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    ).backward()
    peer(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert_equal(parameter.grad, peer.get_parameter(name).grad)


@pytest.mark.parametrize("documents", [None, [0] * 9 + [1] * 20 + [2] * 11])
def test_plain_attention_equals_sdpa(
    documents: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(**SHAPES["grouped"])
    ids = random_ids(2, 40)
    rows = None if documents is None else torch.tensor([documents, documents])

    def gradients() -> tuple[torch.Tensor, ...]:
        hidden = model.hidden(ids, documents_bt=rows)
        return (hidden, *torch.autograd.grad(hidden.square().sum(), model.model.parameters()))

    expected = gradients()
    monkeypatch.setattr(llama, "plain_is_faster", lambda _: True)
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
