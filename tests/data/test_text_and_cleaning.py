import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.data.cleaning import clean, is_broken, lacks_letters, repeats_lines, repeats_ngrams
from puna.data.cleaning import tidy_prose as tidy
from puna.data.document import Document
from puna.data.text import close_holes, unify, words

PROSE = (
    "The high grassland of the Andes is called the puna. Llamas graze on it in large herds, and "
    "the people who keep them weave their wool into blankets that last a lifetime."
)


def documents(*texts: str) -> list[Document]:
    return [Document(text, "test", str(number)) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("cafe\u0301", "café"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("10\u00a0000\u202fkm", "10 000 km"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark \x07bell", "softhyphen zerowidth mark bell"),
        ("trailing   \nspaces\t\n", "trailing\nspaces"),
    ],
)
def test_unify_writes_one_form_of_what_looks_alike(given_text: str, expected: str) -> None:
    assert unify(given_text) == expected


def test_unify_keeps_what_carries_meaning() -> None:
    kept = "def f(x):\n    return x   # three spaces\n\n\n\temoji 👩\u200d🌾 ½ ἄκρον"
    assert unify(kept) == kept


def test_prose_loses_runs_of_spaces_and_of_blank_lines_but_not_its_indentation() -> None:
    assert tidy("One  two.\n\n\n\n  three   four") == "One two.\n\n  three four"


@given(st.text())
def test_tidying_twice_changes_nothing_more(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)


def test_arithmetic_signs_tell_texts_apart() -> None:
    assert words("3 + 4") != words("3 - 4")
    assert words("Straße, Café!") == ["strasse", "café"]


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("1 package () mushrooms", "1 package mushrooms"),
        ("Avogadro (, also, Italian: x; 1776)", "Avogadro (also, Italian: x; 1776)"),
        ("Zaha Hadid  , née à Bagdad", "Zaha Hadid, née à Bagdad"),
        ("cello ( CHEL-oh) is", "cello (CHEL-oh) is"),
        ("Phil Collins ,conocido; the rate ,5", "Phil Collins, conocido; the rate ,5"),
        ("Sher Shah ,, known as", "Sher Shah, known as"),
        ("Louis Kahn,, est ; la liste , , fin", "Louis Kahn, est ; la liste, fin"),
        ("about .5 litres", "about .5 litres"),
    ],
)
def test_holes_of_an_extraction_are_closed(given_text: str, expected: str) -> None:
    assert close_holes(given_text) == expected


def test_each_rule_names_its_own_fault_and_no_ordinary_prose() -> None:
    refrain = "the same line again and again\n"
    passage = " ".join(f"word{number}" for number in range(30))
    assert repeats_lines(refrain * 5)
    assert not repeats_lines(PROSE + "\n" + refrain)
    assert repeats_ngrams(f"{passage}. {passage}")
    assert lacks_letters("12.5 | 13.7 | 19.1 | 22.8")
    assert is_broken("Le caf\u00c3\u00a9 est ferm\u00c3\u00a9")
    assert is_broken("bytes that were \ufffd\ufffd lost")
    for rule in (repeats_lines, repeats_ngrams, lacks_letters, is_broken):
        assert not rule(PROSE)


def test_correct_accents_are_not_taken_for_a_wrong_decoding() -> None:
    assert not is_broken("SÃO PAULO, “São Tomé” – l’été, Â ge, ÂNGELA, à la carte")


def test_cleaning_counts_each_dropped_document_once_under_its_first_rule() -> None:
    passage = " ".join(f"word{number}" for number in range(30))
    texts = [
        PROSE,
        "short",
        "1 2 3 4 5 6 7 8 9 " * 20,
        f"{passage} {passage}",
        PROSE + "\ufffd" * 9,
    ]
    kept, dropped = clean(documents(*texts), "prose", min_chars=20)
    assert [document.key for document in kept] == ["0"]
    expected = {"too short": 1, "broken text": 1, "few letters": 1, "repeated 10-grams": 1}
    assert {reason: count for reason, count in dropped.items() if count} == expected


def test_code_keeps_its_spacing_and_may_repeat_itself() -> None:
    code = "x = {\n" + "    0: 1,   # row\n" * 50 + "}"
    kept, dropped = clean(documents(code), "code", min_chars=20)
    assert kept[0].text == code
    assert not any(dropped.values())


def test_the_ngram_rule_agrees_with_a_direct_count() -> None:
    generator = random.Random(0)
    for _ in range(200):
        tokens = [str(generator.randrange(3)) for _ in range(generator.randrange(60))]
        grams = [tuple(tokens[i : i + 10]) for i in range(len(tokens) - 9)]
        covered = {
            place for i, gram in enumerate(grams) if gram in grams[:i] for place in range(i, i + 10)
        }
        assert repeats_ngrams(" ".join(tokens)) == (len(covered) > 0.10 * len(tokens))
