import gzip
import json
import math
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.data import Batch, PackedRows
from puna.model import IGNORED, Llama
from puna.training import LoopConfig, Outcome, RowSource, next_token, train
from puna.training.interrupt import Interrupted
from puna.training.optimizer import build_optimizers, learning_rate

New = Callable[[], Llama]


def weights(model: Llama) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def run(
    model: Llama, rows: PackedRows, loop: LoopConfig, folder: Path, objective: Any = next_token
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    source = RowSource(rows, seed=5, config=loop)
    train(model, objective, source, loop, folder, EventLog(readers=(events.append,)))
    return [event for event in events if event["kind"] == "train_step"]


def test_training_equals_a_plain_loop_of_torch(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    ours = new_model()
    run(ours, rows, loop, tmp_path)
    plain = new_model()
    decayed = [p for p in plain.parameters() if p.ndim == 2]
    others = [p for p in plain.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    source = RowSource(rows, seed=5, config=loop)
    for step in range(loop.steps):
        (batch,) = source(step)
        logits = plain(batch.ids, positions_bt=batch.positions, documents_bt=batch.documents)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(loop, step)
        optimizer.step()
    # AdamW divides by the root of tiny second moments, which magnifies rounding early on.
    for a, b in zip(weights(ours), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_micro_batches_do_not_change_the_result(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    whole, parts = new_model(), new_model()
    first = run(whole, rows, loop, tmp_path / "whole")
    second = run(parts, rows, loop.model_copy(update={"micro_rows": 2}), tmp_path / "parts")
    # Rows hold unequal numbers of tokens, so a mean of means would differ in the third digit.
    for a, b in zip(first, second, strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=1e-5)
    for a, b in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_bit_identical(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path, optimizer: str
) -> None:
    loop = loop.model_copy(update={"optimizer": optimizer})
    undisturbed = new_model()
    run(undisturbed, rows, loop, tmp_path / "a")

    class Killed(Exception):
        pass

    def dies(model: Llama, batch: Batch) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Killed
        return next_token(model, batch)

    calls = 0
    with pytest.raises(Killed):
        run(new_model(), rows, loop, tmp_path / "b", dies)
    again = new_model()
    steps = run(again, rows, loop, tmp_path / "b")
    assert steps[0]["step"] == 4  # the checkpoint of step 3 was found
    assert all(map(torch.equal, weights(again), weights(undisturbed)))


def test_a_damaged_checkpoint_is_passed_over(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    undisturbed = new_model()
    run(undisturbed, rows, loop, tmp_path)
    newest = max(tmp_path.glob("step-*")) / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = new_model()
    steps = run(again, rows, loop, tmp_path)
    assert [event["step"] for event in steps] == [8]  # from the one of step 6
    assert all(map(torch.equal, weights(again), weights(undisturbed)))


@pytest.mark.parametrize("moment", [5, 8])
def test_ctrl_c_saves_the_step_in_hand(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path, moment: int
) -> None:
    def interrupted(model: Llama, batch: Batch) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGINT)
        return next_token(model, batch)

    calls = 0
    with pytest.raises(Interrupted, match=f"after step {moment} of 8, which is saved"):
        run(new_model(), rows, loop, tmp_path, interrupted)
    assert (tmp_path / f"step-0000000{moment}").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_hook_sees_every_step_with_the_weights_it_left(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    seen: list[tuple[int, torch.Tensor]] = []

    def look(step: int, model: Llama) -> None:
        seen.append((step, weights(model)[0]))

    source = RowSource(rows, seed=5, config=loop)
    model = new_model()
    train(model, next_token, source, loop, tmp_path, EventLog(), after_step=look)
    assert [step for step, _ in seen] == list(range(1, 9))
    assert torch.equal(seen[-1][1], weights(model)[0])
    assert not any(torch.equal(a[1], b[1]) for a, b in pairwise(seen))


def test_a_loss_that_is_not_a_number_stops_the_run(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    def broken(model: Llama, batch: Batch) -> Outcome:
        outcome = next_token(model, batch)
        return Outcome(outcome.loss_sum * math.nan, outcome.count)

    with pytest.raises(PunaError, match="step 1: the loss is nan: lower learning_rate"):
        run(new_model(), rows, loop, tmp_path, broken)


def test_a_language_with_a_rule_is_learned(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    longer = loop.model_copy(update={"steps": 150, "log_every": 1, "checkpoint_every": 150})
    steps = run(new_model(), rows, longer, tmp_path)
    assert steps[0]["loss"] > 3.3  # about ln 31
    assert steps[-1]["loss"] < 1.0


def test_the_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    loop = LoopConfig(steps=101, batch_rows=1, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(loop, 0) == pytest.approx(0.1)
    assert learning_rate(loop, 9) == pytest.approx(1.0)
    assert learning_rate(loop, 55) == pytest.approx(0.55, abs=1e-3)  # half way: the mean
    assert learning_rate(loop, 100) == pytest.approx(0.1)


def test_norm_weights_are_not_decayed(new_model: New, loop: LoopConfig) -> None:
    (adamw,) = build_optimizers(new_model(), loop)
    decayed, kept = adamw.param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(
    new_model: New, loop: LoopConfig
) -> None:
    model = new_model()
    muon, adamw = build_optimizers(model, loop.model_copy(update={"optimizer": "muon"}))
    inner = {p for block in model.model.layers for p in block.parameters() if p.ndim == 2}
    assert set(muon.param_groups[0]["params"]) == inner
    matrices, norms = (set(group["params"]) for group in adamw.param_groups)
    assert inner | matrices | norms == set(model.parameters())
    assert {p.ndim for p in norms} == {1}


def test_bf16_activations_keep_weights_and_gradients_in_fp32(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    seen = set()

    def watched(model: Llama, batch: Batch) -> Outcome:
        seen.add(model.hidden(batch.ids).dtype)
        return next_token(model, batch)

    model = new_model()
    steps = run(model, rows, loop.model_copy(update={"precision": "bf16"}), tmp_path, watched)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact = run(new_model(), rows, loop, tmp_path / "fp32")
    # bf16 keeps 8 bits: activations are off by up to 0.4%, their mean loss by less.
    assert steps[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=2e-2)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    def explodes(model: Llama, batch: Batch) -> Outcome:
        outcome = next_token(model, batch)
        outcome.loss_sum.register_hook(lambda gradient: gradient * math.inf)
        return outcome

    model = new_model()
    before = weights(model)
    with pytest.raises(PunaError, match="step 1: the gradient's norm is"):
        run(model, rows, loop, tmp_path, explodes)
    assert all(map(torch.equal, weights(model), before))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 9}, "warmup_steps 9 exceeds steps 8"),
        ({"micro_rows": 4}, "batch_rows 6 is not a multiple of micro_rows 4"),
        ({"learning_rate": 0}, "'learning_rate' is 0"),
        ({"step": 3}, "unknown key 'step': did you mean 'steps'?"),
    ],
)
def test_a_wrong_loop_config_names_the_mend(
    loop: LoopConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        LoopConfig.parse(loop.model_dump() | changes, where="recipe")
    assert message in str(error.value)


def test_bf16_without_hardware_for_it_is_warned_of(
    new_model: New,
    rows: PackedRows,
    loop: LoopConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for asked, has_it, warned in (("bf16", False, 1), ("bf16", True, 0), ("auto", False, 0)):
        monkeypatch.setattr("puna.core.devices.fast_bf16", lambda _, has_it=has_it: has_it)
        said: list[dict[str, Any]] = []
        short = loop.model_copy(update={"precision": asked, "steps": 1, "checkpoint_every": 1})
        folder, source = tmp_path / f"{asked}-{has_it}", RowSource(rows, seed=0, config=short)
        train(new_model(), next_token, source, short, folder, EventLog(readers=(said.append,)))
        texts = [event["text"] for event in said if event["kind"] == "warning"]
        assert len(texts) == warned
        assert all("leave precision at auto" in text for text in texts)


def test_a_trace_has_the_operations_of_its_step_and_changes_nothing(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    plain, watched = new_model(), new_model()
    run(plain, rows, loop, tmp_path / "plain")
    place = tmp_path / "traces"
    run(
        watched, rows, loop.model_copy(update={"trace_step": 2, "trace_to": str(place)}),
        tmp_path / "watched",
    )  # fmt: skip
    (path,) = place.iterdir()
    assert path.name == "train-step-2-process-0.json.gz"
    with gzip.open(path) as handle:
        names = {event.get("name") for event in json.load(handle)["traceEvents"]}
    assert {"aten::mm", "Optimizer.step#AdamW.step"} <= names
    assert all(map(torch.equal, weights(plain), weights(watched)))


def test_a_step_says_what_it_computes_and_holds(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    model = new_model()
    for event in run(model, rows, loop, tmp_path):
        flops = event["tokens_per_s"] * model.config.flops_per_token(0)
        assert event["tflops"] == pytest.approx(flops / 1e12)
        assert event["memory_gib"] > 0
        assert "bubble" not in event
