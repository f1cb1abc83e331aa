"""Cleaning: what every text is brought to, and the rules that leave a document out.

Prose is judged by all rules. Code keeps its spacing, and may repeat itself.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from puna.data.document import Document
from puna.data.text import unify, words

Rule = Callable[[str], bool]

# Gopher (Rae et al. 2021, arXiv 2112.11446), table A1.
MAX_REPEATED_LINES = 0.30
MAX_REPEATED_NGRAMS = 0.10  # of 10-grams: a title or a question may recur, a passage may not
NGRAM = 10
MIN_LETTER_SHARE = 0.5
MAX_BROKEN_SHARE = 0.002

_INNER_RUN = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_BLANK_LINES = re.compile(r"\n{3,}")
# What UTF-8 read as Latin-1 or Windows-1252 looks like, and the sign of an undecodable byte.
_BROKEN = re.compile(r"\ufffd|[\ue000-\uf8ff]|Ã[\x80-\xbf©¨¡±³¶¼]|â€[™œ\u009d“”¦]|Â[\xa0-\xbf]")


def tidy_prose(text: str) -> str:
    """`unify`, and no runs of spaces within a line nor of blank lines between paragraphs."""
    return _BLANK_LINES.sub("\n\n", _INNER_RUN.sub(" ", unify(text))).strip()


def shorter_than(min_chars: int) -> Rule:
    """The rule that leaves out texts under ``min_chars`` characters."""
    return lambda text: len(text) < min_chars


def repeats_lines(text: str) -> bool:
    """Whether lines seen before hold more than 30% of the text's characters."""
    counts = Counter(line for line in text.split("\n") if line.strip())
    total = sum(len(line) * count for line, count in counts.items())
    repeated = sum(len(line) * (count - 1) for line, count in counts.items())
    return repeated > MAX_REPEATED_LINES * total


def repeats_ngrams(text: str) -> bool:
    """Whether 10-grams seen before cover more than 10% of the text's words."""
    tokens = words(text)
    seen: set[tuple[str, ...]] = set()
    covered = end = 0
    for start, gram in enumerate(zip(*(tokens[i:] for i in range(NGRAM)), strict=False)):
        if gram in seen:
            covered += start + NGRAM - max(start, end)
            end = start + NGRAM
        seen.add(gram)
    return covered > MAX_REPEATED_NGRAMS * len(tokens)


def lacks_letters(text: str) -> bool:
    """Whether under half of the visible characters are letters: tables, numbers, debris."""
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) < MIN_LETTER_SHARE * len(visible)


def is_broken(text: str) -> bool:
    """Whether more than 2 in 1,000 characters show a wrong decoding."""
    return len(_BROKEN.findall(text)) > MAX_BROKEN_SHARE * len(text)


def clean(
    documents: Iterable[Document], kind: Literal["prose", "code"], min_chars: int
) -> tuple[list[Document], dict[str, int]]:
    """The tidied documents that pass, and how many each rule left out.

    A document that several rules name counts for the first.
    """
    tidy = tidy_prose if kind == "prose" else unify
    rules: dict[str, Rule] = {"too short": shorter_than(min_chars), "broken text": is_broken}
    if kind == "prose":
        rules["few letters"] = lacks_letters
        rules["repeated lines"] = repeats_lines
        rules["repeated 10-grams"] = repeats_ngrams
    kept: list[Document] = []
    dropped = dict.fromkeys(rules, 0)
    for document in documents:
        text = tidy(document.text)
        reason = next((name for name, applies in rules.items() if applies(text)), None)
        if reason is None:
            kept.append(replace(document, text=text))
        else:
            dropped[reason] += 1
    return kept, dropped
