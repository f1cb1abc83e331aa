"""What the benchmarks beside peers share: sides in processes of their own, rounds, claims."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import peers

from puna.core.devices import describe_machine

THREADS = 2
# For sides, not for us: a bound parent would hand its one core down to them.
FIXED_THREADS = {
    "OMP_NUM_THREADS": str(THREADS),
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
}


def all_cores() -> None:
    """Undo what this process was bound to, so that its children may use every core."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


class Side:
    """A process of its own that answers questions: one line of JSON for one line of JSON."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | FIXED_THREADS,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to one question."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def answer_questions(answer: Callable[..., Mapping[str, Any]]) -> None:
    """Be the process of a `Side`: standard input to ``answer`` to standard output."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between
    for line in sys.stdin:
        replies.write(json.dumps(answer(**json.loads(line))) + "\n")
        replies.flush()


def rounds(
    measures: Mapping[str, Callable[[], Mapping[str, float]]], repeats: int, *, warm_up: int = 1
) -> dict[str, dict[str, float]]:
    """Medians of each measure's figures; the measures take turns, so all meet the same weather."""
    seen: dict[str, list[Mapping[str, float]]] = {name: [] for name in measures}
    for turn in range(warm_up + repeats):
        for name, measure in measures.items():
            found = measure()
            if turn >= warm_up:
                seen[name].append(found)
                shown = ", ".join(f"{key} {value:,.4g}" for key, value in found.items())
                print(f"  {turn - warm_up + 1}/{repeats} {name}: {shown}", file=sys.stderr)
    return {name: medians(found) for name, found in seen.items()}


def medians(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    answers = list(found)
    return {key: statistics.median(each[key] for each in answers) for key in answers[0]}


@dataclass(frozen=True)
class Claim:
    """A figure that must hold, alone or as a ratio to a peer's."""

    name: str
    ours: float
    required: float
    theirs: float | None = None
    peer: str = ""
    goal: float | None = None
    at_most: bool = False

    @property
    def value(self) -> float:
        """What is compared with the requirement."""
        return self.ours if self.theirs is None else self.ours / self.theirs

    @property
    def met(self) -> bool:
        """Whether the requirement holds."""
        return self.value <= self.required if self.at_most else self.value >= self.required

    def cells(self) -> list[str]:
        """A row of the table."""
        sign = "<=" if self.at_most else ">="
        alone = self.theirs is None
        return [
            self.name,
            f"{self.ours:,.4g}",
            "" if alone else f"{self.theirs:,.4g} {self.peer}",
            f"{self.value:.4g}",
            f"{sign} {self.required:g}" + (f" (goal {self.goal:g})" if self.goal else ""),
            "pass" if self.met else "FAIL",
        ]


def print_table(head: list[str], rows: Iterable[list[str]]) -> None:
    """Rows as a Markdown table, aligned."""
    lines = [head, *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    for n, line in enumerate(lines):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |")
        if n == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def print_claims(claims: Iterable[Claim]) -> None:
    """The table that says what holds."""
    head = ["claim", "Puna", "peer", "value", "required", ""]
    print_table(head, [claim.cells() for claim in claims])


def machine() -> dict[str, Any]:
    """The facts that belong beside the figures, with the load when it began."""
    facts: dict[str, Any] = describe_machine()
    facts |= {"threads": THREADS, "transformers": metadata.version("transformers")}
    return facts | {"llama.cpp": peers.version(), "load": round(os.getloadavg()[0], 2)}


def finish(report: dict[str, Any], claims: list[Claim], path: Path | None) -> None:
    """Print the claims and the machine; write everything to ``path`` as JSON where asked."""
    print()
    print_claims(claims)
    print("\n" + ", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if path is not None:
        report["claims"] = [vars(claim) | {"met": claim.met} for claim in claims]
        path.write_text(json.dumps(report, indent=2) + "\n")
