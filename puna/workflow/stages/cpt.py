"""The stage that goes on pretraining a model, on the text of a field: continued pretraining."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.data import Document, PackedRows, read_documents
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

_HELD_OUT_CHARS = 150_000  # about 40,000 tokens: bounds what two looks take
_TOKENS_AT_ONCE = 2048  # in one look at held-out text, where the loop's rows do not say how many
_OWN = "files"  # how the sources of one's own begin


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
    """Train the base model on the corpus; tells the loss of held-out text before and after.

    Of weights that are averaged at the end no loss is told: they are not those that were trained.
    """
    assert given.data is not None
    model, tokenizer = open_base(config, given, config.lora, config.loop.layout)
    length = min(config.row_length, model.config.context)
    if config.row_length > length and config.curriculum is None:
        raise UsageError(
            f"stages.cpt.row_length {config.row_length:,} exceeds the model's context of "
            f"{length:,}: lower it, or give a curriculum with long_context"
        )
    layout = here().of(config.loop.layout).layout
    layout.check_batches(length, config.loop.batch_rows, config.loop.micro_rows)
    adapt(model, config.lora, given)
    documents = _held_out(given)
    rows = _rows(documents, tokenizer, folder, length) if documents else None
    losses: list[float] = []

    def look() -> None:
        if rows is not None:
            set_dtype(model, compute_dtype(config.loop, model.device))
            at_once = config.loop.micro_rows or max(1, _TOKENS_AT_ONCE // length)
            losses.append(round(held_out_loss(model, rows, len(rows), at_once), 4))

    look()
    facts = train_on_corpus(
        config, given.seed, given.data, model, tokenizer, given.events, folder,
        base=given.base, trained=look,
    )  # fmt: skip
    if rows is None or facts.get("averaged", 0) > 1:
        return facts
    return facts | {
        "held_out_documents": len(documents),
        "held_out_loss_before": losses[0],
        "held_out_loss": losses[1],
    }


def _held_out(given: Given) -> list[Document]:
    """Held-out documents drawn by the seed, of one's own sources where there are any."""
    assert given.data is not None
    found = read_documents(given.data / VALIDATION)
    own = [document for document in found if document.source.startswith(_OWN)] or found
    taken: list[Document] = []
    room = _HELD_OUT_CHARS
    for place in stream(given.seed, "held out for cpt").permutation(len(own)):
        document = own[int(place)]
        if taken and len(document.text) > room:
            break
        taken.append(document)
        room -= len(document.text)
    return taken


def _rows(
    documents: Sequence[Document], tokenizer: Tokenizer, folder: Path, length: int
) -> PackedRows:
    kept = folder / SCRATCH / "held-out"
    tokens, _ = here().on_first(lambda: encode_documents(tokenizer, documents, kept))
    return PackedRows(tokens, length)
