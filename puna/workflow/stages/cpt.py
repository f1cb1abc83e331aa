"""The stage that goes on pretraining a model, on the text of a field: continued pretraining."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from puna.data import PackedRows, read_documents
from puna.model import LoraConfig
from puna.parallel import here
from puna.pretraining import encode_documents
from puna.pretraining.held_out import held_out_loss
from puna.tokenizer import Tokenizer
from puna.training.look import set_dtype
from puna.training.loop import compute_dtype
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.corpus import VALIDATION
from puna.workflow.stages.pretrain import CorpusTraining, train_on_corpus
from puna.workflow.stages.training import FromModel, Given, adapt, open_base

_HELD_OUT_ROWS, _AT_ONCE = 128, 4


class CPTStage(FromModel, CorpusTraining):
    """Next-token training on the corpus from a model that has learned before; its tokenizer stays.

    With a curriculum it may end with a longer context than it began with.
    """

    together: ClassVar[bool] = True

    lora: LoraConfig | None = None
    """Train an adapter instead of all weights."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.lora and self.curriculum:
            raise ValueError("a curriculum trains all weights: leave out lora, or the curriculum")
        return self

    def needs(self) -> Sequence[str]:
        """What it reads."""
        return ["data"]


def run_cpt(config: CPTStage, given: Given, folder: Path) -> dict[str, Any]:
    """Train the base model on the corpus; tells the loss of held-out text before and after."""
    assert given.data is not None
    model, tokenizer = open_base(config, given, config.lora, config.loop.layout)
    adapt(model, config.lora, given)
    rows, found = _held_out(config, given.data, tokenizer, folder)

    def look(name: str) -> dict[str, float]:
        if rows is None:
            return {}
        set_dtype(model, compute_dtype(config.loop, model.device))
        return {name: round(held_out_loss(model, rows, _HELD_OUT_ROWS, _AT_ONCE), 4)}

    found |= look("held_out_loss_before")
    facts = train_on_corpus(
        config, given.seed, given.data, model, tokenizer, given.events, folder, base=given.base
    )
    found |= look("held_out_loss")
    return facts | found


def _held_out(
    config: CPTStage, data: Path, tokenizer: Tokenizer, folder: Path
) -> tuple[PackedRows | None, dict[str, Any]]:
    """The held-out documents in rows, and how many they are; no rows where nothing is held out."""
    documents = read_documents(data / VALIDATION)
    if not documents:
        return None, {}
    kept = folder / SCRATCH / "held-out"
    tokens, _ = here().on_first(lambda: encode_documents(tokenizer, documents, kept))
    return PackedRows(tokens, config.row_length), {"held_out_documents": len(documents)}
