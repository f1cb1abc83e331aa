"""A model spread over processes trains as one process does, and goes on under any other layout.

Documents are packed, several to a row, and every step is clipped. fp32 on gloo.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from spread_runs import CHAIN, STEPS, VOCAB, Runs, all_of, documents, in_turn, new_model, trained

from puna.core.events import read_events
from puna.data import write_tokens
from puna.formats import load_model, save_model
from puna.tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(900)  # the first test trains all layouts: it may take minutes

TIED: dict[str, Any] = {"tie_embeddings": True}
PP = {"pp": 2, "dp_shard": 2}
RUNS: Runs = {  # of four processes
    "fsdp": ({"dp_shard": 4}, {}, {}),
    "fsdp accumulated, tied": ({"dp_shard": 4}, {"micro_rows": 2}, TIED),
    "hsdp": ({"dp_shard": 2}, {}, {}),
    "tp": ({"tp": 4}, {}, {}),
    "tp with fsdp, tied": ({"tp": 2, "dp_shard": 2}, {}, TIED),
    "cp": ({"cp": 4}, {}, {}),
    "cp with tp": ({"cp": 2, "tp": 2}, {"recompute": "full"}, {}),
    "1f1b": (PP, {}, {}),
    "1f1b of four, tied": ({"pp": 4, "microbatches": 8}, {}, TIED),
    "interleaved": (PP | {"schedule": "interleaved", "microbatches": 4}, {"micro_rows": 4}, {}),
    "interleaved zero bubble": (PP | {"schedule": "interleaved-zero-bubble"}, {}, {}),
    "zbv, tied": (PP | {"schedule": "zbv"}, {}, TIED),
    "dualpipev": (PP | {"schedule": "dualpipev"}, {}, {}),
}

SIXTEENTH = {"pp": 2, "tp": 2, "cp": 2, "dp_shard": 2}
SIXTEEN: Runs = {
    "sixteen": (SIXTEENTH | {"microbatches": 4}, {}, {}),
    "sixteen, dualpipev": (SIXTEENTH | {"schedule": "dualpipev"}, {}, {}),
}

OF_TOKENIZER = {"vocab_size": 288}


def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 9, 288, n_special=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout by four processes, one process alone with and without tied embeddings."""
    made = tmp_path_factory.mktemp("spread")
    write_tokens(made / "tokens", documents(), VOCAB)
    in_turn(made, {"one": ({}, {}, {}), "one tied": ({}, {}, TIED)})
    trained(made, "chain one", ({}, {"checkpoint_every": 1}, {}), until=1, into="chain")
    save_model(made / "model", new_model(**OF_TOKENIZER), tokenizer())
    codes = run_ranks(4, made, all_of, made, RUNS)
    assert codes == [0] * 4, [path.read_text() for path in made.glob("ended-*")]
    codes = run_ranks(16, made, in_turn, made, SIXTEEN)
    assert codes == [0] * 16, [path.read_text() for path in made.glob("ended-*")]
    return made


def steps(folder: Path, name: str, kind: str = "train_step") -> list[dict[str, Any]]:
    return [e for e in read_events(folder / f"{name}-0.jsonl") if e["kind"] == kind]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Those of the whole model, from the processes that have them."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{name}-?*.safetensors")):
        found |= load_file(path)
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of what all weights differ by, as a fraction of theirs."""
    squares = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    return math.sqrt(squares / sum(float(w.double().square().sum()) for w in one.values()))


def assert_equal_runs(folder: Path, name: str, reference: str) -> None:
    one, many = steps(folder, reference), steps(folder, name)
    assert [event["step"] for event in many] == list(range(1, STEPS + 1))
    for figure in ("loss", "grad_norm"):
        ratios = np.array([b[figure] / a[figure] for a, b in zip(one, many, strict=True)])
        assert np.abs(ratios - 1).max() <= 1e-5
    assert [event["tokens"] for event in one] == [event["tokens"] for event in many]
    by_one, by_many = weights(folder, reference), weights(folder, name)
    assert set(by_many) - set(by_one) <= {"lm_head.weight"}  # a pipeline's copy, where tied
    assert difference(by_one, by_many) <= 1e-5


@pytest.mark.parametrize("name", RUNS | SIXTEEN)
def test_any_layout_trains_as_one_process(folder: Path, name: str) -> None:
    assert_equal_runs(folder, name, "one tied" if name.endswith("tied") else "one")


@pytest.mark.parametrize("name", RUNS | SIXTEEN)
def test_a_pipeline_says_what_share_of_its_time_nothing_was_computed(
    folder: Path, name: str
) -> None:
    pipelined = (RUNS | SIXTEEN)[name][0].get("pp", 1) > 1
    bubbles = [event.get("bubble") for event in steps(folder, name)]
    if pipelined:
        assert all(0 < bubble < 1 for bubble in bubbles)
    else:
        assert set(bubbles) == {None}


def test_every_step_was_clipped(folder: Path) -> None:
    assert min(event["grad_norm"] for event in steps(folder, "one")) > 0.1


def test_copies_of_a_tied_embedding_stay_equal(folder: Path) -> None:
    for name in ("1f1b of four, tied", "zbv, tied"):
        found = weights(folder, name)
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_blocks_compiled_one_by_one_have_right_gradients(folder: Path) -> None:
    assert_equal_runs(folder, "compiled", "one")


def test_a_run_goes_on_under_any_other_layout(folder: Path) -> None:
    straight = steps(folder, "one")
    for number, name in enumerate(["chain one", *CHAIN]):
        (event,) = steps(folder, name)
        assert event["step"] == number + 1
        assert event["tokens"] == straight[number]["tokens"]  # the same rows
        for figure in ("loss", "grad_norm"):
            assert event[figure] == pytest.approx(straight[number][figure], rel=1e-5)
        resumed = [e["step"] for e in steps(folder, name, "train_resume")]
        assert resumed == ([number] if number else [])


def test_one_process_reads_what_four_have_left(folder: Path) -> None:
    trained(folder, "chain end", ({}, {}, {}), into="chain")
    assert [e["step"] for e in steps(folder, "chain end", "train_resume")] == [STEPS]
    assert difference(weights(folder, "one"), weights(folder, "chain end")) <= 1e-5


def test_a_lost_disk_is_made_good_by_the_durable_copy(folder: Path) -> None:
    changes = {"durable": str(folder / "far"), "durable_every": STEPS}
    trained(folder, "from afar", ({}, changes, {}), into="new disk")
    assert [e["step"] for e in steps(folder, "from afar", "train_resume")] == [STEPS]
    near, far = weights(folder, "chain cp"), weights(folder, "from afar")
    assert all(torch.equal(near[name], far[name]) for name in near)


def test_no_file_of_a_spread_checkpoint_is_a_pickle_or_holds_the_whole(folder: Path) -> None:
    (saved,) = (folder / "fsdp").glob("step-*")
    shards = sorted(saved.glob("*.safetensors"))
    assert len(shards) == 4
    assert {path.suffix for path in saved.iterdir()} == {".safetensors", ".json"}
    sizes = [path.stat().st_size for path in shards]
    assert max(sizes) < 0.4 * sum(sizes)


def test_a_model_folder_is_read_and_written_in_pieces(folder: Path) -> None:
    again = folder / "model again"
    before, after = load_file(folder / "model" / "model.safetensors"), {}
    shards = sorted(again.glob("*.safetensors"))
    assert len(shards) > 1
    for path in shards:
        after |= load_file(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model, _ = load_model(again)
    assert torch.equal(model.head_weight(), before["lm_head.weight"])
    assert not (again / "sharded").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing shard", "shard-00003-model-00001-of-00001.safetensors is missing: put the file"),
        ("another model", "is of another model: model.layers.0.mlp.gate_proj.weight is (64, 32)"),
        ("no division", "UsageError: layout.tp 4 does not divide the model's n_kv_heads 2: set tp"),
        ("not a number", "PunaError: step 1: the loss is nan"),
    ],
)
def test_all_processes_stop_with_one_line_that_names_it(folder: Path, name: str, said: str) -> None:
    told = [json.loads((folder / f"refused-{rank}.json").read_text())[name] for rank in range(4)]
    assert said in told[0]
    assert len(set(told)) == 1


def test_nothing_is_left_half_written(folder: Path) -> None:
    assert [path for end in ("tmp", "old") for path in folder.rglob(f".*.{end}")] == []
