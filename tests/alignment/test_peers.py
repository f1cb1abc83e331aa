"""DPO against TRL's DPOTrainer: the same weights, pairs and tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig as PeerConfig
from trl import DPOTrainer

from puna.alignment import (
    Comparison,
    DPOConfig,
    DPOObjective,
    PairRows,
    encode_pair,
    reference_logprobs,
)
from puna.formats import load_model, save_model
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Message, Tokenizer

PAIRS = [
    ("What is 4 and 5?", "It is 9.", "9"),
    ("What is the capital of Peru?", "Lima", "It is the sum of 4 and 5."),
    ("Sum?", "The sum of 4 and 5 is 9, the capital of Peru is Lima.", "It is 9, the sum."),
    ("5?", "What is it?", "It is Peru."),
]
FIELDS = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "context": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which answers differ by many nats, and beside it one a step away."""
    tokenizer = Tokenizer.train([" ".join(row) for row in PAIRS] * 4, 300, n_special=16)
    model = Llama(LlamaConfig.parse(FIELDS | {"vocab_size": tokenizer.vocab_size}, where="test"))
    model.init_weights(3)
    root = tmp_path_factory.mktemp("peers")
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(3)
        save_model(root / "reference", model, tokenizer)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    save_model(root / "policy", model, tokenizer)
    return root


def encoded(tokenizer: Tokenizer) -> list[Comparison]:
    return [
        encode_pair(tokenizer, [Message("user", asked)], chosen, rejected, 200, asked)
        for asked, chosen, rejected in PAIRS
    ]


def peer(folder: Path, **changes: object) -> DPOTrainer:
    rows = [
        {
            "prompt": [{"role": "user", "content": asked}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for asked, chosen, rejected in PAIRS
    ]
    config = PeerConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        **changes,
    )
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )


def peer_batch(trainer: DPOTrainer) -> dict[str, torch.Tensor]:
    rows = [trainer.train_dataset[number] for number in range(len(PAIRS))]
    batch: dict[str, torch.Tensor] = trainer.data_collator(rows)
    return batch


def without_ends(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llama 3.1 masks formatting tokens: the last token of each completion is its end of turn."""
    mask = batch["completion_mask"].clone()
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    mask[torch.arange(len(mask)), last] = 0
    return batch | {"completion_mask": mask}


def test_per_sequence_logprobs_equal_trls(folder: Path, tmp_path: Path) -> None:
    trainer = peer(folder)
    model, tokenizer = load_model(folder / "reference")
    pairs = encoded(tokenizer)
    batch = peer_batch(trainer)
    for number, pair in enumerate(pairs):
        for side in (0, 1):
            ids = [*pair.prompt, *pair.answers[side].ids]
            row = number + side * len(pairs)
            assert batch["input_ids"][row, : len(ids)].tolist() == ids
    theirs = trainer.compute_ref_log_probs(trainer.ref_model, without_ends(batch))
    ours = reference_logprobs(model, pairs, tmp_path)
    # Sums of some ten logarithms in fp32.
    np.testing.assert_allclose(ours, torch.stack(theirs, 1).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
        ({"loss": "ipo", "length_normalised": True}, {"loss_type": ["ipo"]}),
        ({"length_normalised": True, "beta": 5.0}, {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    ],
    ids=["dpo", "hinge", "ipo", "normalised"],
)
def test_the_loss_and_its_gradient_equal_trls(
    folder: Path, tmp_path: Path, ours: dict[str, object], theirs: dict[str, object]
) -> None:
    reference_model, tokenizer = load_model(folder / "reference")
    pairs = encoded(tokenizer)
    config = DPOConfig.parse(ours | {"nll_weight": 0.0}, where="dpo")
    reference = reference_logprobs(reference_model, pairs, tmp_path)
    policy, _ = load_model(folder / "policy")
    rows = PairRows(pairs, reference, config).rows(np.arange(len(pairs)))
    outcome = DPOObjective(config)(policy, rows)
    outcome.loss_sum.backward()
    trainer = peer(folder, **theirs)
    expected = trainer._compute_loss(trainer.model, without_ends(peer_batch(trainer)), False)
    expected.backward()
    # Log-probabilities of some hundred nats in fp32, times beta.
    assert float(outcome.loss_sum.detach()) / len(pairs) == pytest.approx(
        float(expected.detach()), rel=1e-6, abs=1e-6
    )
    peer_gradients = dict(trainer.model.named_parameters())
    for name, parameter in policy.named_parameters():
        gradient = peer_gradients[name].grad
        torch.testing.assert_close(parameter.grad / len(pairs), gradient, rtol=1e-3, atol=1e-5)
