"""The stage in which a model learns all that a larger one says of each next token."""

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from puna.alignment import DistillConfig, DistillObjective
from puna.core.devices import default_device
from puna.core.errors import UsageError
from puna.formats import load_model
from puna.model import Llama
from puna.tokenizer import Tokenizer
from puna.training.loop import compute_dtype
from puna.workflow.stages.chats import ChatStage, tuning_chats
from puna.workflow.stages.training import MODEL, Given, digest_of, open_base, train_and_save
from puna.workflow.watch import held_out_loss

# Digits, accents, code and space: what tokenizers split in ways of their own.
_PROBE = "The 3 llamas' wool weighs 1234.5 kg, naïvely.\n\n\tdef shear(llama): return llama.wool"


class DistillStage(ChatStage):
    """Distillation: the student is the model it starts from."""

    teacher: str = Field(min_length=1)
    """Model to learn from, of the same tokenizer: an earlier stage's name, or a model as commands
    take it."""
    layers: int = Field(default=0, ge=0)
    """Blocks of the student that are kept, the first, the last and some evenly between; 0 keeps
    all. So a model can be the teacher of its own smaller self."""
    distill: DistillConfig = DistillConfig()
    """The method's own knobs."""

    def needs(self) -> list[str]:
        """The teacher, where an earlier stage made it."""
        return [self.teacher]

    def circumstances(self) -> list[str]:
        """The files of a teacher from elsewhere."""
        path = Path(self.teacher)
        return [digest_of(path)] if path.exists() else []


def run_distill(config: DistillStage, given: Given, folder: Path) -> dict[str, Any]:
    """Bring the student closer to the teacher, on the answers of chats."""
    student, tokenizer = open_base(config, given)
    if config.layers:
        keep_layers(student, config.layers)
    dtype = student.compute_dtype = compute_dtype(config.loop, student.device)
    source = given.earlier.get(config.teacher)
    name = source.folder / MODEL if source else config.teacher
    teacher, its_tokenizer = load_model(name, dtype=dtype, device=default_device())
    _same_tokens(tokenizer, its_tokenizer, config.teacher)
    chats = tuning_chats(config, given, tokenizer, folder)
    plain, rows = DistillObjective(DistillConfig(), teacher), chats.watch.rows
    facts: dict[str, Any] = {"teacher": str(config.teacher)}
    if rows is not None:
        facts["teacher_loss"] = held_out_loss(teacher, rows)
        facts["divergence_before"] = held_out_loss(student, rows, plain)
    chats.first_look(student)
    facts |= train_and_save(
        student,
        tokenizer,
        DistillObjective(config.distill, teacher),
        chats.source,
        config.loop,
        config.row_length,
        given.events,
        folder,
        after_step=chats.watch,
    )
    facts |= chats.facts | chats.held_out_facts(student)
    if rows is not None:
        facts["divergence"] = held_out_loss(student, rows, plain)
        given.events.emit(
            "note",
            text=f"divergence from the teacher: {facts['divergence_before']} -> "
            f"{facts['divergence']} nats a token; the teacher's own loss is "
            f"{facts['teacher_loss']}",
        )
    return facts


def keep_layers(model: Llama, n_layers: int) -> None:
    """Drop blocks, in place, until ``n_layers`` are left: first, last, and evenly between.

    Raises `UsageError` when the model has no more than that.
    """
    blocks = model.model.layers
    if n_layers >= len(blocks):
        raise UsageError(
            f"layers is {n_layers}, and the student has {len(blocks)}: ask for fewer, or 0 for all"
        )
    step = (len(blocks) - 1) / max(1, n_layers - 1)
    model.model.layers = nn.ModuleList([blocks[round(i * step)] for i in range(n_layers)])
    model.config = model.config.model_copy(update={"n_layers": n_layers})


def _same_tokens(student: Tokenizer, teacher: Tokenizer, name: str) -> None:
    """Raise `UsageError` where a teacher's token means another text to the student."""
    if student.vocab_size != teacher.vocab_size or student.encode(_PROBE) != teacher.encode(_PROBE):
        raise UsageError(
            f"teacher {name} has another tokenizer than the student: distil between models of one "
            "tokenizer"
        )
