"""The data card: what a corpus was made of, whose it is, and what was left out."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from puna.data.contamination import Finding
from puna.data.generators.kinds import GEOGRAPHY_KINDS
from puna.data.sources import SOURCES

SHOWN_FINDINGS = 10


@dataclass(frozen=True)
class Count:
    """How much text."""

    documents: int
    chars: int


@dataclass(frozen=True)
class SourceReport:
    """One source's part in a corpus; every document read is dropped once or stands on one side.

    Attributes:
        read: what the source holds.
        dropped: documents left out, by reason.
        train: distinct documents for training.
        validation: documents held out.
        epochs: passes over the training documents.
        path: where a user's own files were.
    """

    read: Count
    dropped: Mapping[str, int]
    train: Count
    validation: Count
    epochs: float
    path: Path | None


@dataclass(frozen=True)
class CorpusReport:
    """What `build_corpus` did.

    Attributes:
        seed: of sampling, split and repetition.
        sources: by name, in the recipe's order, generated ones last.
        missing: sources that could not be had, with the reason.
        evaluation_items: how many texts were looked for.
        evaluation_items_too_short: of these, how many are too short to look for.
        findings: documents that held one, and were dropped.
    """

    seed: int
    sources: Mapping[str, SourceReport]
    missing: Mapping[str, str]
    evaluation_items: int
    evaluation_items_too_short: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class DataCard:
    """The report with licences, credits and pins beside it.

    Attributes:
        report: of the corpus.
        tokens: training tokens by source, repetitions included, where they were counted.
    """

    report: CorpusReport
    tokens: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The card as a JSON value."""
        report = self.report
        return {
            "seed": report.seed,
            "sources": {name: self._source(name) for name in report.sources},
            "missing": dict(report.missing),
            "contamination": {
                "items": report.evaluation_items,
                "items_too_short": report.evaluation_items_too_short,
                "documents_dropped": len(report.findings),
                "examples": [
                    {
                        "source": finding.document.source,
                        "key": finding.document.key,
                        "item": finding.item,
                        "overlap": round(finding.overlap, 3),
                    }
                    for finding in report.findings[:SHOWN_FINDINGS]
                ],
            },
        }

    def _source(self, name: str) -> dict[str, Any]:
        source = self.report.sources[name]
        figures = asdict(source)
        del figures["path"]
        of_countries = _states_facts_on_countries(name, self.report.sources)
        whose = _provenance(name, source.path, of_countries=of_countries)
        return whose | figures | {"tokens": self.tokens.get(name)}

    def to_markdown(self) -> str:
        """The card for people."""
        card = self.to_dict()
        blocks = [
            "# Data card",
            f"Seed {card['seed']}. Documents and characters count once; tokens count every epoch.",
            *_amounts(card["sources"]),
            *_dropped(card["sources"]),
            *_contamination(card["contamination"]),
            *_missing(card["missing"]),
            *_origins(card["sources"]),
        ]
        return "\n\n".join(blocks) + "\n"


_OF_COUNTRIES = {f"generated-{of}" for of in ("geography", *GEOGRAPHY_KINDS)}


def _states_facts_on_countries(name: str, sources: Iterable[str]) -> bool:
    """Whether the generators' source ``name``, one of ``sources``, does."""
    asked = {f"generated-{kind}" for kind in GEOGRAPHY_KINDS} & set(sources)
    return name in _OF_COUNTRIES or (name == "generated-exercises" and bool(asked))


def _provenance(name: str, path: Path | None, *, of_countries: bool) -> dict[str, Any]:
    """Where a source is from and whose it is."""
    source = SOURCES.get(name)
    if of_countries:
        facts = SOURCES["geography-en"]
        licence, credit = f"text Apache-2.0, facts {facts.licence}", f"Puna; {facts.attribution}"
    else:
        licence, credit = "Apache-2.0", "Puna"
    if source is None:
        return {
            "description": "The user's own files." if path else "Written by Puna's generators.",
            "origin": str(path) if path else "generated",
            "sha256": None,
            "licence": "as its owner states" if path else licence,
            "attribution": "its owner" if path else credit,
            "languages": [],
        }
    return {
        "description": source.description,
        "origin": str(source.wheel or f"Python {platform.python_version()}"),
        "sha256": source.wheel.sha256 if source.wheel else None,
        "licence": source.licence,
        "attribution": source.attribution,
        "languages": list(source.languages),
    }


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _amounts(sources: dict[str, Any]) -> list[str]:
    head = ["source", "read", "train", "train chars", "epochs", "train tokens"]
    head += ["validation", "validation chars"]
    rows = [
        [
            name,
            source["read"]["documents"],
            source["train"]["documents"],
            source["train"]["chars"],
            f"{source['epochs']:g}",
            "not counted" if source["tokens"] is None else source["tokens"],
            source["validation"]["documents"],
            source["validation"]["chars"],
        ]
        for name, source in sources.items()
    ]
    total = ["all", *(sum(row[i] for row in rows) for i in (1, 2, 3)), "", "", *_sums(rows, 6, 7)]
    return ["## Amounts", _table(head, [*rows, total])]


def _sums(rows: list[list[Any]], *columns: int) -> list[int]:
    return [sum(row[column] for row in rows) for column in columns]


def _dropped(sources: dict[str, Any]) -> list[str]:
    rows = [
        [name, reason, count]
        for name, source in sources.items()
        for reason, count in source["dropped"].items()
    ]
    table = _table(["source", "reason", "documents"], rows) if rows else "None."
    return ["## Documents left out", table]


def _contamination(found: dict[str, Any]) -> list[str]:
    searched = found["items"] - found["items_too_short"]
    text = (
        f"{searched:,} evaluation items were looked for in every document "
        f"({found['items_too_short']:,} more are too short to look for); "
        f"{found['documents_dropped']:,} documents held one and were dropped."
    )
    return ["## Evaluation items", text]


def _missing(missing: dict[str, str]) -> list[str]:
    lines = [f"- {name}: {reason}" for name, reason in missing.items()]
    return ["## Missing sources", "\n".join(lines)] if lines else []


def _origins(sources: dict[str, Any]) -> list[str]:
    blocks = ["## Origins and licences"]
    for name, source in sources.items():
        pin = f" (sha256 `{source['sha256']}`)" if source["sha256"] else ""
        blocks.append(
            f"**{name}**: {source['description']} From {source['origin']}{pin}; "
            f"licence {source['licence']}; credit: {source['attribution']}."
        )
    return blocks
