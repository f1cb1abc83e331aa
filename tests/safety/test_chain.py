"""Several safeguards as one."""

import asyncio

import pytest

from puna.safety import OutputFilter, Safeguard, SlowFilter, Subject, Verdict
from puna.safety.chain import chained
from puna.safety.shield import Policy, ShieldFilter

SUBJECT = Subject("a question", (), "model", None)


class Watching:
    """Holds all text to the end; blocks a prompt or an answer that holds a word."""

    def __init__(self, word: str, decision: str = "block") -> None:
        self.word, self.decision = word, decision
        self.asked = 0

    async def admit(self, subject: Subject) -> Verdict:
        self.asked += 1
        return self.judge(subject.text)

    def judge(self, text: str) -> Verdict:
        return Verdict(self.decision, self.word) if self.word in text else Verdict()  # type: ignore[arg-type]

    def clean(self, text: str) -> str:
        return text.replace(self.word.upper(), "...")

    def output_filter(self, subject: Subject) -> OutputFilter:
        return _Holding(self)


class _Holding:
    def __init__(self, owner: Watching) -> None:
        self._owner, self._text = owner, ""
        self.verdict = Verdict()
        self.is_settled = False

    def push(self, text: str) -> str:
        self._text += text
        return ""

    async def settled(self) -> None:
        await asyncio.sleep(0)
        self.is_settled = True

    def flush(self) -> str:
        assert self.is_settled
        self.verdict = self._owner.judge(self._text)
        return "" if self.verdict.decision == "block" else self._text


def answered(guard: Safeguard, *pieces: str) -> tuple[str, Verdict]:
    watch = guard.output_filter(SUBJECT)
    out = ""
    for piece in pieces:
        out += watch.push(piece)
        if watch.verdict.decision == "block":
            return out, watch.verdict
    if isinstance(watch, SlowFilter):
        asyncio.run(watch.settled())
    return out + watch.flush(), watch.verdict


def chain(*guards: Safeguard) -> Safeguard:
    made = chained(guards)
    assert made is not None
    return made


def test_none_and_one_need_no_chain() -> None:
    one = Watching("x")
    assert chained([]) is None
    assert chained([one]) is one


def test_the_strictest_verdict_on_a_prompt_wins_and_a_block_ends_the_asking() -> None:
    warns, blocks, last = Watching("a", "warn"), Watching("question"), Watching("z")
    verdict = asyncio.run(chain(warns, blocks, last).admit(SUBJECT))
    assert verdict == Verdict("block", "question")
    assert (warns.asked, blocks.asked, last.asked) == (1, 1, 0)


def test_prompts_are_cleaned_by_each() -> None:
    assert chain(Watching("a"), Watching("b")).clean("A B C") == "... ... C"  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [True, False])
def test_an_answer_passes_every_filter(first: bool) -> None:
    guards = [ShieldFilter(Policy(mode="block")), Watching("forbidden")]
    guard = chain(*(guards if first else guards[::-1]))
    harmless = ["Hello\n```python\n", "x = 1\n``", "`\nBye"]
    assert answered(guard, *harmless) == ("".join(harmless), Verdict())
    assert answered(guard, "this is forbidden") == ("", Verdict("block", "forbidden"))
    out, verdict = answered(guard, "Hi\n```python\nos.system(x)\n```\n")
    assert verdict.decision == "block"
    assert "os.system" not in out
