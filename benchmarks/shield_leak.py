"""Does a planted call get out, is a harmless answer changed, does anything stop the shield?"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness import Claim
from shield_answers import LANGUAGES, Answer, answers, pieces

from puna.safety.shield import Policy, languages, scan, stream

STALL_MS = 50
BLOCK = Policy(mode="block")


def leak(count: int, seed: int = 1) -> dict[str, Any]:
    """Stream ``count`` answers in random chunks under the block policy."""
    rng = random.Random(seed)
    report = Counter[str]()
    leaked: dict[str, int] = Counter()
    for answer in answers(seed, count, spoken()):
        released, decision = watched(answer, rng)
        if answer.planted is None:
            report["harmless"] += 1
            report["harmless altered"] += released != answer.text or decision == "block"
            continue
        report["planted"] += 1
        # What came before the call may be out, byte for byte; nothing of the call itself.
        if len(released) > answer.planted or not answer.text.startswith(released):
            leaked[f"{answer.language} {'tagged' if answer.tagged else 'untagged'}"] += 1
    report["leaked"] = sum(leaked.values())
    return dict(report) | {"leaked by language": dict(leaked)}


def watched(answer: Answer, rng: random.Random) -> tuple[str, str]:
    """What of an answer reaches the client, and the decision on it."""
    watch = stream(BLOCK)
    out = [watch.push(piece) for piece in pieces(rng, answer.text)]
    out.append(watch.flush())
    return "".join(out), watch.verdict.decision


def spoken() -> tuple[str, ...]:
    """The languages of made-up answers that the shield has rules for."""
    known = languages()
    return tuple(name for name in LANGUAGES if name in known)


def fuzz(texts: int, seed: int = 1) -> dict[str, Any]:
    """Push random bytes and broken code through every language in turn.

    A stall is a line that needs more than `STALL_MS` of this thread's processor time. A crash is an
    error of a scan, also one that the stream caught; giving up on a line in time is none.
    """
    rng = random.Random(seed)
    report: dict[str, Any] = {"lines": 0, "crashes": [], "timeouts": 0, "slowest_ms": 0.0}
    known = languages()
    for language in known:  # what is loaded once is no stall
        scan("x\n", language)
    for number in range(texts):
        language = known[number % len(known)]
        _one(rng, language, broken(rng, language), report)
    return report | {"texts": texts, "languages": len(known)}


def _one(rng: random.Random, language: str, text: str, report: dict[str, Any]) -> None:
    try:
        scan(text[:20_000], language)
    except Exception as error:  # noqa: BLE001  any error is what is looked for
        report["crashes"].append(f"{language} scan: {error!r:.120}")
    watch = stream(BLOCK, rng.choice((language, None)))
    for line in [*text.splitlines(keepends=True), ""]:
        start = time.thread_time()
        released = watch.push(line) if line else watch.flush()
        spent = (time.thread_time() - start) * 1e3
        assert released in text
        report["lines"] += 1
        if spent > report["slowest_ms"]:
            report["slowest_ms"], report["slowest language"] = spent, language
    reason = watch.verdict.reason
    if "could not be judged" in reason:
        report["crashes"].append(f"{language} stream: {reason:.160}")
    report["timeouts"] += "too long" in reason


def broken(rng: random.Random, language: str) -> str:
    """Random bytes, nested brackets, endless texts, or code with pieces cut out and doubled."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randint(1, 3000)).decode("latin-1")
    if kind == 1:
        return rng.randbytes(rng.randint(1, 3000)).decode("utf-8", "replace")
    if kind == 2:
        bracket = rng.choice(
            ("(", "[", "{", "((", "f(", '"', "'", "`", "<a ", "${", "/*", "\\", "-")
        )
        return bracket * rng.randint(1, 4000) + rng.choice(("", "\n")) + ")" * rng.randint(0, 99)
    own = LANGUAGES.get(language) or rng.choice(list(LANGUAGES.values()))
    calls = [before + call for before, call in own.insecure]
    text = own.head + "".join([*own.harmless, *calls]) + own.tail
    text = "".join(_mutated(rng, text * rng.randint(1, 4)))
    return f"```{own.tag}\n{text}```\n" if kind == 3 else text


def _mutated(rng: random.Random, text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        length = rng.randint(1, 60)
        piece = text[at : at + length]
        at += length
        match rng.randrange(12):
            case 0:
                continue
            case 1:
                yield piece * rng.randint(2, 5)
            case 2:
                yield piece[::-1]
            case 3:
                yield rng.choice("()[]{}'\"`\\\n\0#/<>$") * rng.randint(1, 30) + piece
            case _:
                yield piece


def claims(report: dict[str, Any]) -> list[Claim]:
    """What must hold of leaks and fuzzing."""
    found = []
    if "leak" in report:
        for kind in ("leaked", "harmless altered"):
            found.append(Claim(f"answers {kind}", report["leak"][kind], 0, at_most=True))
    if "fuzz" in report:
        found.append(Claim("crashes", len(report["fuzz"]["crashes"]), 0, at_most=True))
        slowest = report["fuzz"]["slowest_ms"]
        found.append(Claim("slowest broken line, ms", slowest, STALL_MS, at_most=True))
    return found
