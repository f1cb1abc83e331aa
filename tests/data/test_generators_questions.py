"""Generated questions: right answers are right, wrong ones wrong, held-out ones unseen."""

import re
from collections import Counter

import pytest
from generator_samples import COUNTRIES, SEED, equations

from puna.core.random import stream
from puna.data.generators import (
    GeneratedText,
    Question,
    evaluation_questions,
    evaluation_strings,
    generate_chats,
    generate_documents,
    generate_pairs,
    is_held_out,
)
from puna.data.generators.arithmetic import ARITHMETIC
from puna.data.generators.kinds import WEIGHTS, Mixture
from puna.data.generators.problems import draw_problem
from puna.data.generators.reading import READING

_SUMS = ("addition", "subtraction")


def _questions(per_kind: int) -> list[Question]:
    rng = stream(SEED, "test")
    kinds = Mixture(WEIGHTS, COUNTRIES).draws.values()
    return [draw(rng).question(rng) for draw in kinds for _ in range(per_kind)]


def _solve(question: Question) -> str:
    """The answer by another road: from the prompt's numbers and words alone."""
    prompt, numbers = question.prompt, [int(n) for n in re.findall(r"\d+", question.prompt)]
    if question.kind == "sorting":
        return ", ".join(map(str, sorted(numbers)))
    if question.kind == "comparison":
        larger = re.search("larger|bigger", prompt)
        return str(max(numbers) if larger else min(numbers))
    if question.kind == "counting":
        return str(numbers[0] + (-1 if re.search("before|down", prompt) else 1))
    if question.kind == "doubling":
        return str(numbers[0] // 2 if "al" in prompt.lower() else numbers[0] * 2)
    loses = re.search(r" - |minus|Subtract|Take|gives \d+ to|loses|sold|takes", prompt)
    return str(abs(numbers[0] - numbers[1]) if loses else sum(numbers))


def _arithmetic_keys(text: str) -> set[str]:
    """Keys of every sum and difference written as an equation in the text."""
    keys = set()
    for a, sign, b, c in equations(text):
        first, second = (a, b) if sign == "+" else (b, c)
        keys.add(f"add:{min(first, second)}+{max(first, second)}")
    return keys


def test_every_number_question_is_answered_as_its_prompt_demands() -> None:
    for question in _questions(300):
        if question.check in ("number", "numbers"):
            assert question.answer == _solve(question), question


def _looked_up(question: Question) -> str:
    """The answer to a reading question, by taking its prompt apart."""
    prompt = question.prompt
    if question.kind == "reversal":
        return ", ".join(reversed(re.findall(r"[\w-]+", prompt.partition(":")[2])))
    if question.kind == "position":
        words = re.search(r"[\w-]+, [\w-]+, [\w-]+", prompt)
        assert words
        place = ["first", "second", "last"].index(
            next(rank for rank in ("first", "second", "last") if rank in prompt)
        )
        return words.group().split(", ")[place]
    *facts, asked = re.split(r"[.?] | and ", prompt.rstrip("?"))
    asked = re.sub(r".*(Who has the|does|Who is at|Where is|colour is the) | have$", "", asked)
    (fact,) = [fact for fact in facts if re.search(rf"\b{asked}\b", fact)]
    before, after = re.split(r" has | got | went to | is at | is |, it is ", fact)
    if question.kind == "colour":
        return after
    if asked == before:
        return f"at {after}" if question.kind == "place" else after
    return before


def test_every_reading_question_is_answered_by_what_its_prompt_says() -> None:
    kinds = ("possession", "place", "colour", "position", "reversal")
    for question in _questions(300):
        if question.kind in kinds:
            assert question.answer == _looked_up(question), question


def test_the_full_answer_holds_the_answer_and_the_wrong_one_does_not_equal_it() -> None:
    for question in _questions(200):
        assert question.answer in question.full_answer
        assert question.wrong_answer != question.full_answer
        assert question.full_answer[0].isupper() or question.full_answer[0].isdigit()


def test_every_kind_has_a_weight_and_several_phrasings() -> None:
    questions = _questions(400)
    assert {question.kind for question in questions} == set(WEIGHTS)
    shapes = {(q.kind, re.sub(r"\d+", "#", q.prompt)) for q in questions}
    by_kind = Counter(kind for kind, _ in shapes)
    assert min(by_kind.values()) >= 3


def test_the_key_is_the_family_of_the_sum_whatever_its_disguise() -> None:
    for question in _questions(500):
        if question.kind in ("addition", "subtraction", "word_problem"):
            keys = _arithmetic_keys(question.full_answer)
            assert question.key in keys
            assert len(keys) == 1 or question.worked


def test_two_digits_are_added_and_taken_away_tens_first() -> None:
    problems = [ARITHMETIC[kind](stream(SEED, n)) for kind in _SUMS for n in range(500)]
    for problem in problems:
        a, b, answer = problem.fields["a"], problem.fields["b"], int(problem.answer)
        assert isinstance(a, int)
        assert isinstance(b, int)
        sign = "+" if problem.kind == "addition" else "-"
        tens, ones = b // 10 * 10, b % 10
        between = a + tens if sign == "+" else a - tens
        if not tens or not ones:
            assert problem.full_answer == f"{a} {sign} {b} = {answer}."
            assert problem.on_the_way == ()
            continue
        assert problem.full_answer == f"{a} {sign} {b} = {between} {sign} {ones} = {answer}."
        way = f"{a} {sign} {tens} = {between}, {between} {sign} {ones} = {answer}"
        assert set(problem.on_the_way) == _arithmetic_keys(way)
    assert len({bool(problem.on_the_way) for problem in problems}) == 2


def test_a_question_for_a_place_in_a_list_is_answered_by_counting_to_it() -> None:
    ranks = ("first", "second", "last")
    for number in range(200):
        problem = READING["position"](stream(SEED, number))
        words, rank = (
            str(problem.fields["list"]).split(", "),
            ranks.index(str(problem.fields["rank"])),
        )
        assert problem.answer == words[rank]
        said = ", ".join(f"the {ranks[n]} word is {words[n]}" for n in range(rank + 1))
        assert problem.full_answer == f"T{said[1:]}."


def test_no_trained_problem_solves_a_held_out_one_on_its_way() -> None:
    rng = stream(SEED, "on the way")
    for kind in _SUMS:
        for _ in range(1_000):
            problem = draw_problem(ARITHMETIC[kind], rng, seed=SEED, held_out=False)
            assert not any(is_held_out(key, SEED) for key in (problem.key, *problem.on_the_way))
            problem = draw_problem(ARITHMETIC[kind], rng, seed=SEED, held_out=True)
            assert is_held_out(problem.key, SEED)


def test_one_problem_in_ten_and_one_country_in_five_are_held_out() -> None:
    sums = [is_held_out(f"add:{a}+{b}", SEED) for a in range(100) for b in range(a, 100)]
    countries = [is_held_out(f"country:{n}", SEED) for n in range(5_000)]
    assert sum(sums) / len(sums) == pytest.approx(0.1, abs=0.02)
    assert sum(countries) / len(countries) == pytest.approx(0.2, abs=0.03)


def test_another_seed_holds_out_other_problems() -> None:
    keys = [f"add:{a}+{b}" for a in range(50) for b in range(a, 50)]
    assert [is_held_out(k, 1) for k in keys] != [is_held_out(k, 2) for k in keys]


def test_no_held_out_problem_in_20000_chats() -> None:
    for chat in generate_chats(SEED, 20_000, COUNTRIES):
        assert not any(is_held_out(key, SEED) for key in chat.key.split("|")), chat
        said = " ".join(message.content for message in chat.messages)
        assert not any(is_held_out(key, SEED) for key in _arithmetic_keys(said)), chat


def test_no_held_out_problem_in_training_pairs_and_only_such_in_held_out_pairs() -> None:
    for held_out in (False, True):
        pairs = list(generate_pairs(SEED, 3_000, COUNTRIES, held_out=held_out))
        assert all(is_held_out(pair.key, SEED) == held_out for pair in pairs)


def test_no_held_out_sum_is_stated_in_pretraining_text() -> None:
    config = GeneratedText(exercises=4_000, geography=100, stories=100)
    for document in generate_documents(SEED, config, COUNTRIES):
        assert not any(is_held_out(key, SEED) for key in _arithmetic_keys(document.text))


def test_no_evaluation_string_occurs_in_any_training_text() -> None:
    strings = evaluation_strings(evaluation_questions(SEED, 60, COUNTRIES))
    chats = generate_chats(SEED, 5_000, COUNTRIES)
    texts = [" ".join(m.content for m in chat.messages) for chat in chats]
    config = GeneratedText(exercises=2_000, geography=600, stories=200)
    texts += [document.text for document in generate_documents(SEED, config, COUNTRIES)]
    everything = "\n".join(texts)
    assert [string for string in strings if string in everything] == []


def test_evaluation_questions_are_held_out_different_and_of_every_kind() -> None:
    questions = evaluation_questions(SEED, 40, COUNTRIES)
    assert all(is_held_out(question.key, SEED) for question in questions)
    assert len({(q.kind, q.prompt) for q in questions}) == len(questions)
    counts = Counter(question.kind for question in questions)
    assert set(counts) == set(WEIGHTS)
    assert all(counts[kind] == 40 for kind in counts if kind not in ("capital", "continent"))


def test_without_countries_the_number_kinds_remain() -> None:
    kinds = {question.kind for question in evaluation_questions(SEED, 5, ())}
    assert kinds == set(WEIGHTS) - {"capital", "continent"}
    assert all("country:" not in chat.key for chat in generate_chats(SEED, 200, ()))
