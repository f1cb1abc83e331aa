"""``puna redteam``: attack a model, try findings again, list what there is."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from puna.cli.options import Compile, GuardNames, Json, PolicyFile, Weights, guard_of
from puna.cli.redteam_show import Bar, show
from puna.core.errors import PunaError, UsageError

if TYPE_CHECKING:  # imported inside the functions: help and errors come at once
    from puna.safety.guard.judgement import Classifier
    from puna.safety.models import ChatModel
    from puna.safety.redteam import Cast, Goal, RedTeamConfig, Replayed

_WHO = "Who takes part"
_WHAT = "What is tried"


class _RunByDefault(TyperGroup):
    """``puna redteam MODEL`` is short for ``puna redteam run MODEL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Attack a model with jailbreaks and injections: puna redteam MODEL.",
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|URL",
        help="A model as of puna chat, or an OpenAI-compatible address: http://HOST/v1[#NAME].",
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(metavar="MODEL|URL", help="Rates answers 1 to 10.", rich_help_panel=_WHO),
]
JudgeGuard = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|MODEL|URL",
        help="A guard, named as for --guard, that tells whether answers are harmful.",
        rich_help_panel=_WHO,
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, max=1024, help="Trials at the same time.")]
Threshold = Annotated[
    int,
    typer.Option(
        min=2,
        max=10,
        help="The judge's rating from which on an attack has succeeded.",
        rich_help_panel=_WHO,
    ),
]


def register(to: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(run)
    app.command("replay")(replay)
    app.command("ls")(list_attacks)
    to.add_typer(app, name="redteam")


def run(
    model: Target,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Attack or family, see ls; repeatable. Default: all but gcg.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    attack_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="YAML", help="Attacks of your own; repeatable.", rich_help_panel=_WHAT
        ),
    ] = None,
    goals: Annotated[
        list[str] | None,
        typer.Option(
            metavar="YAML|NAME",
            help="Goals of your own, or advbench, do-not-answer, harmbench, read from their "
            "packages; repeatable. Default: the project's.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="harm, leak, document or tool; repeatable. Default: all.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S1..S14",
            help="Hazards that harms are limited to; repeatable.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE",
            help="en, de, fr, es, it, pt, hi, th, or all; repeatable. Default: en.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Tries of each attack on each goal.", rich_help_panel=_WHAT)
    ] = 1,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Trials at most: attacks in turn, goals drawn.", rich_help_panel=_WHAT
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer.", rich_help_panel=_WHAT)
    ] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the answers.", rich_help_panel=_WHAT)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of every draw.", rich_help_panel=_WHAT)] = 0,
    attacker: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|URL",
            help="Writes prompts, for crescendo, pair and tap.",
            rich_help_panel=_WHO,
        ),
    ] = None,
    judge: Judge = None,
    judge_guard: JudgeGuard = None,
    guard: GuardNames = None,
    policy: PolicyFile = None,
    threshold: Threshold = 7,
    concurrency: Concurrency = 16,
    weights: Weights = "auto",
    compiled: Compile = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: redteam-MODEL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Attack a model and report how often it gave in.

    Started again with the same options after an interruption, it goes on where it was.
    """
    from puna.safety.models import is_address
    from puna.safety.redteam import RedTeamConfig, make_plan, read_attacks, red_team
    from puna.safety.redteam.goals import LANGUAGES

    languages = tuple(language or ("en",))
    fields = {
        "attacks": tuple(attack or ()),
        "categories": tuple(category or ()),
        "languages": LANGUAGES if "all" in languages else languages,
        "samples": samples,
        "limit": limit,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "threshold": threshold,
        **({"kinds": tuple(kind)} if kind else {}),
    }
    config = RedTeamConfig.parse(fields, where="redteam")
    plan = make_plan(
        config,
        [one for path in attack_file or [] for one in read_attacks(path)],
        aims=[goal for source in goals or [] for goal in _goals(source)],
        has_attacker=attacker is not None,
        has_weights=not is_address(model),
    )
    folder = out or Path(f"redteam-{_short(model)}")

    engine = {"weights": weights, "compile": compiled}
    parties = _Parties(model, attacker, judge, judge_guard, guard or [], policy, engine)

    async def work() -> dict[str, Any]:
        async with _cast(parties, config) as cast:
            with Bar("succeeded") as bar:
                return await red_team(
                    config,
                    cast,
                    plan,
                    folder,
                    concurrency=concurrency,
                    started=bar.start,
                    done=lambda record: bar.advance(record.get("success")),
                )

    summary = asyncio.run(work())
    if as_json:
        print(json.dumps({"folder": str(folder), **summary}, ensure_ascii=False))
    else:
        show(summary, folder)
    if summary["failed"]:
        raise PunaError(f"{summary['failed']} trials failed: the same command tries them again")


def replay(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With findings.jsonl.")],
    model: Target,
    judge: Judge = None,
    judge_guard: JudgeGuard = None,
    guard: GuardNames = None,
    policy: PolicyFile = None,
    threshold: Threshold = 7,
    concurrency: Concurrency = 16,
    weights: Weights = "auto",
    compiled: Compile = True,
    as_json: Json = False,
) -> None:
    """Try the attacks that once succeeded again; exit code 1 when one still does."""
    from puna.safety.redteam import RedTeamConfig, read_findings
    from puna.safety.redteam import replay as try_again

    findings = read_findings(folder)
    if not findings:
        raise UsageError(f"{folder} holds no findings: no attack had succeeded")
    config = RedTeamConfig(threshold=threshold)

    engine = {"weights": weights, "compile": compiled}
    parties = _Parties(model, None, judge, judge_guard, guard or [], policy, engine)

    async def work() -> "list[Replayed]":
        async with _cast(parties, config) as cast:
            with Bar("still succeed") as bar:
                bar.start(0, len(findings))
                return await try_again(
                    cast,
                    findings,
                    concurrency=concurrency,
                    done=lambda replayed: bar.advance(replayed.succeeds),
                )

    replayed = asyncio.run(work())
    still = [one for one in replayed if one.succeeds]
    if as_json:
        facts = {"model": model, "findings": len(replayed), "still": len(still)}
        print(json.dumps({**facts, "results": [r.fields() for r in replayed]}, ensure_ascii=False))
    else:
        for one in still:
            print(f"still succeeds: {one.finding.id}")
        print(f"{len(still)} of {len(replayed)} attacks still succeed")
    if still:
        raise typer.Exit(1)


def list_attacks(as_json: Json = False) -> None:
    """Show attacks, goals and languages."""
    from rich.console import Console
    from rich.table import Table

    from puna.safety.redteam import attacks, goals
    from puna.safety.redteam.goals import LANGUAGES, group_names

    counts: dict[str, int] = {}
    for goal in goals():
        counts[goal.group] = counts.get(goal.group, 0) + 1
    if as_json:
        fields = {"name", "family", "against", "about"}
        known = [attack.model_dump(mode="json", include=fields) for attack in attacks()]
        print(json.dumps({"attacks": known, "goals": counts, "languages": LANGUAGES}))
        return
    table = Table("attack", "family", "against", "what it does")
    for attack in attacks():
        table.add_row(attack.name, attack.family, ", ".join(attack.against), attack.about)
    console = Console()
    console.print(table)
    names = group_names()
    goals_line = ", ".join(f"{names[group]} ({n})" for group, n in counts.items())
    console.print(f"Goals: {goals_line}", highlight=False)
    console.print(f"Languages: {', '.join(LANGUAGES)}", highlight=False)


@dataclass(frozen=True)
class _Parties:
    """Who takes part, as the user named them."""

    target: str
    attacker: str | None
    judge: str | None
    judge_guard: str | None
    """The guard that judges answers."""
    guards: list[str]
    """Those that the target is behind."""
    policy: Path | None
    engine: dict[str, Any]
    """Fields of `EngineConfig` for models of this machine."""


@asynccontextmanager
async def _cast(parties: _Parties, config: "RedTeamConfig") -> "AsyncIterator[Cast]":
    """Everybody who takes part, each model loaded once, closed in the end."""
    from puna.inference import Sampling
    from puna.safety.models import ChatModel, is_address, open_model
    from puna.safety.redteam import Cast
    from puna.safety.redteam.white_box import WhiteBox

    opened: dict[str, ChatModel] = {}
    async with AsyncExitStack() as stack:

        async def open_once(source: str) -> ChatModel:
            if source not in opened:
                opened[source] = await open_model(source, **parties.engine)
                stack.push_async_callback(opened[source].close)
            return opened[source]

        limits = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
        yield Cast(
            target=await _defended(stack, parties, await open_once(parties.target)),
            attacker=await open_once(parties.attacker) if parties.attacker else None,
            judge=await open_once(parties.judge) if parties.judge else None,
            guard=await _classifier(stack, parties.judge_guard) if parties.judge_guard else None,
            sampling=Sampling.parse(limits, where="redteam"),
            threshold=config.threshold,
            white_box=None if is_address(parties.target) else WhiteBox.of(parties.target),
        )


async def _defended(stack: AsyncExitStack, parties: _Parties, model: "ChatModel") -> "ChatModel":
    """The target behind the guards that are asked for; itself without any."""
    from puna.safety.defended import Defended
    from puna.safety.guard import close_guard

    guard = await guard_of(parties.guards, parties.policy)
    if guard is None:
        return model
    stack.push_async_callback(close_guard, guard)
    return Defended(model, guard, ", ".join(parties.guards) or str(parties.policy))


async def _classifier(stack: AsyncExitStack, name: str) -> "Classifier":
    """The guard that judges answers; raises `UsageError` for one that judges prompts only."""
    from puna.safety.guard import close_guard

    guard = await guard_of([name], None)
    assert guard is not None
    stack.push_async_callback(close_guard, guard)
    if guard.classifier is None:
        raise UsageError(f"--judge-guard {name} judges prompts only: name one for hazards")
    return guard.classifier


def _goals(source: str) -> "list[Goal]":
    from puna.safety.redteam.goals import borrowed, read_goals

    path = Path(source)
    return read_goals(path) if path.suffix in (".yaml", ".yml") else borrowed(source)


def _short(model: str) -> str:
    """A name for a folder."""
    kept = [c if c.isalnum() or c in "-._" else "-" for c in model.rstrip("/").split("/")[-1]]
    return "".join(kept).strip("-.") or "model"
