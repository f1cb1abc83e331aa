"""Chats to train on: what the stages that learn from them share."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from puna.alignment import ChatCounts, ChatSource, TooLong, write_chats
from puna.alignment.sft import Item
from puna.core.config import Config
from puna.core.events import EventLog
from puna.core.random import stable_seed
from puna.data import ChatForm, MixedRows, MixSource, NamedChat, PackedRows, read_chats
from puna.data.generators import generate_chats
from puna.model import Llama
from puna.parallel import here
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.training import FromModel, Given
from puna.workflow.watch import Watch


class DataFile(Config):
    """Data of your own: its path alone, or with a weight and a form."""

    path: Path
    """JSONL, JSON, Parquet or Arrow, or the folder of a Hugging Face dataset."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the tokens of all files; empty: each row once a pass."""
    form: ChatForm = "auto"
    """How a row says its chat; ``auto`` looks at the first."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str | Path) else given


class ChatStage(FromModel):
    """What stages that learn from chats have in common; only the answers are trained."""

    together: ClassVar[bool] = True

    files: tuple[DataFile, ...] = ()
    """Chats of your own."""
    generated_chats: int = Field(default=0, ge=0)
    """Chats made by the generators."""
    held_out_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the chats in ``files`` kept for validation, 500 chats at most."""
    validations: int = Field(default=10, ge=1)
    """How often the loss on them is measured while training."""
    samples: int = Field(default=0, ge=0)
    """Answers of the model shown each time."""
    too_long: TooLong = "error"
    """What becomes of a chat longer than a row: an error, ``cut`` at its end, or ``drop``."""
    row_length: int = Field(ge=8)
    """Tokens in a packed row."""
    loop: LoopConfig
    """How it is optimised."""

    @model_validator(mode="after")
    def _some_chats(self) -> Self:
        beside = self.chats_beside_files()
        if not (self.files or any(beside.values())):
            raise ValueError(f"no chats: set files or {' or '.join(beside)}")
        if len({file.weight is None for file in self.files}) > 1:
            raise ValueError("some files have a weight and some have none: give it to all")
        return self

    def chats_beside_files(self) -> dict[str, bool]:
        """The settings that bring chats, and whether each does."""
        return {"generated_chats": self.generated_chats > 0}

    def reads(self) -> list[Path]:
        """Its files."""
        return [file.path for file in self.files]


@dataclass(frozen=True)
class TuningChats:
    """Chats as rows to train on, and as what is looked at meanwhile."""

    source: MixSource
    watch: Watch
    """Measures the loss of the held-out chats, where there are such."""
    n_held_out: int
    facts: dict[str, Any]
    """Figures of the data."""

    def first_look(self, model: Llama) -> None:
        """Measure before the first step, unless a run that was stopped did so."""
        if 0 not in self.watch.losses:
            self.watch.look(0, model)

    def held_out_facts(self, model: Llama) -> dict[str, Any]:
        """Losses of the held-out chats, before and after; nothing where none are held out."""
        watch = self.watch
        if watch.rows is None:
            return {}
        if watch.steps not in watch.losses:  # the run was stopped after its last step
            watch.look(watch.steps, model)
        before, after = watch.losses[0], watch.losses[watch.steps]
        text = f"held-out chats: {self.n_held_out:,}, loss {before} -> {after}"
        watch.events.emit("note", text=text)
        return {
            "held_out_chats": self.n_held_out,
            "held_out_loss_before": before,
            "held_out_loss": after,
            "held_out_losses": {str(step): loss for step, loss in sorted(watch.losses.items())},
        }


def tuning_chats(
    config: ChatStage,
    given: Given,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    sources: Sequence[ChatSource] = (),
    more: Sequence[NamedChat] = (),
    replay: Callable[[int], Iterable[Item]] | None = None,
) -> TuningChats:
    """The user's files, each a source, then what is generated; tells what there is to learn from.

    Args:
        folder: of the stage.
        sources: further ones, after the files.
        more: chats that are mixed with the generated ones.
        replay: see `write_chats`.
    """
    seed, drawn, events = given.seed, given.drawn, given.events
    generated = generate_chats(seed, config.generated_chats, drawn.countries, drawn.kinds)
    named = [NamedChat(f"generated chat {i}", chat.messages) for i, chat in enumerate(generated)]
    own = [
        ChatSource(read_chats(file.path, file.form), file.weight, may_hold_out=True)
        for file in config.files
    ]
    chats = here().on_first(
        lambda: write_chats(
            folder / SCRATCH / "tokens",
            tokenizer,
            [*own, *sources, ChatSource([*named, *more])],
            row_length=config.row_length,
            seed=seed,
            too_long=config.too_long,
            held_out_fraction=config.held_out_fraction,
            replay=replay,
        )
    )
    loop = config.loop
    rows = MixedRows(chats.tokens, chats.groups, config.row_length, stable_seed(seed, "sft"))
    first_pass = rows.packed(0)
    epochs = loop.steps * loop.batch_rows / len(first_pass)
    padding = first_pass.packing.padding
    _tell(events, chats.counts, epochs, padding, config.row_length)
    held_out = None
    if len(chats.held_out):
        held_out = PackedRows(chats.tokens, config.row_length, chats.held_out)
    watch = Watch(
        tokenizer,
        held_out,
        chats.questions[: config.samples],
        loop.steps,
        math.ceil(loop.steps / config.validations),
        events,
        folder.name,
        folder / SCRATCH / "validation.json",
    )
    facts = {
        "chats": chats.counts.chats,
        "trained_tokens": chats.counts.trained_tokens,
        "epochs": round(epochs, 3),
        "padding": round(padding, 4),
    }
    source = MixSource(rows, loop.batch_rows, loop.micro_rows)
    return TuningChats(source, watch, len(chats.held_out), facts)


def _tell(
    events: EventLog, counts: ChatCounts, epochs: float, padding: float, row_length: int
) -> None:
    """What there is to learn from, and what is odd about it."""
    events.emit(
        "note",
        text=f"{counts.chats:,} chats, {counts.trained_tokens:,} trained tokens, {epochs:.2f} "
        f"epochs, padding {padding:.1%}",
    )
    if counts.cut or counts.dropped:
        text = f"of the chats longer than {row_length} tokens {counts.cut:,} are cut, "
        events.emit("warning", text=f"{text}{counts.dropped:,} are left out")
    if not counts.trained_ends:
        events.emit(
            "warning",
            text="no end of turn is trained: a model tuned so never stops; train whole answers",
        )
