"""An answer in the terminal, as far as a safeguard releases it."""

from collections.abc import Iterator

import pytest

from puna.cli.options import shield_of
from puna.cli.watch import Watched, admitted
from puna.inference import Delta
from puna.safety import Subject
from puna.safety.chain import chained

SUBJECT = Subject("a question", (), "model", None)
ANSWER = ["So:\n```py", "thon\nx = 1\nos.sys", "tem('ls ' + x", " + y)\n```\n", "Bye"]


class Engine:
    """Says the answer; remembers how much of it was asked for."""

    def __init__(self) -> None:
        self.n_said = 0

    def answer(self) -> Iterator[Delta]:
        for n, text in enumerate(ANSWER):
            self.n_said += 1
            yield Delta(ids=(n,), text=text, finish="stop" if n == 4 else None)


@pytest.mark.parametrize(
    ("mode", "text", "decision"),
    [
        ("off", "".join(ANSWER), "allow"),
        ("warn", "".join(ANSWER), "warn"),
        ("block", "So:\n```python\nx = 1\n", "block"),
    ],
)
def test_the_chat_shows_what_the_shield_releases(mode: str, text: str, decision: str) -> None:
    engine = Engine()
    safeguard = chained(shield_of(mode))  # type: ignore[arg-type]
    assert admitted(safeguard, SUBJECT).decision == "allow"
    watched = Watched(engine.answer(), safeguard, SUBJECT)
    assert "".join(delta.text for delta in watched) == text
    assert watched.verdict.decision == decision
    assert engine.n_said == (4 if decision == "block" else 5)
