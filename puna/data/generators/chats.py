"""Conversations for tuning, pairs of answers for preferences, and questions alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.random import Generator

from puna.core.random import stream
from puna.data.generators.kinds import WEIGHTS, Mixture
from puna.data.generators.problems import Question, chance, draw_problem, pick
from puna.data.generators.small_talk import TALKS
from puna.data.geography import Country
from puna.tokenizer import Message

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Puna, a small and friendly language model.",
    "You answer the questions of the user.",
    "You are a patient teacher.",
    "Be honest. If you do not know something, say so.",
)
_WITH_SYSTEM = 0.15
_TWO_TURNS = 0.2
_SMALL_TALK = 0.1


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with the assistant's answer.

    Attributes:
        kind: kind of its last question, or ``"talk"``.
        key: keys of its problems, joined by ``|``.
        messages: perhaps a system prompt, then one or two turns of user and assistant.
    """

    kind: str
    key: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt.

    Attributes:
        kind: ``"style"``: a full sentence over a curt answer, both right; ``"truth"``: a right
            sentence over a wrong one.
        topic: kind of the question.
        key: key of its problem.
        prompt: the messages before the answer.
        chosen: the better answer.
        rejected: the other.
    """

    kind: Literal["style", "truth"]
    topic: str
    key: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class _Turn:
    kind: str
    key: str
    messages: tuple[Message, Message]


def generate_chats(
    seed: int, n: int, countries: Sequence[Country], weights: Mapping[str, float] = WEIGHTS
) -> Iterator[Chat]:
    """``n`` conversations on trained problems, one in ten of them small talk.

    What is worked out is answered with its working. Of the other answers half are curt and half
    full sentences, and nothing in the prompt tells which: that is left for the preferences to
    teach. ``seed`` is that of the split.
    """
    rng = stream(seed, "chats")
    mixture = Mixture(weights, countries)
    for _ in range(n):
        turns = _turns(rng, seed, mixture)
        messages = tuple(message for turn in turns for message in turn.messages)
        key = "|".join(turn.key for turn in turns)
        yield Chat(turns[-1].kind, key, _system(rng) + messages)


def generate_pairs(
    seed: int,
    n: int,
    countries: Sequence[Country],
    weights: Mapping[str, float] = WEIGHTS,
    *,
    held_out: bool,
) -> Iterator[PreferencePair]:
    """``n`` pairs, of style and of truth in turn, on trained or on held-out problems."""
    rng = stream(seed, "pairs", held_out)
    mixture = Mixture(weights, countries)
    for number in range(n):
        question = _question(rng, seed, mixture, held_out=held_out)
        style = number % 2 == 0
        # A curt answer that begins the sentence ("42" in "42 - 0 = 42.") is always more probable.
        while style and question.full_answer.startswith(question.answer):
            question = _question(rng, seed, mixture, held_out=held_out)
        yield PreferencePair(
            kind="style" if style else "truth",
            topic=question.kind,
            key=question.key,
            prompt=(*_system(rng), Message("user", question.prompt)),
            chosen=question.full_answer,
            rejected=question.answer if style else question.wrong_answer,
        )


def generate_questions(
    seed: int,
    n: int,
    countries: Sequence[Country],
    weights: Mapping[str, float] = WEIGHTS,
) -> Iterator[Question]:
    """``n`` questions on trained problems, to be answered and then checked."""
    rng = stream(seed, "questions")
    mixture = Mixture(weights, countries)
    for _ in range(n):
        yield _question(rng, seed, mixture, held_out=False)


def _question(rng: Generator, seed: int, mixture: Mixture, *, held_out: bool) -> Question:
    draw = mixture.pick(rng)
    return draw_problem(draw, rng, seed=seed, held_out=held_out).question(rng)


def _system(rng: Generator) -> tuple[Message, ...]:
    return (Message("system", pick(rng, SYSTEM_PROMPTS)),) if chance(rng, _WITH_SYSTEM) else ()


def _turns(rng: Generator, seed: int, mixture: Mixture) -> list[_Turn]:
    question = _asked(rng, seed, mixture)
    if not chance(rng, _TWO_TURNS):
        return [_talk(rng, ("opening", "anywhere")) if chance(rng, _SMALL_TALK) else question]
    if not chance(rng, 2 * _SMALL_TALK):
        return [question, _asked(rng, seed, mixture)]
    if chance(rng, 0.5):
        return [_talk(rng, ("opening", "anywhere")), question]
    return [question, _talk(rng, ("closing", "anywhere"))]


def _asked(rng: Generator, seed: int, mixture: Mixture) -> _Turn:
    question = _question(rng, seed, mixture, held_out=False)
    full = question.worked or chance(rng, 0.5)
    answer = question.full_answer if full else question.answer
    return _Turn(question.kind, question.key, _exchange(question.prompt, answer))


def _talk(rng: Generator, places: tuple[str, ...]) -> _Turn:
    talk = pick(rng, [talk for talk in TALKS if talk.place in places])
    return _Turn("talk", f"talk:{talk.topic}", _exchange(*talk.exchange(rng)))


def _exchange(prompt: str, answer: str) -> tuple[Message, Message]:
    return Message("user", prompt), Message("assistant", answer)
