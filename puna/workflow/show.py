"""What a person sees when a run is done."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from puna.alignment.rejection import PAIRS, SFT_ROWS
from puna.workflow.stages.training import MODEL
from puna.workflow.summary import stage_rows, stage_table, terminal_table

_DIALOGUES = 3


def _command() -> str:
    """How the user reaches the command: by its name, or by where it lies."""
    return "puna" if shutil.which("puna") else str(Path(sys.argv[0]))


def show_result(console: Console, folder: Path, summary: dict[str, Any]) -> None:
    """Print the before-and-after table, three dialogues, the report's place and what to try."""
    console.print()
    if summary["evaluation"]:
        console.print(terminal_table(summary))
    if stage_rows(summary):
        console.print(stage_table(summary))
    _show_dialogues(console, folder, summary)
    console.print(f"\nReport: [bold]{folder / 'report.html'}[/]", soft_wrap=True)
    if "sample" in summary["stages"] and summary["model"] is None:
        _show_sampled(console, folder / "sample")
    if "reward" in summary["stages"]:
        _show_judge(console, folder / "reward" / MODEL)
    if summary["model"] is None:
        return
    model, puna = folder / summary["model"], _command()
    console.print(f"Talk to it: [bold]{puna} chat {model}[/]", soft_wrap=True)
    console.print("\nNext, try:")
    lines = (
        (f"{puna} chat smollm2", "a real model, of 135 million parameters"),
        (f"{puna} sft {model} --data my.jsonl", "your own chats, a JSON line each"),
    )
    for command, meaning in lines:
        console.print(f"  [bold]{command}[/]  ({meaning})", soft_wrap=True, highlight=False)


def _show_sampled(console: Console, folder: Path) -> None:
    """Say what the best answers are good for."""
    console.print("\nNext, try:")
    for method, name in (("sft", SFT_ROWS), ("dpo", PAIRS)):
        command = f"{_command()} {method} MODEL --data {folder / name}"
        console.print(f"  [bold]{command}[/]", soft_wrap=True, highlight=False)


def _show_judge(console: Console, model: Path) -> None:
    """Say what a reward model is good for."""
    command = f"{_command()} sample MODEL --data prompts.jsonl --reward {model}"
    console.print("\nChoose the best of many answers with it:")
    console.print(f"  [bold]{command}[/]", soft_wrap=True, highlight=False)


def _show_dialogues(console: Console, folder: Path, summary: dict[str, Any]) -> None:
    judged = [name for name in summary["evaluation"] if name not in ("untrained", "base")]
    if not judged:
        return
    samples = json.loads((folder / f"evaluate-{judged[-1]}" / "samples.json").read_text())
    for dialogue in samples["dialogues"][:_DIALOGUES]:
        console.print("\n[bold green]you[/]  ", end="")
        console.print(dialogue["question"], markup=False, highlight=False)
        console.print("[bold cyan]puna[/] ", end="")
        console.print(dialogue["answer"], markup=False, highlight=False)
