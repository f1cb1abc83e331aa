"""Models that say what a test wants, and the smallest real one that can be attacked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.core.errors import PunaError
from puna.inference import Sampling
from puna.safety.guard.judgement import Judgement
from puna.safety.models import DoesNotFit, Reply
from puna.safety.redteam.arena import Arena, Cast, Trial
from puna.safety.redteam.attacks import AnyAttack, attacks
from puna.safety.redteam.goals import Goal, goals
from puna.tokenizer import Message

REFUSAL = "I'm sorry, but I can't help with that."
Said = str | Reply | Exception


@dataclass
class Scripted:
    """A `ChatModel` whose answers a function gives; it remembers what it was asked."""

    answer: Callable[[Sequence[Message]], Said]
    name: str = "scripted"
    digest: str = "0" * 64
    asked: list[tuple[Message, ...]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        self.asked.append(tuple(messages))
        self.samplings.append(sampling)
        said = self.answer(messages)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Reply) else Reply(said)

    async def close(self) -> None:
        pass


@dataclass
class ScriptedGuard:
    """A `Classifier` that calls an answer unsafe when it holds a word; it may fail."""

    word: str
    name: str = "guard"

    async def judge(self, messages: Sequence[Message]) -> Judgement:
        if "unreadable" in messages[-1].content:
            raise PunaError("no opinion")
        unsafe = self.word in messages[-1].content
        return Judgement(unsafe, 0.9 if unsafe else 0.2, ("S2",) if unsafe else ())

    async def close(self) -> None:
        pass


def one_after_another(*said: Said) -> Callable[[Sequence[Message]], Said]:
    """Says these in turn, the last one again and again."""
    left = list(said)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def goal_of(kind: str) -> Goal:
    return next(goal for goal in goals() if goal.kind == kind)


def attack_of(name: str, **changes: Any) -> AnyAttack:
    found = next(attack for attack in attacks() if attack.name == name)
    return type(found).parse(found.model_dump() | changes, where="test")


def arena_of(cast: Cast, attack: AnyAttack, kind: str = "harm", language: str = "en") -> Arena:
    return Arena(cast, Trial(attack, goal_of(kind), language, 0, seed=3))


def too_long() -> DoesNotFit:
    return DoesNotFit("too long")
