"""What four processes build, adapt, look at and average in pieces is what one makes whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from spread_builds import (
    ADAPTERS,
    DEEP,
    FRESH,
    LAYOUTS,
    MUON,
    OF_TOKENIZER,
    TIED,
    adapted_alone,
    all_builds,
    config_of,
    curriculum,
    lora_of,
    muon_case,
    prophet,
    seen,
)
from spread_runs import STEPS, VOCAB, documents, new_model, trained
from torch import Tensor, nn

from puna.core.errors import UsageError
from puna.core.events import read_events
from puna.data import write_tokens
from puna.formats import load_model, save_model
from puna.model import add_lora, merge
from puna.parallel import Layout
from puna.parallel.adapters import check_adapter, check_base
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.training.muon import Muon


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that four processes make, and the runs of one process beside it."""
    made = tmp_path_factory.mktemp("builds")
    write_tokens(made / "tokens", documents(), VOCAB)
    words = ["the number of the llama river lake village condor market bridge puna is"] * 9
    tokenizer = Tokenizer.train(words, 288, n_special=16)
    save_model(made / "base", new_model(**OF_TOKENIZER), tokenizer)
    save_model(made / "deep", new_model(**DEEP, **OF_TOKENIZER), tokenizer)
    prophet(made, tokenizer)
    trained(made, "one", ({}, {}, {}))
    trained(made, "muon one", ({}, {"optimizer": "muon"}, {}))
    curriculum(made, "way of one", {})
    codes = run_ranks(4, made, all_builds, made)
    assert codes == [0] * 4, [path.read_text() for path in made.glob("ended-*")]
    return made


def figures(folder: Path, name: str) -> np.ndarray:
    """Loss and gradient norm of each step, (steps, 2)."""
    found = [e for e in read_events(folder / f"{name}-0.jsonl") if e["kind"] == "train_step"]
    assert [event["step"] for event in found] == list(range(1, STEPS + 1))
    return np.array([(event["loss"], event["grad_norm"]) for event in found])


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob(f"{name}-?.safetensors")):
        found |= load_file(path)
    return found


@torch.no_grad()
def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of what all weights of ``one`` differ by, as a fraction of theirs."""
    squares = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    return float(np.sqrt(squares / sum(float(w.double().square().sum()) for w in one.values())))


@pytest.mark.parametrize("name", FRESH)
def test_fresh_weights_made_in_pieces_are_those_of_one_process(folder: Path, name: str) -> None:
    whole, found = new_model(**DEEP, **TIED), weights(folder, f"fresh {name}")
    assert set(found) - {"lm_head.weight"} == {n for n, _ in whole.named_parameters()}
    for key, parameter in whole.named_parameters():
        assert torch.equal(found[key], parameter)
    if "lm_head.weight" in found:  # a pipeline's copy
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", [*(f"fresh {name}" for name in FRESH), "loaded"])
def test_no_process_ever_has_much_more_than_its_part(folder: Path, name: str) -> None:
    shape = OF_TOKENIZER if name == "loaded" else TIED
    config = config_of(**DEEP, **shape)
    whole, largest = 4 * config.n_params(), 4 * max(config.ffn_dim, config.vocab_size) * config.dim
    for rank in range(4):
        most, kept = json.loads((folder / f"bytes-{name}-{rank}.json").read_text())
        assert kept < 0.36 * whole  # a pipeline's stages are no equal parts
        assert kept <= most < kept + 2.2 * largest < 0.55 * whole


def test_a_model_built_in_pieces_and_looked_at_trains_as_one_built_whole(folder: Path) -> None:
    np.testing.assert_allclose(figures(folder, "looked at"), figures(folder, "one"), rtol=1e-5)
    assert difference(weights(folder, "one"), weights(folder, "looked at")) <= 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_on_a_spread_model_trains_as_on_a_whole_one(folder: Path, name: str) -> None:
    alone = adapted_alone(folder, name)
    one, many = figures(folder, f"{name} alone"), figures(folder, name)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    trained_alone = {n: p for n, p in alone.named_parameters() if p.requires_grad}
    assert difference(trained_alone, weights(folder, name)) <= 1e-5
    report = merge(alone)
    merged, _ = load_model(folder / f"{name} merged")
    assert difference(dict(alone.named_parameters()), dict(merged.named_parameters())) <= 1e-6
    told = json.loads((folder / f"{name} report.json").read_text())
    for error in report.weights:  # of roundings, which 1e-5 in a weight draws anew
        expected = [error.relative, error.of_change]
        assert told[error.product] == pytest.approx(expected, rel=0.3)
    stored = load_file(folder / f"{name} adapter" / "adapter_model.safetensors")
    assert len(stored) == len(trained_alone)
    assert all(float(tensor.abs().max()) > 0 for tensor in stored.values())


def test_muon_steps_in_pieces_as_on_whole_matrices(folder: Path) -> None:
    start, gradients = muon_case()
    whole = nn.Parameter(start)
    optimizer = Muon([whole], lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        whole.grad = gradient
        optimizer.step()
    found = torch.load(folder / "muon.pt", weights_only=True)
    assert float((found - whole.detach()).norm() / whole.detach().norm()) <= 1e-6


@pytest.mark.parametrize("name", MUON)
def test_muon_trains_under_any_layout_as_one_process(folder: Path, name: str) -> None:
    one, many = figures(folder, "muon one"), figures(folder, name)
    np.testing.assert_allclose(many, one, rtol=2e-5)
    # Where it orthogonalises in bf16, sums in another order flip a rounding here and there.
    assert difference(weights(folder, "muon one"), weights(folder, name)) <= 2e-4


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_spread_model_is_judged_as_a_whole_one(folder: Path, name: str) -> None:
    alone = seen(folder, {})
    found = json.loads((folder / "seen.json").read_text())[name]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert found["needles"] == alone["needles"] > 0


def test_a_spread_curriculum_is_judged_and_averaged_as_one_process_does(folder: Path) -> None:
    one, four = (json.loads((folder / f"way of {n}.json").read_text()) for n in ("one", "four"))
    assert four["short_loss_before_long"] == pytest.approx(one["short_loss_before_long"], rel=1e-5)
    for mine, theirs in zip(one["segments"], four["segments"], strict=True):
        if mine["short_loss"] is not None:
            assert theirs["short_loss"] == pytest.approx(mine["short_loss"], rel=1e-5)
        assert theirs["needles"] == mine["needles"]
        assert (theirs["passed"], theirs["end"]) == (mine["passed"], mine["end"])
    models = [load_model(folder / f"way of {n} averaged")[0] for n in ("one", "four")]
    first, second = (dict(model.named_parameters()) for model in models)
    assert difference(first, second) <= 1e-5
    last = load_file(max((folder / "way of four" / "averaged").glob("*")) / "model.safetensors")
    assert difference(last, second) > 1e-4  # more than the last one


@pytest.mark.parametrize(
    ("layout", "said"),
    [({"tp": 2}, r"layout.tp 2 does not divide adapters.*: set it to 1"), ({"pp": 2}, "layout.pp")],
)
def test_layouts_that_cannot_spread_an_adapter_are_named(layout: dict[str, Any], said: str) -> None:
    model = new_model()
    add_lora(model, lora_of())
    with pytest.raises(UsageError, match=said):
        check_adapter(model, Layout.parse(layout, where="test"))


def test_four_bits_and_moments_in_blocks_are_refused_with_what_to_change() -> None:
    with pytest.raises(UsageError, match=r"set lora\.base to kept or bf16"):
        check_base(lora_of(base="nf4"))
    fields = {"steps": 1, "batch_rows": 4, "learning_rate": 1e-3, "layout": {"dp_shard": 2}}
    with pytest.raises(UsageError, match=r"adamw8bit.*: set it to adamw"):
        LoopConfig.parse(fields | {"optimizer": "adamw8bit"}, where="test")
