"""The guard as a safeguard: prompts are judged before they are answered, answers while they stream.

Nothing of an answer leaves before it was judged: text is held until a judgement, which runs off the
event loop, covers it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from puna.core.errors import PunaError
from puna.safety.chain import strictest
from puna.safety.guard.judgement import Classifier, Judgement
from puna.safety.guard.policy import Direction, Policy, RuleFields
from puna.safety.guard.sensitive import Finder, Found, Redactor, Removal, cleaned
from puna.safety.safeguard import Subject, Verdict
from puna.tokenizer import Message

ALLOWED = Verdict()


@dataclass(frozen=True)
class Guard:
    """A `puna.safety.Safeguard` made of what a policy needs.

    Attributes:
        policy: what is done about what is found.
        classifier: judges hazards; None judges none.
        detector: judges injections and jailbreaks; None judges none.
        finder: finds secrets and personal data; None finds none.
    """

    policy: Policy
    classifier: Classifier | None = None
    detector: Classifier | None = None
    finder: Finder | None = None

    async def admit(self, subject: Subject) -> Verdict:
        """Judge the last turn of the user, and what an answer is to go on from."""
        turns = spoken(subject)
        verdicts = [await asyncio.to_thread(self._searched, turns)]
        verdicts += [await self.judged(turns[:end], "input") for end in _ends(turns)]
        verdicts += [await self._detected(turn) for turn in turns if turn.role != "assistant"]
        return strictest(verdicts)

    def output_filter(self, subject: Subject) -> "Watch":
        """Judges an answer in pieces of ``policy.every_chars``."""
        return Watch(self, spoken(subject))

    def clean(self, text: str) -> str:
        """A text of a prompt without what the policy redacts from prompts."""
        if self.finder is None:
            return text
        return cleaned(self.finder, text, lambda found: _only_redact(self.action(found, "input")))[
            0
        ]

    def action(self, found: Found, direction: Direction) -> Removal:
        """What is done about a find."""
        return self.policy.removal(found.kind, found.group).on(direction)

    async def judged(self, turns: Sequence[Message], direction: Direction) -> Verdict:
        """What is done about the hazards of the last turn."""
        if self.classifier is None or not any(turn.content.strip() for turn in turns[-1:]):
            return ALLOWED
        judgement = await self._asked(self.classifier, turns)
        if isinstance(judgement, Verdict):
            return judgement
        return self.verdict(judgement, direction)

    def verdict(self, judgement: Judgement, direction: Direction) -> Verdict:
        """What the policy does about a judgement of hazards."""
        named = {hazard.code: hazard.name for hazard in self.policy.all_hazards()}
        rules = {code: self.policy.rule(code) for code in judgement.hazards}
        found = [
            Verdict(rule.on(direction), f"hazard {code}, {named.get(code, 'unknown')}")
            for code, rule in (rules or {"": self.policy.default}).items()
            if self._reached(judgement, rule)
        ]
        verdict = strictest(found)
        if not judgement.hazards and verdict.decision != "allow":
            return Verdict(verdict.decision, "harmful content")
        return verdict

    def _reached(self, judgement: Judgement, rule: RuleFields) -> bool:
        threshold = self.policy.threshold if rule.threshold is None else rule.threshold
        return judgement.unsafe if threshold is None else judgement.score >= threshold

    async def _detected(self, turn: Message) -> Verdict:
        """What is done about an injection or a jailbreak in a turn."""
        rule = self.policy.injection
        if self.detector is None or rule.input == "allow" or not turn.content.strip():
            return ALLOWED
        judgement = await self._asked(self.detector, [Message("user", turn.content)])
        if isinstance(judgement, Verdict):
            return judgement
        unsafe = judgement.unsafe if rule.threshold is None else judgement.score >= rule.threshold
        return Verdict(rule.input, "prompt injection or jailbreak") if unsafe else ALLOWED

    async def _asked(self, classifier: Classifier, turns: Sequence[Message]) -> Judgement | Verdict:
        """The judgement, or what is done where there is none."""
        try:
            async with asyncio.timeout(self.policy.seconds):
                return await classifier.judge(turns)
        except (PunaError, TimeoutError):
            return Verdict(self.policy.on_error, "the guard could not judge this")

    def _searched(self, turns: Sequence[Message]) -> Verdict:
        """What is done about secrets and personal data in the prompt."""
        if self.finder is None:
            return ALLOWED
        actions = [
            (self.action(found, "input"), found)
            for turn in turns
            for found in self.finder.find(turn.content)
        ]
        # What should have been taken out and is still here came in as token ids: it is refused.
        return strictest(
            [
                Verdict("warn" if action == "warn" else "block", f"found {found.kind}")
                for action, found in actions
                if action != "allow"
            ]
        )


class Watch:
    """Watches one answer; see `puna.safety.OutputFilter` and `puna.safety.SlowFilter`.

    Args:
        guard: what judges.
        turns: the conversation that is answered.
    """

    def __init__(self, guard: Guard, turns: Sequence[Message]) -> None:
        self.verdict = ALLOWED
        self._guard = guard
        self._turns = list(turns)
        finder = guard.finder
        self._redactor = (
            None if finder is None else Redactor(finder, lambda f: guard.action(f, "output"))
        )
        self._text = ""
        self._judged = 0
        self._released = 0
        self._judging: asyncio.Task[None] | None = None

    def push(self, text: str) -> str:
        """Take new text; what was judged meanwhile is released."""
        self._take(text if self._redactor is None else self._redactor.push(text))
        if self._guard.classifier is None:
            self._judged = len(self._text)
        elif len(self._text) - self._judged >= self._guard.policy.every_chars:
            self._begin()
        return self._release()

    async def settled(self) -> None:
        """The answer is complete: wait until all of it is judged."""
        if self._redactor is not None and self.verdict.decision != "block":
            self._take(self._redactor.flush())
        while self.verdict.decision != "block" and self._judged < len(self._text):
            self._begin()
            if self._judging is not None:
                await self._judging
        if self._judging is not None and not self._judging.done():
            self._judging.cancel()

    def flush(self) -> str:
        """The rest, after `settled`."""
        return self._release()

    def _take(self, text: str) -> None:
        self._text += text
        if self._redactor is not None:
            self._note(self._redactor.verdict)

    def _begin(self) -> None:
        """Judge the answer as it is now, unless a judgement is on its way."""
        if self._guard.classifier is None:
            self._judged = len(self._text)
        elif self._judging is None or self._judging.done():
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # a caller without a loop: all of it is judged in `settled`
            self._judging = loop.create_task(self._judge(self._text))

    async def _judge(self, text: str) -> None:
        answer = Message("assistant", text)
        self._note(await self._guard.judged([*self._turns, answer], "output"))
        self._judged = len(text)

    def _note(self, verdict: Verdict) -> None:
        self.verdict = strictest([self.verdict, verdict])

    def _release(self) -> str:
        if self.verdict.decision == "block":
            return ""
        start, self._released = self._released, self._judged
        return self._text[start : self._judged]


def spoken(subject: Subject) -> list[Message]:
    """The turns to judge: of a prompt without a conversation its text, as a user's turn."""
    turns = [turn for turn in subject.messages if turn.role != "system"]
    return turns or [Message("user", subject.text)]


def _ends(turns: Sequence[Message]) -> list[int]:
    """Where the judged beginnings of a conversation end: at the user's last turn and at its end."""
    last = [n for n, turn in enumerate(turns, start=1) if turn.role != "assistant"][-1:]
    return sorted({*last, len(turns)})


def _only_redact(action: Removal) -> Removal:
    return action if action == "redact" else "allow"
