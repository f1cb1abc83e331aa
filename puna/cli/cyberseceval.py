"""``puna cyberseceval``: how safe a model's code and answers are."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from puna.cli.options import Json, Weights
from puna.core.errors import UsageError

if TYPE_CHECKING:  # imported inside the functions: help and errors come at once
    from puna.safety.cyberseceval import Plan
    from puna.safety.cyberseceval.run import Tick

_Closing = TypeVar("_Closing", bound=Any)
_REMOTE = 16  # requests at once to a server, which has a queue of its own


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(cyberseceval)


def cyberseceval(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|URL",
            help="A model as other commands take it, or http://HOST/v1[#NAME] of a server.",
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="instruct, autocomplete, mitre, frr, injection, interpreter, canary, phishing or "
            "all; repeatable."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="PUNA_CYBERSECEVAL", help="Folder of the published data; read, never copied."
        ),
    ] = None,
    generated: Annotated[
        bool, typer.Option("--generated", help="Ask the offline sets, whatever --data is.")
    ] = False,
    limit: Annotated[
        str, typer.Option(help="Cases of each suite, or all; groups take turns.")
    ] = "100",
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL|URL", help="Decides where no rule can; plays the person."),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="PYTHON",
            envvar="PUNA_CODESHIELD",
            help="An interpreter that has codeshield, for the comparable figure.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of answers and report; default: by the model.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default: each suite's own.")
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, max=512, help="Conversations in flight.")
    ] = None,
    weights: Weights = "auto",
    seed: Annotated[int, typer.Option(help="Of the sample and the offline sets.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure insecure code, help with attacks, false refusals, injection, exploits, phishing.

    Started again with the same options after an interruption, it goes on where it was.
    """
    from rich.console import Console

    from puna.safety.cyberseceval import Plan, chosen
    from puna.safety.cyberseceval.page import table, write_page
    from puna.safety.models import is_address

    names = suite or ["all"]
    if data is not None and not data.is_dir():
        raise UsageError(f"--data {data}: no such folder")
    plan = Plan(
        chosen(names),
        data=None if generated else data,
        strict="all" not in names,
        limit=_limit(limit),
        seed=seed,
        max_new_tokens=max_new_tokens,
        at_once=at_once or (_REMOTE if is_address(model) else 64),
    )
    folder = out or Path("runs") / f"cyberseceval-{_name(model)}"
    console = Console(stderr=as_json)
    with _progress() as tick:
        result = asyncio.run(_run(model, judge, detector, plan, folder, weights, tick))
    page = write_page(folder, result)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        console.print(table(result))
        console.print(f"report: {page}", soft_wrap=True)


async def _run(
    model: str,
    judge: str | None,
    detector: str | None,
    plan: "Plan",
    folder: Path,
    weights: str,
    tick: "Tick",
) -> dict[str, Any]:
    from puna.safety.cyberseceval import Tools, run
    from puna.safety.cyberseceval.detector import Detector
    from puna.safety.cyberseceval.memo import KeptDetector, KeptModel
    from puna.safety.models import open_model

    async with AsyncExitStack() as open_now:

        async def opened(one: _Closing) -> _Closing:
            open_now.push_async_callback(one.close)
            return one

        # the cheap one first: what is wrong with it shows before a model is loaded
        code = kept = None
        if detector is not None:
            code = await opened(KeptDetector(await opened(await Detector.start(detector)), folder))
        asked = await opened(await open_model(model, weights=weights))
        if judge is not None:
            own = judge == model
            other = asked if own else await opened(await open_model(judge, weights=weights))
            kept = await opened(KeptModel(other, folder))
        return await run(asked, plan, folder, Tools(kept, code), tick)


@contextmanager
def _progress() -> "Iterator[Tick]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def tick(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield tick


def _limit(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--limit '{text}': write a number from 1, or all")
    return int(text)


def _name(model: str) -> str:
    """A folder's name for a model, be it a path or an address."""
    last = os.path.basename(model.rstrip("/").removesuffix(".gguf"))  # noqa: PTH119  also URLs
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in last).strip("-.")
    return kept or "model"
