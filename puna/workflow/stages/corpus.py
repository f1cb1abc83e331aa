"""The stages before any model: the corpus, and the tokenizer trained on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import Field

from puna.core.config import Config
from puna.core.events import EventLog
from puna.core.files import write_json, write_text
from puna.core.wheels import WheelUnavailable
from puna.data import (
    CorpusConfig,
    Country,
    DataCard,
    Document,
    build_corpus,
    read_countries,
    read_documents,
    write_documents,
)
from puna.data.generators import (
    GeneratedText,
    evaluation_questions,
    evaluation_strings,
    generate_documents,
)
from puna.tokenizer import Tokenizer

_ROLES = ["system user assistant"]  # so that a chat's headers cost a token or two each
TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
SEARCHED_PER_KIND = 200  # held-out questions looked for in the training text


class DataStage(Config):
    """Which text the model reads."""

    corpus: CorpusConfig
    """Sources, cleaning, deduplication, split."""
    generated: GeneratedText = GeneratedText()
    """Documents made by the generators."""


class TokenizerStage(Config):
    """The tokenizer trained on that text."""

    vocab_size: int = Field(ge=300)
    """Tokens in all, the special ones included."""
    digit_group: int = Field(default=3, ge=1, le=3)
    """Digits that may share a token; Llama 3 has 3, small models add better with 1."""
    n_special: int = Field(default=256, ge=10, le=256)
    """Special tokens, Llama 3's named ones first; the rest are reserved."""


@dataclass(frozen=True)
class Exercises:
    """What the generators draw from: how often each kind, and which countries there are."""

    kinds: Mapping[str, float]
    countries: Sequence[Country]


def exercises(kinds: Mapping[str, float]) -> Exercises:
    """Kinds with the countries; where their wheel cannot be had, questions on them fall away."""
    try:
        return Exercises(kinds, read_countries())
    except WheelUnavailable:
        return Exercises(kinds, ())


def run_data(
    config: DataStage, seed: int, drawn: Exercises, events: EventLog, folder: Path
) -> dict[str, Any]:
    """Read, clean and split the documents; write them with their card."""
    generated = list(generate_documents(seed, config.generated, drawn.countries, drawn.kinds))
    questions = evaluation_questions(seed, SEARCHED_PER_KIND, drawn.countries, drawn.kinds)
    corpus = build_corpus(config.corpus, seed, evaluation_strings(questions), generated)
    for name, reason in corpus.report.missing.items():
        events.emit("note", text=f"without {name}: {reason}")
    write_documents(folder / TRAIN, corpus.train)
    write_documents(folder / VALIDATION, corpus.validation)
    card = DataCard(corpus.report)
    write_json(folder / "card.json", card.to_dict())
    write_text(folder / "card.md", card.to_markdown())
    facts: dict[str, Any] = {
        "documents": len(corpus.train),
        "chars": _chars(corpus.train),
        "validation_documents": len(corpus.validation),
        "validation_chars": _chars(corpus.validation),
        "missing": dict(corpus.report.missing),
    }
    events.emit(
        "note",
        text=f"{facts['documents']:,} documents, {facts['chars'] / 1e6:.1f} million characters; "
        f"{facts['validation_documents']:,} documents held out",
    )
    return facts


def _chars(documents: Sequence[Document]) -> int:
    return sum(len(document.text) for document in documents)


def run_tokenizer(
    config: TokenizerStage, data: Path, events: EventLog, folder: Path
) -> dict[str, Any]:
    """Train the tokenizer on the training documents."""
    documents = read_documents(data / TRAIN)
    tokenizer = Tokenizer.train(
        chain((document.text for document in documents), _ROLES * len(documents)),
        config.vocab_size,
        digit_group=config.digit_group,
        n_special=config.n_special,
    )
    tokenizer.save(folder / "tokenizer")
    sample = [document.text for document in read_documents(data / VALIDATION)]
    tokens = sum(map(len, tokenizer.encode_batch(sample)))
    facts = {
        "vocab_size": tokenizer.vocab_size,
        "chars_per_token": round(sum(map(len, sample)) / max(1, tokens), 3),
    }
    events.emit(
        "note",
        text=f"{tokenizer.vocab_size:,} tokens, {facts['chars_per_token']} characters each",
    )
    return facts
