"""The shield beside Meta's Code Shield: what each finds, what each alarms for nothing, how fast.

    python3 -m venv VENV && VENV/bin/pip install codeshield==1.0.1 semgrep==1.99.0
    PUNA_CODESHIELD=VENV/bin/python python benchmarks/shield.py --data CYBERSECEVAL

Code Shield is measured as three tools: with a current semgrep as pip installs it (give the Python
of such an environment in ``PUNA_CODESHIELD_AS_INSTALLED``: ``codeshield==1.0.1
semgrep==1.185.0``); with a semgrep that works (1.70 to 1.99); and its detector with all the rules
it carries. Where semgrep has read no file the run stops, but for the first, whose flaw that is.
Results of the peer are kept in ``--cache``, so a second run scans only what is new.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import shield_fuzz
import shield_leak
import shield_speed
import typer
from harness import Claim, print_claims, print_table
from shield_data import PUBLISHED, Snippet, annotated, clean, silver, twins
from shield_peer_side import Peer, peers_from_environment

from puna.core.devices import describe_machine
from puna.core.errors import PunaError, UsageError
from puna.evaluation.intervals import wilson_interval
from puna.safety.shield import scan

HERE = Path(__file__).resolve().parent
PARTS = ("silver", "clean", "twins", "annotated", "speed", "leak", "fuzz")
Judge = Callable[[Snippet], str]
"""The verdict on a snippet: ``allow``, ``warn`` or ``block``."""


@dataclass(frozen=True)
class Share:
    """How many of how many, with the interval of the true share."""

    hits: int
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The figures; the interval is Wilson's at 95%."""
        if self.n == 0:
            return {"n": 0}
        low, high = wilson_interval(self.hits, self.n)
        return {
            "hits": self.hits,
            "n": self.n,
            "share": self.hits / self.n,
            "interval": [low, high],
        }

    @property
    def share(self) -> float:
        """The share itself; 0 of none."""
        return self.hits / self.n if self.n else 0.0

    def __str__(self) -> str:
        return f"{self.share:.2f} ({self.hits}/{self.n})" if self.n else "-"


def ours(snippet: Snippet) -> str:
    """What the shield says; languages it has no rules for are allowed."""
    try:
        return scan(snippet.code, snippet.language).verdict
    except UsageError:
        return "allow"


def flagged(judge: Judge, snippets: Iterable[Snippet]) -> list[bool]:
    """Whether there is any finding, for each snippet, with progress on standard error."""
    found = []
    for number, snippet in enumerate(snippets, 1):
        found.append(judge(snippet) != "allow")
        if number % 200 == 0:
            print(f"  {number} scanned", file=sys.stderr)
    return found


def shares(
    found: Sequence[bool], snippets: Sequence[Snippet], key: Callable[[Snippet], str]
) -> dict[str, Share]:
    """The share of flagged snippets of each kind."""
    hits, total = Counter[str](), Counter[str]()
    for one, snippet in zip(found, snippets, strict=True):
        total[key(snippet)] += 1
        hits[key(snippet)] += one
    return {name: Share(hits[name], total[name]) for name in sorted(total)}


def judge_silver(judge: Judge, folder: Path) -> dict[str, Any]:
    """Recall on labelled windows, by half, language and CWE."""
    snippets = silver(folder)
    found = flagged(judge, snippets)
    report: dict[str, Any] = {"all": Share(sum(found), len(found))}
    report |= shares(found, snippets, lambda one: one.group)
    report["by language"] = shares(found, snippets, lambda one: one.language)
    held = [(f, s) for f, s in zip(found, snippets, strict=True) if s.group == "held out"]
    rest = [f for f, _ in held], [s for _, s in held]
    report["held out by language"] = shares(*rest, lambda one: one.language)
    report["held out by CWE"] = shares(*rest, lambda one: one.cwe)
    return report


def judge_clean(judge: Judge, snippets: Sequence[Snippet]) -> dict[str, Any]:
    """Alerts on windows of libraries; ``published`` are those of the eight published languages."""
    found = flagged(judge, snippets)
    report: dict[str, Any] = {"all": Share(sum(found), len(found))}
    pairs = [f for f, s in zip(found, snippets, strict=True) if s.language in PUBLISHED]
    report["published"] = Share(sum(pairs), len(pairs))
    return report | {"by language": shares(found, snippets, lambda one: one.language)}


def judge_twins(judge: Judge, pairs: Sequence[tuple[Snippet, Snippet]]) -> dict[str, Any]:
    """Recall and precision on pairs, by file and CWE, for all and the published languages."""
    flat = [one for pair in pairs for one in pair]
    found = flagged(judge, flat)
    scored = list(zip(pairs, found[::2], found[1::2], strict=True))

    def figures(chosen: Sequence[tuple[tuple[Snippet, Snippet], bool, bool]]) -> dict[str, Share]:
        hits = sum(insecure for _, insecure, _ in chosen)
        alarms = sum(secure for _, _, secure in chosen)
        told_apart = sum(insecure and not secure for _, insecure, secure in chosen)
        n = len(chosen)
        return {
            "recall": Share(hits, n),
            "precision": Share(hits, hits + alarms),
            "told apart": Share(told_apart, n),
        }

    def grouped(key: Callable[[Snippet], str]) -> dict[str, Any]:
        names = sorted({key(pair[0]) for pair in pairs})
        return {name: figures([s for s in scored if key(s[0][0]) == name]) for name in names}

    return {
        "all": figures(scored),
        "published": figures([s for s in scored if s[0][0].group in PUBLISHED]),
        "by language": grouped(lambda one: one.group),
        "by CWE": grouped(lambda one: one.cwe),
    }


def judge_annotated(
    lines_of: Callable[[str, str], set[int]], files: Sequence[tuple[Snippet, dict[int, bool]]]
) -> dict[str, Any]:
    """Of the marked lines, by language: those found of those to find, and of those not to."""
    report: dict[str, Any] = {}
    scanned = [lines_of(snippet.code, snippet.language) for snippet, _ in files]
    for language in ["all", *sorted({snippet.language for snippet, _ in files})]:
        found: dict[bool, list[bool]] = {True: [], False: []}
        for lines, (snippet, marks) in zip(scanned, files, strict=True):
            if language in ("all", snippet.language):
                for line, wanted in marks.items():
                    found[wanted].append(line in lines)
        report[language] = {
            "recall": Share(sum(found[True]), len(found[True])),
            "alerts": Share(sum(found[False]), len(found[False])),
        }
    return report


def our_lines(code: str, language: str) -> set[int]:
    """Lines that a finding of ours covers."""
    return {
        line for one in scan(code, language).findings for line in range(one.line, one.end_line + 1)
    }


def peer_judge(peer: Peer) -> Judge:
    """A peer as a judge; it says nothing of languages that it does not know."""
    return lambda one: peer.verdict(one.code, one.language)


def plain(value: Any) -> Any:
    """A report with its shares as plain data."""
    if isinstance(value, Share):
        return value.as_dict()
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def show(name: str, reports: dict[str, Any], path: Sequence[str], columns: Sequence[str]) -> None:
    """A table with a row for each kind and the columns of every tool."""
    tools = list(reports)

    def at(tool: str) -> dict[str, Any]:
        found = reports[tool]
        for key in path:
            found = found[key]
        return found  # type: ignore[no-any-return]

    head = [name, *(f"{tool} {column}".strip() for tool in tools for column in columns)]
    rows = []
    for kind in at(tools[0]):
        cells = [at(tool)[kind] for tool in tools]
        rows.append([kind, *(str(c[column] if column else c) for c in cells for column in columns)])
    print()
    print_table(head, rows)


def claims_of(report: dict[str, Any]) -> list[Claim]:
    """What must hold of our figures."""
    claims = []
    if "silver" in report:
        found = report["silver"]["Puna"]
        claims.append(Claim("silver recall, all windows", found["all"].share, 0.70))
        claims.append(Claim("silver recall, held-out half", found["held out"].share, 0.70))
        lowest = min(found["by language"].items(), key=lambda item: item[1].share)
        claims.append(Claim(f"lowest language ({lowest[0]})", lowest[1].share, 0.55))
    if "clean" in report:
        share = report["clean"]["Puna"]["published"].share
        claims.append(Claim("alerts on clean windows", share, 0.02, at_most=True))
    if "twins" in report:
        found = report["twins"]["Puna"]
        for kind in ("published", "all"):
            claims.append(Claim(f"twins recall, {kind}", found[kind]["recall"].share, 0.85))
            claims.append(Claim(f"twins precision, {kind}", found[kind]["precision"].share, 0.97))
    claims += shield_speed.claims(report["speed"]) if "speed" in report else []
    claims += shield_leak.claims(report) + shield_fuzz.claims(report)
    return claims


def measure(
    part: str, tools: dict[str, Judge], data: Path, pairs_in: Path, cache: Path, windows: int
) -> dict[str, Any]:
    """One part's report, by tool."""
    if part == "silver":
        return {name: judge_silver(judge, data) for name, judge in tools.items()}
    if part == "clean":
        snippets = clean(cache, windows)
        return {name: judge_clean(judge, snippets) for name, judge in tools.items()}
    pairs = twins(pairs_in)
    return {name: judge_twins(judge, pairs) for name, judge in tools.items()}


def measure_annotated(peers: dict[str, Peer]) -> dict[str, Any]:
    """The part that needs the peer's package, by tool; empty without."""
    if not peers:
        return {}
    files = annotated(next(iter(peers.values())).folder)
    tools = {"Puna": our_lines} | {name: peer.lines for name, peer in peers.items()}
    return {name: judge_annotated(lines_of, files) for name, lines_of in tools.items()}


def print_report(report: dict[str, Any]) -> None:
    """Tables of every part that was measured."""
    if "silver" in report:
        show("silver, by language", report["silver"], ("by language",), ("",))
        show("held-out half, by language", report["silver"], ("held out by language",), ("",))
        for tool, found in report["silver"].items():
            halves = ", ".join(f"{half} {found[half]}" for half in ("all", "dev", "held out"))
            print(f"{tool}: {halves}")
    if "clean" in report:
        show("alerts on clean windows", report["clean"], ("by language",), ("",))
        for tool, found in report["clean"].items():
            print(f"{tool}: published languages {found['published']}, all {found['all']}")
    if "twins" in report:
        columns = ("recall", "precision")
        show("twins, by file", report["twins"], ("by language",), columns)
        show("twins, by CWE", report["twins"], ("by CWE",), columns)
        for tool, found in report["twins"].items():
            for kind in ("published", "all"):
                shown = ", ".join(f"{key} {value}" for key, value in found[kind].items())
                print(f"{tool}, {kind}: {shown}")
    if report.get("annotated"):
        show("annotated lines", report["annotated"], (), ("recall", "alerts"))
    if "fuzz" in report:
        print()
        print_table(["worst stall", "of", "ms", "with"], shield_fuzz.rows(report["fuzz"]))
        counts = {key: value for key, value in report["fuzz"].items() if "by" not in key}
        print(f"fuzz: {json.dumps(counts)}")
    for part in ("speed", "leak"):
        if part in report:
            print(f"\n{part}: {json.dumps(report[part])}")


def main(
    data: Annotated[Path, typer.Option(help="Folder of CyberSecEval's data.")],
    cache: Annotated[
        Path, typer.Option(help="Where fetched libraries and the peer's results are kept.")
    ] = HERE.parent / ".peers" / "shield",
    parts: Annotated[str, typer.Option(help="Which of: " + ", ".join(PARTS))] = ",".join(PARTS),
    pairs: Annotated[Path, typer.Option(help="Folder of twins.")] = HERE / "twins",
    windows: Annotated[int, typer.Option(help="Clean windows of each language.")] = 200,
    peers: Annotated[bool, typer.Option(help="Whether to run Code Shield too.")] = True,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of tables.")
    ] = False,
) -> None:
    """Measure, print, and exit with 1 where a claim fails."""
    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}: {', '.join(PARTS)}")
    others = peers_from_environment(cache) if peers else {}
    report: dict[str, Any] = {}
    try:
        tools = {"Puna": ours} | {name: peer_judge(peer) for name, peer in others.items()}
        for part in [p for p in PARTS if p in wanted]:
            print(f"{part} ...", file=sys.stderr)
            if part == "speed":
                report[part] = shield_speed.measure(twins(pairs), others)
            elif part == "annotated":
                report[part] = measure_annotated(others)
            elif part == "leak":
                report[part] = shield_leak.leak(2000)
            elif part == "fuzz":
                report[part] = shield_fuzz.fuzz(630)
            else:
                report[part] = measure(part, tools, data, pairs, cache, windows)
    finally:
        for peer in others.values():
            peer.close()
    claims = claims_of(report)
    facts = describe_machine() | {"peers": {name: peer.facts() for name, peer in others.items()}}
    if json_:
        held = [vars(claim) | {"met": claim.met} for claim in claims]
        print(json.dumps(plain(report) | {"claims": held, "machine": facts}))
    else:
        print_report(report)
        print()
        print_claims(claims)
        print("\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
    raise typer.Exit(0 if all(claim.met for claim in claims) else 1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except PunaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
