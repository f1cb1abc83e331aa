"""Countries: questions on capitals and continents, and small encyclopedia paragraphs.

Paragraphs state the facts of every country; questions split the countries into trained and held
out. So the held-out questions measure whether tuning brings out what pretraining taught.
"""

from collections.abc import Sequence

from numpy.random import Generator

from puna.data.generators.problems import (
    COUNTRY,
    Draw,
    Form,
    Problem,
    capitalized,
    chance,
    pick,
    pick_two,
)
from puna.data.generators.words import DAYS, NAMES
from puna.data.geography import Country, listed

_CAPITAL = Form(
    prompts=(
        "What is the capital of {country}?",
        "What is the capital city of {country}?",
        "Which city is the capital of {country}?",
        "Name the capital of {country}.",
        "Tell me the capital of {country}.",
    ),
    full="The capital of {country} is {answer}.",
    statements=(
        "{answer} is the capital of {country}.",
        "{country} has its capital in {answer}.",
        "The capital city of {country} is called {answer}.",
        "The government of {country} sits in {answer}, the capital.",
    ),
)
_CONTINENT = Form(
    prompts=(
        "Which part of the world is {country} in?",
        "In which part of the world is {country}?",
        "On which continent is {country}?",
        "Where in the world is {country}?",
    ),
    full="{country} is in {answer}.",
    statements=(
        "{country} lies in {answer}.",
        "One of the countries in {answer} is {country}.",
    ),
)
_LISTED = 6  # capitals told of in one paragraph
_JOURNEYS = (
    "{name} flew to {capital}, the capital of {country}, on a {day}.",
    "On {day} {name} took a train to {capital}, which is the capital of {country}.",
    "{name} wrote a postcard from {capital}: greetings from the capital of {country}!",
    "{name} was born in {capital}, the capital of {country}, and lives there to this day.",
)


def geography_kinds(countries: Sequence[Country]) -> dict[str, Draw]:
    """The kinds ``capital`` and ``continent``; none when there are no countries."""
    if not countries:
        return {}
    capitals = tuple(sorted({country.capital for country in countries}))
    regions = tuple(sorted({country.region for country in countries}))

    def capital(rng: Generator) -> Problem:
        country = pick(rng, countries)
        neighbours = [other for other in countries if other.region == country.region]
        options = [c.capital for c in neighbours if c.capital != country.capital]
        return _named(
            rng, "capital", _CAPITAL, country, country.capital, options or capitals, capitals
        )

    def continent(rng: Generator) -> Problem:
        country = pick(rng, countries)
        return _named(rng, "continent", _CONTINENT, country, country.region, regions, regions)

    return {"capital": capital, "continent": continent}


def _named(
    rng: Generator,
    kind: str,
    form: Form,
    country: Country,
    answer: str,
    plausible: Sequence[str],
    all_answers: Sequence[str],
) -> Problem:
    wrong = pick(rng, [name for name in plausible if name != answer])
    rivals = tuple(name for name in all_answers if name != answer)
    fields = {"country": country.name_in_sentence}
    return Problem(kind, country_key(country), form, fields, answer, wrong, "name", rivals)


def country_key(country: Country) -> str:
    """The key of everything that is asked about a country."""
    return f"{COUNTRY}{country.name}"


def geography_paragraph(rng: Generator, country: Country, countries: Sequence[Country]) -> str:
    """Some 100 to 400 characters that name the capital and the continent at least once."""
    write = pick(rng, (_encyclopedia, _journey, _pair, _capitals, _capitals, _capitals))
    return write(rng, country, countries)


def _state(rng: Generator, form: Form, country: Country, answer: str) -> str:
    template = pick(rng, (form.full, *form.statements))
    return capitalized(template.format(country=country.name_in_sentence, answer=answer))


def _encyclopedia(rng: Generator, country: Country, _countries: Sequence[Country]) -> str:
    subject = capitalized(country.name_in_sentence)
    opening = f"{subject} is a country in {country.subregion}, in {country.region}."
    sentences = [_state(rng, _CAPITAL, country, country.capital)]
    if country.currency:
        sentences.append(f"People there pay with the {country.currency}.")
    if country.languages:
        spoken = pick(rng, country.languages)
        sentences.append(f"{spoken} is spoken in {country.capital} and beyond.")
    if country.borders:
        neighbours = "its neighbours are" if len(country.borders) > 1 else "its neighbour is"
        sentences.append(f"On the map {neighbours} {listed(country.borders)}.")
    sentences.append(_state(rng, _CONTINENT, country, country.region))
    ordered = [sentences[int(place)] for place in rng.permutation(len(sentences))]
    title = f"{country.name}\n\n" if chance(rng, 0.5) else ""
    return title + " ".join([opening, *ordered])


def _capitals(rng: Generator, country: Country, countries: Sequence[Country]) -> str:
    others = rng.choice(len(countries), size=_LISTED - 1)
    chosen = [country, *(countries[int(place)] for place in others)]
    return " ".join(_state(rng, _CAPITAL, one, one.capital) for one in chosen)


def _journey(rng: Generator, country: Country, _countries: Sequence[Country]) -> str:
    journey = pick(rng, _JOURNEYS).format(
        name=pick(rng, NAMES),
        day=pick(rng, DAYS),
        capital=country.capital,
        country=country.name_in_sentence,
    )
    return " ".join(
        [
            journey,
            _state(rng, _CONTINENT, country, country.region),
            _state(rng, _CAPITAL, country, country.capital),
        ]
    )


def _pair(rng: Generator, country: Country, countries: Sequence[Country]) -> str:
    others = pick_two(rng, countries) if len(countries) > 1 else (country, country)
    three = [country, *others]
    statements = [_state(rng, _CAPITAL, each, each.capital) for each in three]
    places = [_state(rng, _CONTINENT, each, each.region) for each in three]
    return " ".join([*statements, *places])
