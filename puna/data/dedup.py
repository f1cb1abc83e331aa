"""Duplicates: the first of equal or nearly equal documents is kept.

Near duplicates are found with MinHash and locality-sensitive hashing (Broder 1997), and dropped
only when their exact Jaccard similarity confirms it: no document falls to a chance collision.
"""

import hashlib
from collections.abc import Iterable

from rensa import RMinHash, RMinHashLSH

from puna.data.document import Document
from puna.data.text import words

SHINGLE_WORDS = 5
N_PERMUTATIONS = 128
# 32 bands of 4 rows: pairs of similarity 0.7 become candidates with probability 1 - 2e-4.
N_BANDS = 32


def drop_exact(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """(kept, dropped): documents are equal when only case and spacing differ."""
    seen: set[bytes] = set()
    kept: list[Document] = []
    dropped: list[Document] = []
    for document in documents:
        text = " ".join(document.text.casefold().split())
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        (dropped if digest in seen else kept).append(document)
        seen.add(digest)
    return kept, dropped


def shingles(text: str) -> set[str]:
    """The runs of 5 words of a text; all its words as one when it has fewer."""
    tokens = words(text)
    starts = range(max(1, len(tokens) - SHINGLE_WORDS + 1))
    return {" ".join(tokens[start : start + SHINGLE_WORDS]) for start in starts}


def jaccard(left: set[str], right: set[str]) -> float:
    """Size of the intersection over size of the union."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def drop_near(
    documents: list[Document], similarity: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """(kept, dropped): a document goes when it is ``similarity`` or more like an earlier kept one.

    Similarity is the Jaccard index of their 5-word shingles.
    """
    sketches = RMinHash.from_token_sets(
        (shingles(document.text) for document in documents), N_PERMUTATIONS, seed % 2**32
    )
    index = RMinHashLSH(similarity, N_PERMUTATIONS, N_BANDS)
    kept: list[Document] = []
    dropped: list[Document] = []
    for number, (document, sketch) in enumerate(zip(documents, sketches, strict=True)):
        candidates = (documents[other].text for other in index.query(sketch))
        if _is_like_any(document.text, candidates, similarity):
            dropped.append(document)
        else:
            index.insert(number, sketch)
            kept.append(document)
    return kept, dropped


def _is_like_any(text: str, others: Iterable[str], similarity: float) -> bool:
    own: set[str] | None = None
    for other in others:
        own = own or shingles(text)
        if jaccard(own, shingles(other)) >= similarity:
            return True
    return False
