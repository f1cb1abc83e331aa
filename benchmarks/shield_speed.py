"""How fast the shield is, what it holds in memory, and how that compares with Code Shield."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
from harness import Claim
from shield_data import PUBLISHED, Snippet
from shield_peer_side import Peer

from puna.safety.shield import Policy, scan, stream

LINES = 200
PHP = "<?php"
TURNS = 11
FILE_TURNS = 60
COMPARED = 5
"""Pairs of each language that both sides scan."""


def measure(pairs: Sequence[tuple[Snippet, Snippet]], peers: Mapping[str, Peer]) -> dict[str, Any]:
    """Latency for each published language, memory, children, and the ratio to each peer."""
    report: dict[str, Any] = {"languages": {}}
    for language in PUBLISHED:
        code = long_file([pair[1] for pair in pairs if pair[1].language == language])
        report["languages"][language] = latency(code, language)
    every = list(report["languages"].values())
    report["line p95 ms"] = max(each["line p95 ms"] for each in every)
    report["file p95 ms"] = max(each["file p95 ms"] for each in every)
    report["memory"] = memory(pairs)
    report["child processes"] = len(psutil.Process().children()) - len(peers)
    report["ratio"] = ratios(pairs, peers)
    return report


def long_file(snippets: Sequence[Snippet]) -> str:
    """A file of `LINES` lines made of harmless snippets; PHP is begun once, at its top."""
    lines: list[str] = []
    while len(lines) < LINES:
        for snippet in snippets:
            lines += [line for line in snippet.code.splitlines() if line != PHP or not lines]
    return "\n".join(lines[:LINES]) + "\n"


def latency(code: str, language: str) -> dict[str, float]:
    """Milliseconds of the clock for a streamed line and for the whole file.

    Of the file the median and p95 of `FILE_TURNS` scans count. Of each line it is the median of
    several streams, so that what else the machine does at one moment does not count; then the
    median, p95 and worst over the lines.
    """
    whole = sorted([_timed(lambda: scan(code, language)) for _ in range(FILE_TURNS + 1)][1:])
    turns: list[list[float]] = []
    for _ in range(TURNS + 1):
        watch = stream(Policy(mode="block"), language)
        turns.append(
            [
                _timed(lambda one=one, watch=watch: watch.push(one))  # type: ignore[misc]
                for one in code.splitlines(keepends=True)
            ]
        )
        if watch.verdict.decision == "block":
            raise RuntimeError(f"{language}: a blocked stream takes no time: {watch.verdict}")
    ordered = sorted(map(statistics.median, zip(*turns[1:], strict=True)))
    return {
        "line median ms": statistics.median(ordered),
        "line p95 ms": ordered[int(0.95 * len(ordered))],
        "line worst ms": ordered[-1],
        "file median ms": statistics.median(whole),
        "file p95 ms": whole[int(0.95 * len(whole))],
    }


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def memory(pairs: Sequence[tuple[Snippet, Snippet]]) -> dict[str, float]:
    """Megabytes a fresh process holds: bare, with the shield imported, after scanning all pairs."""
    texts = [(one.language, one.code) for pair in pairs for one in pair]
    bare = "import os, psutil; print(psutil.Process().memory_info().rss / 2**20)"
    done = [
        subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for script in (bare, _FRESH)
    ]
    return {"bare MB": float(done[0])} | json.loads(done[1])


_FRESH = """
import json, sys, psutil
texts = json.load(sys.stdin)
from puna.safety import shield
here = psutil.Process()
imported = here.memory_info().rss / 2**20
for language, code in texts:
    shield.scan(code, language)
    shield.stream(language=language).push(code)
print(json.dumps({"imported MB": imported, "after all MB": here.memory_info().rss / 2**20,
                  "children": len(here.children()), "torch": "torch" in sys.modules}))
"""


def ratios(
    pairs: Sequence[tuple[Snippet, Snippet]], peers: Mapping[str, Peer]
) -> dict[str, dict[str, float]]:
    """Milliseconds a scan of ours and each peer's, on the same snippets in turn."""
    chosen = [
        one
        for language in PUBLISHED
        for pair in [p for p in pairs if p[0].group == language][:COMPARED]
        for one in pair
    ]
    report = {}
    for name, peer in peers.items():
        mine, theirs = [], []
        for one in chosen:
            # The best of three scans of ours would flatter: it is the middle one.
            mine.append(statistics.median(_timed(_scan(one)) for _ in range(3)))
            theirs.append(peer.ask(one.code, one.language)["seconds"] * 1e3)
        report[name] = {
            "ours mean ms": statistics.mean(mine),
            "ours median ms": statistics.median(mine),
            "theirs mean ms": statistics.mean(theirs),
            "theirs median ms": statistics.median(theirs),
            "ratio of means": statistics.mean(theirs) / statistics.mean(mine),
            "their child MB": peer.ask(chosen[-1].code, chosen[-1].language)["child_mb"],
            "files they left": peer.ask(chosen[-1].code, chosen[-1].language)["left_files"],
        }
    return report


def _scan(one: Snippet) -> Callable[[], Any]:
    return lambda: scan(one.code, one.language)


def claims(report: dict[str, Any]) -> list[Claim]:
    """What must hold of speed and memory."""
    held = report["memory"]["after all MB"] - report["memory"]["bare MB"]
    found = [
        Claim("streamed line, p95 ms", report["line p95 ms"], 1, at_most=True),
        Claim("file of 200 lines, p95 ms", report["file p95 ms"], 10, at_most=True),
        Claim("memory added, MB", held, 60, at_most=True),
        Claim("child processes", report["memory"]["children"], 0, at_most=True),
    ]
    for name, each in report["ratio"].items():
        times = (each["theirs mean ms"], each["ours mean ms"])
        found.append(Claim(f"scans a second, {name}", times[0], 50, times[1], "ms a scan"))
    return found
