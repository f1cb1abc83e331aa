"""Exact match: the final answer counts, no other may stand beside it."""

from dataclasses import replace

import pytest

from puna.core.random import stream
from puna.data.generators import Question, evaluation_questions
from puna.data.generators.kinds import WEIGHTS, Mixture
from puna.data.geography import Country
from puna.evaluation import Reply, exact_match, model_answers
from puna.evaluation.questions import is_right
from puna.inference import Engine
from puna.model import Llama
from puna.tokenizer import Message, Tokenizer

SUM = Question("addition", "add:17+25", "What is 17 + 25?", "42", "17 + 25 = 42.", "17 + 25 = 43.")
LARGER = Question(
    kind="comparison",
    key="compare:17,41",
    prompt="Which is larger, 17 or 41?",
    answer="41",
    full_answer="Of 17 and 41, 41 is the larger.",
    wrong_answer="Of 17 and 41, 17 is the larger.",
    rivals=("17",),
)
SORT = Question(
    "sorting", "sort:1,2,3", "Sort 3, 1 and 2.", "1, 2, 3", "In order: 1, 2, 3.", "", "numbers"
)
CAPITAL = Question(
    kind="capital",
    key="country:Guinea",
    prompt="What is the capital of Ruritania?",
    answer="Guinea",
    full_answer="The capital of Ruritania is Guinea.",
    wrong_answer="The capital of Ruritania is Guinea-Bissau.",
    check="name",
    rivals=("Guinea-Bissau", "Paris"),
)


STEPS = replace(SUM, full_answer="17 + 25 = 37 + 5 = 42.", worked=True)
PLACE = Question(
    kind="position",
    key="position:fox,drum,pear",
    prompt="Which word is second here: fox, drum, pear?",
    answer="drum",
    full_answer="The first word is fox, the second word is drum.",
    wrong_answer="The first word is fox, the second word is pear.",
    check="name",
    rivals=("fox", "pear"),
    worked=True,
)


def _countries() -> tuple[Country, ...]:
    regions = ("Asia", "Europe", "the Americas")
    rows = [(f"Landia{n}", f"Villa{n}", regions[n % 3]) for n in range(12)]
    return tuple(Country(n, c, r, f"Western {r}", (), ("Lang",), (), 1.0) for n, c, r in rows)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (SUM, "42"),
        (SUM, " 17 + 25 = 42.\n"),
        (SUM, "Sure! The sum is 42."),
        (LARGER, "Of 17 and 41, 41 is the larger."),
        (LARGER, "It is 41."),
        (STEPS, "17 + 25 = 42."),
        (STEPS, "25 + 17 = 35 + 7 = 42"),
        (PLACE, "drum"),
        (PLACE, "First fox, and second is the drum."),
        (SORT, "1, 2, 3"),
        (SORT, "Sorted: 1, 2 and 3."),
        (CAPITAL, "guinea"),
        (CAPITAL, "That would be Guinea, a fine town."),
    ],
)
def test_a_right_answer_counts_in_any_wording(question: Question, text: str) -> None:
    assert is_right(question, text)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (SUM, ""),
        (SUM, "42 or 43"),
        (SUM, "17 + 25 = 43."),
        (SUM, "142"),
        (SUM, "-42"),
        (SUM, "4.2"),
        (LARGER, "17 is larger than 41."),
        (LARGER, "Of 17 and 41, 17 is the larger."),
        (STEPS, "17 + 25 = 37 + 5 = 43."),
        (STEPS, "84 - 42 = 84 - 42"),
        (STEPS, "17 + 25 = 0 + 42."),
        (PLACE, "The first word is fox."),
        (PLACE, "The second word is drum, the last word is pear."),
        (SORT, "3, 1, 2: 1, 2, 3"),
        (SORT, "1, 3, 2"),
        (CAPITAL, "Guinea-Bissau"),
        (CAPITAL, "Guinea or Paris"),
        (CAPITAL, "Guineas"),
    ],
)
def test_a_wrong_or_second_answer_does_not_count(question: Question, text: str) -> None:
    assert not is_right(question, text)


def test_curt_and_full_answers_of_every_kind_are_right_and_wrong_answers_are_wrong() -> None:
    rng = stream("questions")
    for draw in Mixture(WEIGHTS, _countries()).draws.values():
        for _ in range(100):
            question = draw(rng).question(rng)
            assert is_right(question, question.answer)
            assert is_right(question, question.full_answer)
            assert not is_right(question, question.wrong_answer), question


def test_the_report_counts_kinds_format_and_stops() -> None:
    replies = [
        Reply("42", True),
        Reply("17 + 25 = 43.", True),
        Reply("I think it is 41", False),
        Reply("The capital of Ruritania is Paris.", True),
    ]

    def answer(conversations: object) -> list[Reply]:
        assert conversations == [[Message("user", q.prompt)] for q in (SUM, SUM, LARGER, CAPITAL)]
        return replies

    report = exact_match(answer, [SUM, SUM, LARGER, CAPITAL])
    assert report.accuracy == 0.5
    assert report.by_kind == {"addition": 0.5, "comparison": 1.0, "capital": 0.0}
    assert report.n_by_kind == {"addition": 2, "comparison": 1, "capital": 1}
    assert report.stopped == 0.75
    assert report.in_format == 0.75
    assert report.full_sentences == 0.5
    assert [miss.reply for miss in report.misses] == [replies[1].text, replies[3].text]


def test_perfect_answers_score_one_and_wrong_ones_zero_on_the_generated_questions() -> None:
    questions = evaluation_questions(5, 20, _countries())
    right = exact_match(lambda _: [Reply(q.full_answer, True) for q in questions], questions)
    wrong = exact_match(lambda _: [Reply(q.wrong_answer, True) for q in questions], questions)
    assert (right.accuracy, right.in_format, right.full_sentences) == (1, 1, 1)
    assert (wrong.accuracy, wrong.in_format, wrong.full_sentences) == (0, 1, 1)
    assert len(wrong.misses) == len(questions)


def test_a_model_answers_each_conversation_with_its_greedy_text(
    model: Llama, tokenizer: Tokenizer
) -> None:
    ask = model_answers(Engine(model, tokenizer), max_new_tokens=4)
    conversations = [[Message("user", text)] for text in ("2", "17", "42")]
    together = ask(conversations)
    assert together == [ask([conversation])[0] for conversation in conversations]
    assert all(isinstance(reply, Reply) and reply.text is not None for reply in together)
    assert replace(together[0], stopped=True).stopped
