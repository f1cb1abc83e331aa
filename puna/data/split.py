"""Which documents are for validation: a pure function of the seed and the document's name."""

from collections.abc import Iterable

from puna.core.random import stable_seed
from puna.data.document import Document


def draw(seed: int, purpose: str, document: Document) -> float:
    """A number in [0, 1) that depends on nothing but the arguments; parts of a whole share it."""
    return stable_seed(seed, purpose, document.source, document.whole) / 2**63


def is_validation(seed: int, document: Document, fraction: float) -> bool:
    """Whether a document is held out; adding or removing others never changes the answer."""
    return draw(seed, "validation", document) < fraction


def split(
    seed: int, documents: Iterable[Document], fraction: float
) -> tuple[list[Document], list[Document]]:
    """(train, validation), each in the order given."""
    train: list[Document] = []
    validation: list[Document] = []
    for document in documents:
        side = validation if is_validation(seed, document, fraction) else train
        side.append(document)
    return train, validation
