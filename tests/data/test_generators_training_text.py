"""Generated training text: documents, chats and pairs teach what they claim to."""

import re
from collections import Counter, defaultdict

import pytest
from generator_samples import COUNTRIES, SEED, equations

from puna.data.generators import GeneratedText, generate_chats, generate_documents, generate_pairs
from puna.data.generators.kinds import WEIGHTS
from puna.data.generators.problems import COUNTRY, is_held_out
from puna.data.generators.small_talk import TALKS


def test_the_seed_alone_decides_the_text() -> None:
    config = GeneratedText(exercises=50, geography=50, stories=50)

    def everything(seed: int) -> list[object]:
        return [
            *generate_documents(seed, config, COUNTRIES),
            *generate_chats(seed, 100, COUNTRIES),
            *generate_pairs(seed, 100, COUNTRIES, held_out=False),
        ]

    assert everything(1) == everything(1)
    assert everything(1) != everything(2)


def test_counts_are_as_asked_and_keys_are_unique_within_a_source() -> None:
    config = GeneratedText(exercises=30, geography=20, stories=10)
    documents = list(generate_documents(SEED, config, COUNTRIES))
    counts = Counter(document.source for document in documents)
    assert counts.pop("generated-geography") == 20
    assert counts.pop("generated-stories") == 10
    assert counts.total() == 30
    assert counts.keys() <= {f"generated-{name}" for name in ("exercises", *WEIGHTS)}
    assert len({(document.source, document.key) for document in documents}) == 60


def test_documents_rarely_repeat() -> None:
    config = GeneratedText(exercises=1_000, geography=1_000, stories=1_000)
    texts = [document.text for document in generate_documents(SEED, config, COUNTRIES)]
    assert len(set(texts)) > 0.98 * len(texts)


def test_statements_of_sums_in_documents_are_true() -> None:
    config = GeneratedText(exercises=1_000, geography=0, stories=0)
    for document in generate_documents(SEED, config, ()):
        for a, sign, b, c in equations(document.text):
            assert c == (a + b if sign == "+" else a - b)
        for a, b in re.findall(r"Twice (\d+) is (\d+)", document.text):
            assert int(b) == 2 * int(a)
        for low, high in re.findall(r"(\d+) < (\d+)", document.text):
            assert int(low) < int(high)


def test_every_country_has_its_capital_stated_in_several_ways() -> None:
    config = GeneratedText(exercises=0, geography=1_200, stories=0)
    ways = defaultdict(set)
    for document in generate_documents(SEED, config, COUNTRIES):
        for sentence in re.split(r"(?<=[.!])\s", document.text):
            for country in COUNTRIES:
                if country.name in sentence and country.capital in sentence:
                    shape = sentence.replace(country.name, "C").replace(country.capital, "V")
                    ways[country.name].add(re.sub(r"\d+", "#", shape))
    assert len(ways) == len(COUNTRIES)
    assert min(map(len, ways.values())) >= 4


def test_stories_hold_no_numbers_and_no_unfilled_field() -> None:
    config = GeneratedText(exercises=0, geography=0, stories=500)
    for document in generate_documents(SEED, config, ()):
        assert not re.search(r"[\d{}]", document.text)
        assert 100 <= len(document.text) <= 450


def test_chats_alternate_and_end_with_an_answer() -> None:
    for chat in generate_chats(SEED, 2_000, COUNTRIES):
        roles = [message.role for message in chat.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(message.content for message in chat.messages)


def test_half_the_answers_are_curt_whether_or_not_there_is_a_system_prompt() -> None:
    curt: dict[bool, list[bool]] = {True: [], False: []}
    for chat in generate_chats(SEED, 8_000, COUNTRIES):
        if chat.kind not in ("talk", "addition", "subtraction", "position"):
            answer = chat.messages[-1].content
            curt[chat.messages[0].role == "system"].append(not answer.endswith("."))
    for group in curt.values():
        assert sum(group) / len(group) == pytest.approx(0.5, abs=0.05)


def test_what_has_to_be_worked_out_is_never_answered_curtly() -> None:
    seen = Counter[str]()
    for chat in generate_chats(SEED, 4_000, COUNTRIES):
        answer = chat.messages[-1].content
        seen[chat.kind] += 1
        if chat.kind in ("addition", "subtraction"):
            assert re.fullmatch(r"\d+ [-+] \d+ = (\d+ [-+] \d = )?\d+\.", answer), chat
        if chat.kind == "position":
            assert re.fullmatch(
                r"The first word is [-\w]+(, the \w+ word is [-\w]+){0,2}\.", answer
            ), chat
    assert min(seen["addition"], seen["subtraction"], seen["position"]) > 100


def test_exercises_of_one_kind_are_their_own_source() -> None:
    config = GeneratedText(exercises=600, geography=0, stories=0)
    kinds = {"addition": 1.0, "reversal": 1.0}
    documents = list(generate_documents(SEED, config, (), kinds))
    counts = Counter(document.source for document in documents)
    assert set(counts) == {"generated-exercises", "generated-addition", "generated-reversal"}
    assert counts["generated-exercises"] == pytest.approx(300, abs=60)
    for document in documents:
        sums = [line for line in document.text.splitlines() if re.search(r"\d", line)]
        if document.source == "generated-addition":
            assert len(sums) == len(document.text.splitlines())
        if document.source == "generated-reversal":
            assert sums == []


def test_small_talk_of_every_topic_occurs_and_names_the_model() -> None:
    chats = list(generate_chats(SEED, 8_000, COUNTRIES))
    topics = {key for chat in chats for key in chat.key.split("|") if key.startswith("talk:")}
    assert topics == {f"talk:{talk.topic}" for talk in TALKS}
    asked = [c.messages for c in chats if c.messages[-2].content == "Who are you?"]
    assert asked
    assert all("Puna" in messages[-1].content for messages in asked)


def test_small_talk_never_has_one_prompt_under_two_topics() -> None:
    prompts = [prompt for talk in TALKS for prompt in talk.prompts]
    assert len(set(prompts)) == len(prompts)


def test_pairs_prefer_sentences_to_curt_answers_and_truth_to_error() -> None:
    pairs = list(generate_pairs(SEED, 2_000, COUNTRIES, held_out=False))
    assert Counter(pair.kind for pair in pairs) == {"style": 1_000, "truth": 1_000}
    for pair in pairs:
        assert pair.chosen != pair.rejected
        if pair.kind == "style":
            assert pair.rejected in pair.chosen
            # Were it the sentence's beginning, no model could find the sentence more probable.
            assert not pair.chosen.startswith(pair.rejected)


def test_exercises_ask_for_trained_countries_only() -> None:
    config = GeneratedText(exercises=400, geography=0, stories=0)
    documents = list(generate_documents(SEED, config, COUNTRIES, {"capital": 1.0}))
    named = {n for document in documents for n in re.findall(r"Landia\d+", document.text)}
    kept = {c.name for c in COUNTRIES if is_held_out(f"{COUNTRY}{c.name}", SEED)}
    assert named == {country.name for country in COUNTRIES} - kept
    assert kept
