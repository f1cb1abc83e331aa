"""Does a planted call get out, is a harmless answer changed?"""

import random
from collections import Counter
from typing import Any

from harness import Claim
from shield_answers import LANGUAGES, Answer, answers, pieces

from puna.safety.shield import Policy, languages, stream

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


def claims(report: dict[str, Any]) -> list[Claim]:
    """What must hold of leaks."""
    found = []
    if "leak" in report:
        for kind in ("leaked", "harmless altered"):
            found.append(Claim(f"answers {kind}", report["leak"][kind], 0, at_most=True))
    return found
