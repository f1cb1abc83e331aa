"""What ``puna redteam`` shows in a terminal: a bar while it runs, the figures in the end."""

from pathlib import Path
from typing import Any

_SHOWN = 12  # lines of a part


class Bar:
    """A progress bar on standard error, or a line at each tenth where that is no terminal."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._what = what
        self._console = Console(stderr=True)
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[hits]} " + what),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._hits = self._done = self._all = 0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, done: int, total: int) -> None:
        """Say how many there are, and how many were done before."""
        self._done, self._all = done, total
        self._task = self._progress.add_task("", total=total, completed=done, hits=0)

    def advance(self, hit: bool | None) -> None:
        """One more is done."""
        self._hits += bool(hit)
        self._done += 1
        self._progress.update(self._task, completed=self._done, hits=self._hits)
        if (
            self._progress.disable
            and self._done * 10 // self._all > (self._done - 1) * 10 // self._all
        ):
            text = f"{self._done} of {self._all} · {self._hits} {self._what}"
            self._console.print(text, highlight=False)


def show(summary: dict[str, Any], folder: Path) -> None:
    """The figures for a terminal."""
    from rich.console import Console
    from rich.table import Table

    from puna.safety.redteam.goals import group_names
    from puna.safety.redteam.report import outcome, percent

    console, names = Console(), group_names()
    for part in ("by_family", "by_group", "by_attack"):
        table = Table(part.removeprefix("by_"), "succeeded", "of", "share", "95% interval")
        shown = names if part == "by_group" else {}
        for name, found in list(summary[part].items())[:_SHOWN]:
            interval = f"{percent(found['low'])} to {percent(found['high'])}"
            figures = [str(found["successes"]), str(found["n"]), percent(found["share"]), interval]
            table.add_row(shown.get(name, name), *figures)
        console.print(table)
    for pair, both in summary["agreement"].items():
        kappa = "not defined" if both["kappa"] is None else f"{both['kappa']:.2f}"
        console.print(f"{pair}: kappa {kappa} on {both['n']} answers", highlight=False)
    for name, reason in summary["left_out"].items():
        console.print(f"[dim]not tried: {name} {reason}[/]", highlight=False)
    console.print(outcome(summary), highlight=False)
    console.print(f"{folder}: report.html, summary.json, findings.jsonl", highlight=False)
