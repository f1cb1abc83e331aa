"""Each way to save memory trains as the plain loop does: bit for bit, or within what is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.data import Batch, PackedRows
from puna.model import Llama, LoraConfig, add_lora
from puna.model.recompute import Recompute
from puna.training import LoopConfig, Outcome, RowSource, adamw8bit, next_token, train

New = Callable[[], Llama]


class Killed(Exception):
    """Stands for a run that dies."""


def run(
    model: Llama,
    rows: PackedRows,
    loop: LoopConfig,
    folder: Path,
    objective: Any = next_token,
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    source = RowSource(rows, seed=5, config=loop)
    train(model, objective, source, loop, folder, EventLog(readers=(events.append,)))
    return events


def steps(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step that was told."""
    return [(e["loss"], e["grad_norm"]) for e in events if e["kind"] == "train_step"]


def weights(model: Llama) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def dies_at(call: int) -> Callable[[Llama, Batch], Outcome]:
    calls = 0

    def objective(model: Llama, batch: Batch) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return next_token(model, batch)

    return objective


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "rung",
    [
        {"recompute": "full"},
        {"recompute": "selective"},
        {"recompute": "full", "recompute_every": 2},
        {"recompute": "full", "offload_activations": True},
    ],
    ids=lambda rung: "-".join(map(str, rung.values())),
)
def test_recomputed_activations_train_bit_for_bit_the_same(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path, rung: dict[str, Any],
    precision: str,
) -> None:  # fmt: skip
    loop = loop.model_copy(update={"log_every": 1, "precision": precision})
    plain, saving = new_model(), new_model()
    expected = steps(run(plain, rows, loop, tmp_path / "plain"))
    assert steps(run(saving, rows, loop.model_copy(update=rung), tmp_path / "saving")) == expected
    assert all(map(torch.equal, weights(plain), weights(saving)))
    assert saving.recompute is None


@pytest.mark.parametrize(("kind", "every"), [("full", 1), ("full", 2), ("selective", 1)])
def test_recomputing_keeps_less(
    rows: PackedRows, new_model: New, loop: LoopConfig, kind: str, every: int
) -> None:
    (batch,) = RowSource(rows, seed=5, config=loop)(0)

    def kept(model: Llama) -> int:
        """Bytes that autograd keeps of a forward pass, tensors shared counted once."""
        held: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            hidden = model.hidden(batch.ids)
            assert hidden.requires_grad
        return sum(size for place, size in held.items() if place not in own)

    plain, saving = new_model(), new_model()
    saving.recompute = Recompute(kind, every)  # type: ignore[arg-type]
    share = kept(saving) / kept(plain)
    assert share < (0.25 if (kind, every) == ("full", 1) else 0.75)


def test_offloading_on_cpu_says_that_it_changes_nothing(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    rung = {"recompute": "full", "offload_activations": True}
    events = run(new_model(), rows, loop.model_copy(update=rung), tmp_path)
    notes = [event["text"] for event in events if event["kind"] == "note"]
    assert any("host's memory already" in text for text in notes) == (not torch.cuda.is_available())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_an_update_within_the_backward_pass_is_the_same_update(
    rows: PackedRows,
    new_model: New,
    loop: LoopConfig,
    tmp_path: Path,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # within it Muon has matrices one by one: products of several may round otherwise
    monkeypatch.setattr("puna.training.muon._TOGETHER", 1)
    # a norm that is never reached: clipping is what differs between the two
    loop = loop.model_copy(update={"clip_norm": 1e9, "optimizer": optimizer, "log_every": 1})
    plain, inside = new_model(), new_model()
    expected = steps(run(plain, rows, loop, tmp_path / "plain"))
    within = loop.model_copy(update={"optimizer_in_backward": True})
    found = steps(run(inside, rows, within, tmp_path / "inside"))
    assert [loss for loss, _ in found] == [loss for loss, _ in expected]
    # squares are summed in another order
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in expected], rel=1e-6)
    assert all(map(torch.equal, weights(plain), weights(inside)))


def test_an_update_within_the_backward_pass_frees_each_gradient_at_once(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    model = new_model()
    seen = []

    def watched(gradient: torch.Tensor) -> None:
        seen.append(sum(p.grad is not None for p in model.parameters()))

    for parameter in model.parameters():
        parameter.register_hook(watched)
    run(model, rows, loop.model_copy(update={"optimizer_in_backward": True}), tmp_path)
    assert len(seen) == 8 * len(weights(model))
    assert max(seen) == 0  # when a gradient comes, those before it are gone
    (batch,) = RowSource(rows, seed=5, config=loop)(0)
    before = weights(model)
    next_token(model, batch).loss_sum.backward()
    assert all(map(torch.equal, weights(model), before))  # it ends with the run


def test_within_the_backward_pass_each_parameter_is_clipped_by_its_own_norm(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    loop = loop.model_copy(update={"optimizer": "muon", "clip_norm": 1e-5, "steps": 1})
    loop = loop.model_copy(update={"optimizer_in_backward": True, "warmup_steps": 0})
    run(new_model(), rows, loop, tmp_path)
    state = load_file(tmp_path / "step-00000001" / "state.safetensors")
    momenta = [value for name, value in state.items() if name.endswith("momentum_buffer")]
    assert len(momenta) == 14
    for momentum in momenta:  # (1 - 0.95) of a gradient of norm 1e-5, the epsilon of 1e-6 in it
        assert 0.05e-5 * 0.8 < float(momentum.norm()) <= 0.05e-5


def test_a_gradient_that_is_not_finite_is_not_applied_within_the_backward_pass_either(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    def explodes(model: Llama, batch: Batch) -> Outcome:
        outcome = next_token(model, batch)
        outcome.loss_sum.register_hook(lambda gradient: gradient * torch.inf)
        return outcome

    model = new_model()
    before = weights(model)
    inside = loop.model_copy(update={"optimizer_in_backward": True})
    with pytest.raises(PunaError, match="step 1: the gradient's norm is"):
        run(model, rows, inside, tmp_path, explodes)
    assert all(map(torch.equal, weights(model), before))


@pytest.mark.parametrize(
    "rung",
    [
        {"optimizer": "adamw8bit"},
        {"optimizer": "adamw8bit", "optimizer_in_backward": True},
        {"optimizer_in_backward": True},
        {"recompute": "selective"},
    ],
    ids=lambda rung: "-".join(map(str, rung)),
)
@pytest.mark.parametrize("adapter", [None, {}, {"base": "nf4", "dora": True}])
def test_a_resumed_run_ends_bit_identical_on_every_rung(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, rung: dict[str, Any], adapter: dict[str, Any] | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(adamw8bit, "SMALL", 0)
    loop = loop.model_copy(update=rung)

    def fresh() -> Llama:
        model = new_model()
        if adapter is not None:
            fields = {"rank": 4, "dropout": 0.2, **adapter}
            add_lora(model, LoraConfig.parse(fields, where="test"), seed=1)
        return model

    undisturbed = fresh()
    run(undisturbed, rows, loop, tmp_path / "a")
    with pytest.raises(Killed):
        run(fresh(), rows, loop, tmp_path / "b", dies_at(6))
    again = fresh()
    events = run(again, rows, loop, tmp_path / "b")
    assert events[0] == {**events[0], "kind": "train_resume", "step": 3}
    assert all(map(torch.equal, weights(again), weights(undisturbed)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer_in_backward": True, "micro_rows": 2}, "micro_rows 2 makes several"),
        ({"offload_activations": True}, "need recompute: set it to full"),
        ({"recompute_every": 2}, "need recompute: set it to full"),
    ],
)
def test_rungs_that_do_not_go_together_are_explained(
    loop: LoopConfig, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        LoopConfig.parse(loop.model_dump() | changes, where="recipe")


def test_moments_of_8_bits_learn_as_well(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(adamw8bit, "SMALL", 0)
    loop = loop.model_copy(update={"steps": 120, "log_every": 20, "checkpoint_every": 120})
    exact = steps(run(new_model(), rows, loop, tmp_path / "32"))
    short = loop.model_copy(update={"optimizer": "adamw8bit"})
    rounded = steps(run(new_model(), rows, short, tmp_path / "8"))
    assert exact[-1][0] < 1.5  # from 3.4
    for (loss, _), (reference, _) in zip(rounded, exact, strict=True):
        assert loss == pytest.approx(reference, rel=0.02)
