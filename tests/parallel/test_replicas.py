"""Two processes with gloo train as one does, whatever the method, and go on from each other."""

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import ranks, run_ranks
from safetensors.torch import load_file
from small_runs import METHODS, STEPS, VOCAB, all_of, documents, fails, in_turn, trained

from puna.core.errors import UsageError
from puna.core.events import read_events
from puna.data import write_tokens
from puna.parallel import Mesh, mesh

DROPOUT = "lora-dropout"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method trained by one process and by two, some of them cut and gone on with."""
    made = tmp_path_factory.mktemp("runs")
    write_tokens(made / "tokens", documents(), VOCAB)
    alone = [(name, f"{name}-by-1", STEPS) for name in METHODS]
    in_turn(made, [*alone, ("sft", "sft-1-then-2", 3)])
    together = [(name, f"{name}-by-2", STEPS) for name in (*METHODS, DROPOUT)]
    cut = [
        ("sft", "sft-2-then-1", 3),
        (DROPOUT, f"{DROPOUT}-cut", 3),
        (DROPOUT, f"{DROPOUT}-cut", STEPS),
    ]
    cut += [("grpo", "grpo-cut", 3), ("grpo", "grpo-cut", STEPS)]
    resumed = ("sft", "sft-1-then-2", STEPS)
    assert run_ranks(2, made, all_of, made, [*together, *cut, resumed]) == [0, 0]
    trained("sft", made, "sft-2-then-1")
    return made


def steps(folder: Path, name: str, kind: str = "train_step") -> list[dict[str, Any]]:
    return [e for e in read_events(folder / f"{name}-0.jsonl") if e["kind"] == kind]


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of what all trained weights differ by, as a fraction of theirs."""
    assert one.keys() == other.keys()
    squares = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    size = sum(float(weight.double().square().sum()) for weight in one.values())
    return math.sqrt(squares / size)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(folder: Path, name: str) -> None:
    one, two = steps(folder, f"{name}-by-1"), steps(folder, f"{name}-by-2")
    assert [event["step"] for event in two] == list(range(1, STEPS + 1))
    for figure in ("loss", "grad_norm"):
        pairs = [(a[figure], b[figure]) for a, b in zip(one, two, strict=True)]
        residuals = np.array([b / a - 1 for a, b in pairs])
        assert np.abs(residuals).max() <= 1e-5
        assert abs(residuals.mean()) <= 2e-6  # rounding, not a bias
    assert [event["tokens"] for event in one] == [event["tokens"] for event in two]
    by_one, by_two = (weights(folder, f"{name}-by-{count}") for count in (1, 2))
    tolerance = 2e-4 if name == "muon" else 1e-5  # Muon orthogonalises in bf16
    assert difference(by_one, by_two) <= tolerance


@pytest.mark.parametrize("name", METHODS)
def test_both_processes_end_with_the_very_same_weights(folder: Path, name: str) -> None:
    first, second = (weights(folder, f"{name}-by-2", rank) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_metrics_are_those_of_the_whole_batch(folder: Path) -> None:
    for a, b in zip(steps(folder, "dpo-by-1"), steps(folder, "dpo-by-2"), strict=True):
        for figure in ("reward_margin", "nll", "dpo_loss"):
            assert b[figure] == pytest.approx(a[figure], rel=1e-4, abs=1e-6)
        assert b["reward_accuracy"] == a["reward_accuracy"]


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_table_of_rollouts_is_that_of_one_process(folder: Path, name: str) -> None:
    one, two = (next(read_events(folder / f"{name}-rollouts-{n}.jsonl")) for n in (1, 2))
    for figure in ("reward", "kl", "clip_fraction", "policy_kl", "updates"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("run", ["sft-1-then-2", "sft-2-then-1"])
def test_a_run_goes_on_with_another_number_of_processes(folder: Path, run: str) -> None:
    assert [event["step"] for event in steps(folder, run, "train_resume")] == [3]
    straight = steps(folder, "sft-by-1")
    for a, b in zip(straight, steps(folder, run), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["tokens"] == a["tokens"]  # the same rows
    assert difference(weights(folder, "sft-by-1"), weights(folder, run)) <= 1e-5


@pytest.mark.parametrize("run", [DROPOUT, "grpo"])
def test_two_processes_that_are_cut_go_on_exactly(folder: Path, run: str) -> None:
    straight, resumed = weights(folder, f"{run}-by-2"), weights(folder, f"{run}-cut")
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_only_the_first_process_writes(folder: Path) -> None:
    assert not list(read_events(folder / "sft-by-2-1.jsonl"))
    assert len(list((folder / "sft-by-2").glob("step-*"))) == 2


def test_gradients_are_summed_in_fp32_and_a_missing_one_is_zero(folder: Path) -> None:
    first, second = (load_file(folder / f"gradients-{rank}.safetensors") for rank in (0, 1))
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(2, *size, generator=generator) for size in ((3, 5), (40,), (7,), (64, 3))]
    assert set(first) == {"0", "1", "2"}  # nobody had the last
    assert torch.equal(first["0"], drawn[0].sum(0))
    assert torch.equal(first["1"], drawn[1].bfloat16().float().sum(0).bfloat16())
    assert torch.equal(first["2"], drawn[2][0])
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_buckets_keep_the_order_and_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "BUCKET", 10)
    tensors = [torch.zeros(size) for size in (4, 6, 1, 30, 2, 3)]
    buckets = [[len(t) for t in bucket] for bucket in mesh._buckets(tensors)]
    assert buckets == [[4, 6], [1], [30], [2, 3]]


def test_one_process_is_a_mesh_of_ones() -> None:
    alone = Mesh()
    assert (alone.n_processes, alone.is_first, alone.share.of) == (1, True, 1)
    numbers = [0.1, 0.2]
    assert alone.sum(numbers) is numbers
    assert alone.on_first(lambda: 3) == 3


def refuse() -> None:
    raise UsageError("row 7 has no answer: add one")


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "tokens", documents(), VOCAB)
    return tmp_path


def test_an_error_of_one_process_ends_all_with_its_line_only(tokens: Path) -> None:
    assert run_ranks(2, tokens, fails, tokens, refuse, 1) == [3, 3]
    other, failed = ((tokens / f"ended-{rank}").read_text() for rank in (0, 1))
    assert failed == "UsageError: row 7 has no answer: add one"
    assert other == "SystemExit: 1"


def test_a_process_that_vanishes_ends_the_others_within_seconds(tokens: Path) -> None:
    with ranks(2, tokens, fails, tokens, vanish, 1) as started:
        started[1].join(60)
        assert started[1].exitcode == -signal.SIGKILL
        began = time.monotonic()
        started[0].join(60)
        assert time.monotonic() - began < 10
    ended = (tokens / "ended-0").read_text()
    assert ended.startswith("PunaError: lost the connection to another process of this run")
    assert max((tokens / "fails").glob("step-*")).name == "step-00000002"


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(tokens: Path) -> None:
    assert run_ranks(2, tokens, fails, tokens, interrupt, 1) == [3, 3]
    told = [(tokens / f"ended-{rank}").read_text() for rank in (0, 1)]
    said = [text for text in told if text.startswith("Interrupted: stopped in train after step 3")]
    assert len(said) == 1
    assert sorted(told)[1] == "SystemExit: 1"
    assert max((tokens / "fails").glob("step-*")).name == "step-00000003"
