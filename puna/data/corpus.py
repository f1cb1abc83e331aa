"""From a recipe's list of sources to documents for training and validation.

Read, clean, drop duplicates, drop what holds evaluation items, split, repeat: in this order, so
that no duplicate stands on both sides and no held-out document is repeated.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.wheels import WheelUnavailable
from puna.data.card import CorpusReport, Count, SourceReport
from puna.data.cleaning import clean
from puna.data.contamination import ItemIndex, drop_contaminated
from puna.data.dedup import drop_exact, drop_near
from puna.data.document import Document, SourceUnavailable
from puna.data.files import read_files
from puna.data.sources import SOURCES, read_source
from puna.data.split import draw, split

FILES = "files"


def _known_source(name: str) -> str:
    if name in SOURCES or name == FILES or name.startswith(f"{FILES}-"):
        return name
    near = difflib.get_close_matches(name, SOURCES, n=1)
    mend = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(SOURCES)}, {FILES}"
    raise ValueError(f"no such source: {mend}")


class SourceConfig(Config):
    """How much of a source to take."""

    path: Path | None = None
    """A .txt, .md or .jsonl file or a folder of them; for the sources ``files`` and ``files-*``."""
    epochs: float = Field(default=1.0, gt=0, le=1000)
    """Passes over its training documents in the corpus; 2.5 repeats all twice and half thrice."""
    max_chars: int | None = Field(default=None, gt=0)
    """At most this many characters are taken, in whole documents drawn by the seed."""


class CorpusConfig(Config):
    """Which sources make the corpus, and what leaves a document out."""

    sources: dict[Annotated[str, AfterValidator(_known_source)], SourceConfig] = Field(default={})
    """By name: those of `puna.data.sources`, and ``files`` or ``files-*`` for one's own."""
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the documents held out of training."""
    min_chars: int = Field(default=50, ge=1)
    """Shorter documents are left out."""
    duplicate_similarity: float = Field(default=0.8, gt=0, le=1)
    """A document this like an earlier one (Jaccard index of 5-word shingles) is left out."""
    contamination_overlap: float = Field(default=0.5, gt=0, le=1)
    """A document that covers this share of an evaluation item's words is left out."""

    @model_validator(mode="after")
    def _paths_belong_to_files(self) -> Self:
        for name, source in self.sources.items():
            if (source.path is None) != (name in SOURCES):
                mend = "needs a 'path'" if source.path is None else "takes no 'path'"
                raise ValueError(f"the source '{name}' {mend}")
        return self


@dataclass(frozen=True)
class Corpus:
    """Documents ready for a tokenizer.

    Attributes:
        train: in the order of the recipe's sources, each repeated for its epochs.
        validation: each held-out document once.
        report: what was read, dropped and kept, for the data card.
    """

    train: list[Document]
    validation: list[Document]
    report: CorpusReport


class _Ledger:
    """What was read and what was left out, by source."""

    def __init__(self) -> None:
        self.read: dict[str, Count] = {}
        self.missing: dict[str, str] = {}
        self.dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def drop(self, reason: str, documents: Iterable[Document]) -> None:
        for document in documents:
            self.dropped[document.source][reason] += 1


def build_corpus(
    config: CorpusConfig,
    seed: int,
    evaluation_items: Sequence[str] = (),
    extra_documents: Sequence[Document] = (),
) -> Corpus:
    """Documents of the recipe's sources and ``extra_documents``, for training and validation.

    A pure function of its arguments and of the sources' contents. A source whose wheel cannot be
    had is left out and named in the report.

    Args:
        config: the sources and the thresholds.
        seed: decides which documents are sampled, held out and repeated.
        evaluation_items: texts that must not be trained on, e.g. each question with its answer.
        extra_documents: made elsewhere and clean; they join for exact duplicates, for evaluation
            items (dropped when one stands there word for word) and for the split.

    Raises:
        UsageError: nothing is left to train on, or nothing to validate on.
    """
    ledger = _Ledger()
    cleaned = _read_and_clean(config, seed, ledger)
    ledger.read |= _counts(extra_documents)
    different, same = drop_exact([*cleaned, *extra_documents])
    ledger.drop("exact duplicate", same)
    # Generated documents share their templates, with each other and with the evaluation: likeness
    # says nothing about them, only equality does.
    extra = [document for document in different if document.source not in config.sources]
    real = [document for document in different if document.source in config.sources]
    distinct, alike = drop_near(real, config.duplicate_similarity, seed)
    ledger.drop("near duplicate", alike)
    index = ItemIndex(evaluation_items, config.contamination_overlap)
    allowed, findings = drop_contaminated(distinct, index)
    allowed_extra, findings_extra = drop_contaminated(extra, index, whole=True)
    findings += findings_extra
    ledger.drop("evaluation item", (finding.document for finding in findings))
    train, validation = split(seed, [*allowed, *allowed_extra], config.validation_fraction)
    _require_both(train, validation, config, ledger.missing)
    report = CorpusReport(
        seed=seed,
        sources=_source_reports(config, ledger, train, validation),
        missing=ledger.missing,
        evaluation_items=index.n_items,
        evaluation_items_too_short=index.n_too_short,
        findings=tuple(findings),
    )
    return Corpus(_repeat(config, seed, train), validation, report)


def _read_and_clean(config: CorpusConfig, seed: int, ledger: _Ledger) -> list[Document]:
    cleaned: list[Document] = []
    for name, source in config.sources.items():
        try:
            found = read_files(source.path, name) if source.path else read_source(name)
        except (WheelUnavailable, SourceUnavailable) as error:
            ledger.missing[name] = str(error)
            continue
        ledger.read |= _counts(found)
        taken = _sample(found, source.max_chars, seed)
        ledger.dropped[name]["beyond max_chars"] = len(found) - len(taken)
        kind = SOURCES[name].kind if name in SOURCES else "prose"
        kept, dropped = clean(taken, kind, config.min_chars)
        ledger.dropped[name].update(dropped)
        cleaned += kept
    return cleaned


def _sample(documents: list[Document], max_chars: int | None, seed: int) -> list[Document]:
    """Documents of at most ``max_chars`` in all, drawn by the seed, in their own order."""
    if max_chars is None:
        return documents
    room = max_chars
    taken = set()
    for document in sorted(documents, key=partial(draw, seed, "sample")):
        if len(document.text) <= room:
            room -= len(document.text)
            taken.add(document.key)
    return [document for document in documents if document.key in taken]


def _repeat(config: CorpusConfig, seed: int, documents: list[Document]) -> list[Document]:
    """Pass after pass, as many as each document's source has epochs."""

    def passes(document: Document) -> int:
        source = config.sources.get(document.source)
        whole, part = divmod(source.epochs if source else 1.0, 1.0)
        return int(whole) + (draw(seed, "epochs", document) < part)

    wanted = [(document, passes(document)) for document in documents]
    most = max(count for _, count in wanted)
    return [document for i in range(most) for document, count in wanted if i < count]


def _counts(documents: Iterable[Document]) -> dict[str, Count]:
    totals: defaultdict[str, list[int]] = defaultdict(list)
    for document in documents:
        totals[document.source].append(len(document.text))
    return {name: Count(len(lengths), sum(lengths)) for name, lengths in totals.items()}


def _source_reports(
    config: CorpusConfig, ledger: _Ledger, train: list[Document], validation: list[Document]
) -> dict[str, SourceReport]:
    in_train, in_validation = _counts(train), _counts(validation)
    nothing = Count(0, 0)
    return {
        name: SourceReport(
            read=read,
            dropped={reason: n for reason, n in ledger.dropped[name].items() if n},
            train=in_train.get(name, nothing),
            validation=in_validation.get(name, nothing),
            epochs=config.sources[name].epochs if name in config.sources else 1.0,
            path=config.sources[name].path if name in config.sources else None,
        )
        for name, read in ledger.read.items()
    }


def _require_both(
    train: list[Document],
    validation: list[Document],
    config: CorpusConfig,
    missing: Mapping[str, str],
) -> None:
    if not train:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        because = f" ({reasons})" if reasons else ""
        raise UsageError(
            f"the corpus holds no training document{because}: name other 'sources', for instance "
            "python-library, which every machine has"
        )
    if config.validation_fraction and not validation:
        raise UsageError(
            f"validation_fraction {config.validation_fraction} of {len(train)} documents holds "
            "none out: raise it, add documents, or set it to 0"
        )
