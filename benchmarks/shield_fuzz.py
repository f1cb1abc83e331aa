"""Does anything stop the shield: random bytes, broken code, endless repetitions, in every language?

A stall is a line that takes more than `STALL_MS` of the thread's processor time between its last
character and its verdict. A crash is an error of a scan, also one that the stream caught; giving
up on a line in time is none, and counts as *given up*: such a line is not let through.
"""

import gc
import random
import time
from collections.abc import Iterator
from typing import Any

from harness import Claim
from shield_answers import LANGUAGES

from puna.safety.shield import Policy, languages, scan, stream

STALL_MS = 50
BLOCK = Policy(mode="block")
LENGTHS = (1_000, 3_000, 15_000)
"""Characters of an endless line; the shield judges up to 16,384."""
SCANNED_S = 1.0
"""What a scan of a whole text may take here."""
_UNITS = r"""
( [ { (( f( a[ f(a)( ([ {( ${ #{ "#{ `${ f"{ "\ '\ " ' ` ''' <a_ <a> </a> <?php_ /* // <!-- -- ;
a; : a: , a, [, [a, . a. a:: -> a->a + a+a * ** - !! ~ = a=a a=a; =/[ =/a @a_ # a# $a %a a? ?a: a<
a<b> <<a_ << && a&& | a| \ not_ if_ else_if_ lambda: await_ new_ return_ async_ fn_ class_A{ a=a+a;
a(a); a[0]=a; eval(a); "a", "a":a, 1, 0x1f, 1 a ab_ é= 漢
"""
UNITS = tuple(_UNITS.split())
"""What endless lines repeat; ``_`` stands for a blank."""
ENDS = {"(": ")", "[": "]", "{": "}", "((": "))", "f(": ")", "a[": "]", "`${": "}`", '"#{': '}"'}


def fuzz(texts: int, seed: int = 1, repeated: bool = True) -> dict[str, Any]:
    """Push broken texts through every language; what was slowest, by language and by kind.

    Args:
        texts: random ones, languages taken in turn.
        seed: all is a function of it.
        repeated: whether each of `UNITS` is repeated in each language too.
    """
    rng = random.Random(seed)
    report: dict[str, Any] = {"lines": 0, "crashes": [], "given up": 0, "slowest ms": 0.0}
    report |= {"texts": 0, "languages": len(languages()), "by language": {}, "by kind": {}}
    for language in languages():  # what is loaded once is no stall
        scan("x\n", language)
    gc.collect()
    gc.freeze()  # as `puna serve` does
    for number in range(texts):
        language = languages()[number % len(languages())]
        kind, text = broken(rng, language)
        _one(kind, text, language, rng.choice((language, None)), report)
    for language in languages() if repeated else ():
        for kind, text in endless():
            _one(kind, text, language, language, report)
    return report


def _one(kind: str, text: str, language: str, streamed: str | None, report: dict[str, Any]) -> None:
    report["texts"] += 1
    try:
        scan(text, language, SCANNED_S)
    except Exception as error:  # noqa: BLE001  any error is what is looked for
        report["crashes"].append(f"{language} scan, {kind}: {error!r:.120}")
    watch, worst = stream(BLOCK, streamed), 0.0
    for line in [*text.splitlines(keepends=True), ""]:
        start = time.thread_time()
        released = watch.push(line) if line else watch.flush()
        worst = max(worst, (time.thread_time() - start) * 1e3)
        assert released in text
        report["lines"] += 1
    reason = watch.verdict.reason
    if "could not be judged" in reason:
        report["crashes"].append(f"{language} stream, {kind}: {reason:.160}")
    report["given up"] += "too long" in reason
    report["slowest ms"] = max(report["slowest ms"], worst)
    for group, name, other in (("by language", language, kind), ("by kind", kind, language)):
        if worst > report[group].get(name, (0.0,))[0]:
            report[group][name] = (round(worst, 1), other)


def endless() -> Iterator[tuple[str, str]]:
    """Lines of `LENGTHS` characters that repeat one thing; of brackets, nested and closed too.

    Then a piece at a time, of brackets as deep as is judged: the tree grows line by line.
    """
    for unit in UNITS:
        part = unit.replace("_", " ")
        for length in LENGTHS:
            times = length // len(part)
            yield f"{unit} ...", part * times + "\n"
            if unit in ENDS:
                yield f"{unit} closed", part * (times // 2) + ENDS[unit] * (times // 2) + "\n"
                yield f"{unit} closed with )", part * (times // 2) + ")" * (times // 2) + "\n"
        yield f"{unit} by lines", (part * 9 + "\n") * 200


def broken(rng: random.Random, language: str) -> tuple[str, str]:
    """A kind and a text: random bytes, signs, or code with pieces cut out and doubled."""
    kind = rng.randrange(5)
    if kind == 0:
        return "bytes", rng.randbytes(rng.randint(1, 12_000)).decode("latin-1")
    if kind == 1:
        return "bytes, UTF-8", rng.randbytes(rng.randint(1, 12_000)).decode("utf-8", "replace")
    if kind == 2:
        signs = rng.choices("(){}[];:,.=+<>'\"\\/#$`|&@ab0 \n", k=rng.randint(1, 12_000))
        return "signs", "".join(signs)
    own = LANGUAGES.get(language) or rng.choice(list(LANGUAGES.values()))
    calls = [before + call for before, call in own.insecure]
    text = own.head + "".join([*own.harmless, *calls]) + own.tail
    text = "".join(_mutated(rng, text * rng.randint(1, 8)))
    return ("fenced code", f"```{own.tag}\n{text}```\n") if kind == 3 else ("code", text)


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


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Worst stalls as rows of a table: languages first, then the kinds of text above half of it."""
    most = report["slowest ms"] / 2
    found = [
        [group.removeprefix("by "), name, f"{worst:.1f}", other]
        for group in ("by language", "by kind")
        for name, (worst, other) in sorted(report[group].items(), key=lambda item: -item[1][0])
        if group == "by language" or worst > most
    ]
    return found


def claims(report: dict[str, Any]) -> list[Claim]:
    """What must hold of fuzzing."""
    if "fuzz" not in report:
        return []
    slowest = report["fuzz"]["slowest ms"]
    return [
        Claim("crashes", len(report["fuzz"]["crashes"]), 0, at_most=True),
        Claim("slowest broken line, ms", slowest, STALL_MS, at_most=True),
    ]
