"""A recipe for going on with pretraining on one's own texts, made from a few settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.core.wheels import WheelUnavailable
from puna.data import Document
from puna.data.document import SourceUnavailable
from puna.data.files import read_files
from puna.data.sources import SOURCES, read_source
from puna.data.split import split
from puna.formats import load_tokenizer
from puna.pretraining import document_tokens
from puna.workflow.recipe import Recipe
from puna.workflow.single import Tuning, single_stage

_MEASURED = 200  # documents whose tokens are counted, to tell tokens from characters
_HELD_OUT = (0.05, 0.1, 0.2)  # of the documents: the first share that holds any out
_WEIGHT_DECAY = 0.1


def text_recipe(model: str, paths: Sequence[Path], beside: Sequence[str], tuning: Tuning) -> Recipe:
    """A recipe that reads texts for about ``epochs`` passes.

    Args:
        paths: files or folders, as `puna.data.files.read_files` takes them.
        beside: sources of general text by name, each as long as the texts together at most.
    """
    names = ["files", *(f"files-{number}" for number in range(2, len(paths) + 1))]
    own = [d for name, path in zip(names, paths, strict=True) for d in read_files(path, name)]
    chars = _n_chars(own)
    if not chars:
        raise UsageError(f"--data {paths[0]}: there is no text in it")
    for name in (beside := list(dict.fromkeys(beside))):
        if name not in SOURCES:
            raise UsageError(f"--beside {name}: no such source: known: {', '.join(SOURCES)}")
    sources: dict[str, Any] = {n: {"path": str(p)} for n, p in zip(names, paths, strict=True)}
    sources |= {name: {"max_chars": chars} for name in beside}
    more = sum(min(chars, _n_chars(_general(name))) for name in beside)
    tokens = (chars + more) * _tokens_per_char(model, own)
    rows = max(1.0, tokens * (1 - _HELD_OUT[0]) / tuning.row_length)
    settings = {
        "base": model,
        "row_length": tuning.row_length,
        "loop": {"weight_decay": _WEIGHT_DECAY} | tuning.loop_for(rows),
        **({"lora": tuning.lora} if tuning.lora else {}),
    }
    nothing = {"exercises": 0, "geography": 0, "stories": 0}

    def recipe(fraction: float) -> Recipe:
        corpus = {"sources": sources, "validation_fraction": fraction}
        before = {"data": {"corpus": corpus, "generated": nothing}}
        return single_stage("cpt", tuning.name, settings, tuning.seed, before=before)

    seed = recipe(0.0).seed
    return recipe(next((share for share in _HELD_OUT if all(split(seed, own, share))), 0.0))


def _n_chars(documents: Sequence[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _general(name: str) -> Sequence[Document]:
    """A source's documents; none where its wheel cannot be had, which the run will say."""
    try:
        return read_source(name)
    except (WheelUnavailable, SourceUnavailable):
        return []


def _tokens_per_char(model: str, documents: Sequence[Document]) -> float:
    texts = [document.text for document in documents[:: 1 + len(documents) // _MEASURED]]
    tokens = document_tokens(load_tokenizer(model), texts)
    return sum(map(len, tokens)) / max(1, sum(map(len, texts)))
