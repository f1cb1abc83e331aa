"""``puna guard``: train a guard's head, and let a guard judge a text or a conversation."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli.options import GuardNames, Json, Model, PolicyFile, policy_of
from puna.core.errors import UsageError

if TYPE_CHECKING:  # imported inside the functions: help and errors come at once
    from puna.safety import Verdict
    from puna.safety.guard.judgement import Judgement
    from puna.safety.guard.safeguard import Guard
    from puna.tokenizer import Message

app = typer.Typer(help="Judge conversations: hazards, injections, secrets.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add this module's commands."""
    root.add_typer(app, name="guard")


@app.command()
def train(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the head; replaced when it exists.")],
    task: Annotated[
        Literal["hazard", "injection"],
        typer.Option(help="Harmful turns, or prompt injections and jailbreaks."),
    ] = "hazard",
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help='Rows of your own: "text" or "messages", "label" (safe, unsafe), perhaps '
            '"hazards". Each file is a source; repeatable.'
        ),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Learn nothing from this source; repeatable."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Whose hidden states to use, as 12,18,24.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a head on a model's hidden states; every figure is on sources not learned from."""
    from puna.safety.guard.head_guard import load_encoder
    from puna.safety.guard.training import features_of, read_sources, train_head
    from puna.safety.models import digest_of

    sources = read_sources(task, data or [])
    encoder = load_encoder(model, None if layers is None else _numbers(layers))
    digest = digest_of(model)

    def say(name: str, number: int, n: int) -> None:
        print(f"features of {name} ({number + 1} of {n})", file=sys.stderr, flush=True)

    rows = features_of(encoder, digest, sources, say)
    about = {"task": task, "model": model, "digest": digest, "layers": encoder.layers}
    head, reports = train_head(rows, hold_out or [], about)
    head.save(out)
    measured = {name: vars(report) for name, report in reports.items()}
    if as_json:
        print(
            json.dumps({"head": str(out), "threshold": head.facts.threshold, "sources": measured})
        )
        return
    _show(measured, set(hold_out or []))
    print(f"{out}: unsafe from {head.facts.threshold:.3f} on")


@app.command()
def check(
    text: Annotated[
        list[str] | None,
        typer.Argument(help="What to judge; standard input by default: a text, or messages."),
    ] = None,
    guard: GuardNames = None,
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Judge a text, or the last turn of a conversation given as JSON; exit code 1 when unsafe."""
    turns = _turns(" ".join(text) if text else sys.stdin.read())
    judged, verdict = asyncio.run(_check(guard or [], policy, turns))
    found = {name: vars(judgement) for name, judgement in judged.items()}
    if as_json:
        print(json.dumps({"decision": verdict.decision, "reason": verdict.reason, **found}))
    else:
        from puna.safety.guard.prompt import answer_of

        for name, judgement in judged.items():
            print(answer_of(judgement) if name == "hazard" else f"{name}: {judgement.score:.3f}")
        print(verdict.decision + (f": {verdict.reason}" if verdict.reason else ""))
    if verdict.decision == "block" or any(j.unsafe for j in judged.values()):
        raise typer.Exit(1)


async def _check(
    names: list[str], policy: Path | None, turns: "list[Message]"
) -> "tuple[dict[str, Judgement], Verdict]":
    """What each guard thinks of the last turn, and what the policy does about it."""
    from puna.safety.guard.load import close_guard, open_guard

    guard = await open_guard(names, policy_of(policy))
    try:
        judged = {
            task: await part.judge(turns)
            for task, part in (("hazard", guard.classifier), ("injection", guard.detector))
            if part is not None
        }
        return judged, await _verdict(guard, turns)
    finally:
        await close_guard(guard)


async def _verdict(guard: "Guard", turns: "list[Message]") -> "Verdict":
    from puna.safety import Subject

    *before, last = turns
    if last.role != "assistant":
        return await guard.admit(Subject(last.content, turns, "", None))
    watch = guard.output_filter(Subject("", before, "", None))
    watch.push(last.content)
    await watch.settled()
    watch.flush()
    return watch.verdict


def _turns(given: str) -> "list[Message]":
    """A conversation given as JSON, or a text as a user's turn; raises `UsageError`."""
    from puna.data.chats import parse_messages
    from puna.tokenizer import Message

    if not given.strip():
        raise UsageError("there is nothing to judge: give a text, or messages as JSON")
    try:
        value: Any = json.loads(given)
    except ValueError:
        return [Message("user", given.strip())]
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict) or "messages" not in value:
        return [Message("user", given.strip())]
    turns = [m for m in parse_messages(value, "standard input") if m.role != "system"]
    if not turns:
        raise UsageError("the conversation has no turn of a user or an assistant")
    return turns


def _numbers(layers: str) -> list[int]:
    try:
        return sorted({int(part) for part in layers.split(",")})
    except ValueError as error:
        raise UsageError(f"--layers '{layers}': write numbers, as 12,18,24") from error


def _show(measured: dict[str, dict[str, Any]], held_out: set[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("source", "unsafe", "safe", "AUC", "recall", "false positives")
    for name, found in measured.items():
        shares = [found["recall"], found["false_positives"]]
        table.add_row(
            name + (" (held out)" if name in held_out else ""),
            str(found["unsafe"]),
            str(found["safe"]),
            f"{found['auc']:.3f}",
            *("" if share is None else f"{share:.3f}" for share in shares),
        )
    Console().print(table)
