"""The stage in which a model learns to live with the rounding of an edge device."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from puna.alignment import quantisation_aware
from puna.formats import save_model
from puna.tokenizer import Tokenizer
from puna.training import next_token, train
from puna.training.loop import compute_dtype
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.chats import ChatStage, TuningChats, tuning_chats
from puna.workflow.stages.training import Given, check_whole, open_base, train_and_save
from puna.workflow.watch import held_out_loss


class QATStage(ChatStage):
    """Quantisation-aware training: block weights in 4 bits, activations in 8."""

    compare: bool = False
    """Also train without the rounding and round afterwards, so that the gain shows; takes twice
    the time."""


def run_qat(config: QATStage, given: Given, folder: Path) -> dict[str, Any]:
    """Tune with the rounding that the device will apply; leaves weights on its grid."""
    check_whole(config.loop, "qat rounds whole weights, the layout spreads them")
    model, tokenizer = open_base(config, given)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    chats = tuning_chats(config, given, tokenizer, folder)
    compared: dict[str, Any] = {}
    if chats.watch.rows is not None:
        compared["held_out_loss_exact"] = held_out_loss(model, chats.watch.rows)
        if config.compare:
            compared["held_out_loss_without"] = _without(config, given, chats, folder)

    with ExitStack() as rounding:
        rounding.enter_context(quantisation_aware(model))

        def save(target: Path, trained: Any, its_tokenizer: Tokenizer) -> None:
            rounding.close()  # products are plain again, weights on the grid
            save_model(target, trained, its_tokenizer)

        chats.first_look(model)
        facts = train_and_save(
            model, tokenizer, next_token, chats.source, config.loop, config.row_length,
            given.events, folder, after_step=chats.watch, save=save,
        )  # fmt: skip
    with quantisation_aware(model):  # weights on the grid stay: only activations are rounded anew
        facts |= chats.facts | chats.held_out_facts(model) | compared
    if compared:
        given.events.emit("note", text=_told(facts))
    return facts


def _without(config: QATStage, given: Given, chats: TuningChats, folder: Path) -> float:
    """Held-out loss, rounded, of a model that was tuned the same way without the rounding."""
    model, _ = open_base(config, given)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    checkpoints = folder / SCRATCH / "without"
    stage = f"{folder.name}, without rounding"
    train(model, next_token, chats.source, config.loop, checkpoints, given.events, stage=stage)
    assert chats.watch.rows is not None
    with quantisation_aware(model):
        return held_out_loss(model, chats.watch.rows)


def _told(facts: dict[str, Any]) -> str:
    text = (
        f"held-out loss: {facts['held_out_loss_exact']} before rounding, "
        f"{facts['held_out_loss_before']} rounded, {facts['held_out_loss']} rounded after training "
        "with it"
    )
    without = facts.get("held_out_loss_without")
    return text if without is None else f"{text}, {without} after training without it"
