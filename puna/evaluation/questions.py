"""Exact match on generated questions: the reply's final answer is the answer, or it is wrong."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from puna.core.errors import UsageError
from puna.data.generators import Question
from puna.inference import Engine, Request, Sampling, generate
from puna.tokenizer import Message

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LEFT_OPEN = re.compile(r"\d [-+] \d+\W*$")  # "8 - 4" is no answer
_MASK = "#"


@dataclass(frozen=True)
class Reply:
    """What a model answered, and whether it ended its turn by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True)
class Miss:
    """A question that was answered wrongly."""

    kind: str
    prompt: str
    answer: str
    reply: str


@dataclass(frozen=True)
class ExactMatch:
    """Shares are in [0, 1], over ``n`` questions.

    Attributes:
        accuracy: right answers, over all kinds.
        by_kind: right answers of each kind.
        n_by_kind: questions of each kind.
        stopped: replies that ended by themselves.
        in_format: replies that are a curt answer or the full sentence, right or wrong.
        full_sentences: replies that are the full sentence, right or wrong.
        misses: the wrong replies.
    """

    n: int
    accuracy: float
    by_kind: dict[str, float]
    n_by_kind: dict[str, int]
    stopped: float
    in_format: float
    full_sentences: float
    misses: tuple[Miss, ...]


Answers = Callable[[Sequence[Sequence[Message]]], Sequence[Reply]]


def model_answers(engine: Engine, *, max_new_tokens: int = 48) -> Answers:
    """A function from conversations to the model's greedy replies."""
    tokenizer = engine.tokenizer
    sampling = Sampling(max_new_tokens=max_new_tokens)

    def answer(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        prompts = [
            tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
            for messages in conversations
        ]
        requests = [Request(prompt, sampling, tokenizer.stop_ids) for prompt in prompts]
        return [Reply(g.text, g.stopped) for g in generate(engine, requests)]

    return answer


def exact_match(answer: Answers, questions: Sequence[Question]) -> ExactMatch:
    """Ask every question in a conversation of its own and judge the replies."""
    replies = answer([[Message("user", question.prompt)] for question in questions])
    judged = list(zip(questions, replies, strict=True))
    right = [(q.kind, is_right(q, reply.text)) for q, reply in judged]
    n_by_kind = Counter(q.kind for q in questions)
    right_by_kind = Counter(kind for kind, ok in right if ok)
    n = len(questions)
    return ExactMatch(
        n=n,
        accuracy=right_by_kind.total() / n,
        by_kind={kind: right_by_kind[kind] / total for kind, total in n_by_kind.items()},
        n_by_kind=dict(n_by_kind),
        stopped=sum(reply.stopped for reply in replies) / n,
        in_format=sum(_form(q, reply.text) != "other" for q, reply in judged) / n,
        full_sentences=sum(_form(q, reply.text) == "full" for q, reply in judged) / n,
        misses=tuple(
            Miss(q.kind, q.prompt, q.answer, reply.text)
            for (q, reply), (_, ok) in zip(judged, right, strict=True)
            if not ok
        ),
    )


def is_right(question: Question, text: str) -> bool:
    """Whether the reply gives the answer and no other.

    A curt or full reply must be exact. Any other wording must name the answer and none of its
    rivals, or name it last where the question is counted to; a number must be the last one and no
    part of a sum left open, a sorted list all the numbers there are.
    """
    text = text.strip()
    if text in (question.answer, question.full_answer):
        return True
    if question.check == "name":
        names = _names(question, text)
        named = names[-1:] if question.worked else list(dict.fromkeys(names))
        return named == [question.answer.casefold()]
    if question.check == "exact":
        return False
    numbers = _NUMBER.findall(text)
    if _LEFT_OPEN.search(text):
        return False
    if question.check == "numbers":
        return numbers == _NUMBER.findall(question.answer)
    return numbers[-1:] == [question.answer] and not set(numbers) & set(question.rivals)


def right_answer(text: str, record: Mapping[str, Any]) -> float:
    """Scoring function: 1 for a right answer to a generated question, `Question`'s fields; else 0.

    Raises `UsageError` for a row that is none.
    """
    return float(is_right(_question_of(record), text))


def right_sentence(text: str, record: Mapping[str, Any]) -> float:
    """Scoring function: 1 for the right sentence, 0.5 for a right answer in other words, else 0.

    Raises `UsageError` for a row that is no generated question.
    """
    question = _question_of(record)
    if text.strip() == question.full_answer:
        return 1.0
    return 0.5 * is_right(question, text)


def _question_of(record: Mapping[str, Any]) -> Question:
    names = [field.name for field in fields(Question)]
    missing = [name for name in names if name not in record]
    if missing:
        raise UsageError(
            f"no generated question: the row has no {', '.join(missing)}: use generated_prompts, "
            "or a scoring function for your own rows"
        )
    return Question(**{name: record[name] for name in names})


def _form(question: Question, text: str) -> str:
    """``"curt"``, ``"full"`` or ``"other"``, whatever the answer given."""
    masked = _masked(question, text.strip())
    if masked == _masked(question, question.answer):
        return "curt"
    return "full" if masked == _masked(question, question.full_answer) else "other"


def _masked(question: Question, text: str) -> str:
    if question.check == "name":
        return _name_pattern(question).sub(_MASK, text)
    if question.check == "exact":
        return _any_of(question.answer.split(", ")).sub(_MASK, text)
    return _NUMBER.sub(_MASK, text)


def _names(question: Question, text: str) -> list[str]:
    return [name.casefold() for name in _name_pattern(question).findall(text)]


def _name_pattern(question: Question) -> re.Pattern[str]:
    return _any_of((question.answer, *question.rivals))


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    # Longest first: "Guinea-Bissau" is not an occurrence of "Guinea".
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)
