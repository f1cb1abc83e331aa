"""Evaluation items found in training documents.

As Llama 3 measures it (arXiv 2407.21783, sec. 5.1.4), by 8-grams: an item is in a document when the
8-grams they share cover enough of the item's words. A shorter item must be there whole.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from puna.data.document import Document
from puna.data.text import words

NGRAM = 8
# Shorter items ("Paris") stand in innocent documents: they are not looked for.
MIN_WORDS = 4

_Gram = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A document that holds an evaluation item.

    Attributes:
        document: the training document.
        item: rank of the item among those given.
        overlap: share of the item's words found, in (0, 1].
    """

    document: Document
    item: int
    overlap: float


class ItemIndex:
    """Looks for evaluation items in documents.

    Args:
        items: the texts to look for, e.g. each question with its answer.
        overlap: share of an item's words that must be found for it to count as present.
    """

    def __init__(self, items: Sequence[str], overlap: float) -> None:
        self.overlap = overlap
        self.n_items = len(items)
        self.n_too_short = 0
        self._items: list[list[str]] = []
        self._places: defaultdict[_Gram, list[tuple[int, int]]] = defaultdict(list)
        for number, item in enumerate(items):
            self._add(number, words(item))
        # One look-up per word of a document: most grams end at their first four words.
        self._beginnings = {gram[:MIN_WORDS] for gram in self._places}
        self._sizes = sorted({len(gram) for gram in self._places})

    def _add(self, number: int, tokens: list[str]) -> None:
        self._items.append(tokens)
        if len(tokens) < MIN_WORDS:
            self.n_too_short += 1
            return
        size = min(NGRAM, len(tokens))
        for start in range(len(tokens) - size + 1):
            self._places[tuple(tokens[start : start + size])].append((number, start))

    def find(self, document: Document, *, whole: bool = False) -> Finding | None:
        """The item most covered by the document, when that is enough; else ``None``.

        With ``whole``, only an item that stands there word for word: for texts made from the same
        templates as the items, which share 8-grams by design.
        """
        tokens = words(document.text)
        covered: dict[int, set[int]] = defaultdict(set)
        for gram in self._grams(tokens):
            for item, start in self._places.get(gram, ()):
                covered[item].update(range(start, start + len(gram)))
        if whole:
            covered = {item: found for item, found in covered.items() if self._in(tokens, item)}
        shares = ((len(found) / len(self._items[item]), item) for item, found in covered.items())
        share, item = max(shares, default=(0.0, -1))
        return Finding(document, item, share) if share >= self.overlap else None

    def _in(self, tokens: list[str], item: int) -> bool:
        return f" {' '.join(self._items[item])} " in f" {' '.join(tokens)} "

    def _grams(self, tokens: list[str]) -> Iterable[_Gram]:
        beginnings = self._beginnings
        fours = zip(*(tokens[i:] for i in range(MIN_WORDS)), strict=False)
        for start, beginning in enumerate(fours):
            if beginning in beginnings:
                for size in self._sizes:
                    yield tuple(tokens[start : start + size])


def drop_contaminated(
    documents: Iterable[Document], index: ItemIndex, *, whole: bool = False
) -> tuple[list[Document], list[Finding]]:
    """(kept, findings): documents free of items, and the others; ``whole`` as in `find`."""
    kept: list[Document] = []
    findings: list[Finding] = []
    for document in documents:
        finding = index.find(document, whole=whole)
        if finding:
            findings.append(finding)
        else:
            kept.append(document)
    return kept, findings
