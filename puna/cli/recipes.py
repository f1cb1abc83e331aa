"""Commands on recipes and runs: run, validate, ls, cat, cp, report."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from puna.core.errors import PunaError, UsageError
from puna.core.files import write_text

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file or a shipped name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="E.g. stages.pretrain.loop.steps=200"),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (run, validate, ls, cat, cp, report):
        app.command()(command)


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    scale: Annotated[
        Literal["full", "tiny"],
        typer.Option(help="tiny: a fresh small model of its kind, 2 steps a stage, made-up data."),
    ] = "full",
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe; started again after an interruption, it goes on where it was."""
    from puna.workflow.shipped import find_recipe
    from puna.workflow.shrink import shrunken

    found = find_recipe(recipe).load(overrides or [])
    carry_out(shrunken(found, runs) if scale == "tiny" else found, runs, as_json)


def carry_out(recipe: Any, runs: Path, as_json: bool) -> None:
    """Run a recipe with progress on the terminal, and show what came out."""
    from rich.console import Console

    from puna.parallel import here
    from puna.workflow.run import run_recipe
    from puna.workflow.show import show_result
    from puna.workflow.stages.gate import refusal

    console = Console(stderr=as_json, quiet=not here().is_first)
    summary = run_recipe(recipe, runs, console)
    if not here().is_first:
        return
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        show_result(console, runs / recipe.name, summary)
    if line := refusal(summary):
        raise PunaError(line)


def validate(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe without running it."""
    from puna.workflow.shipped import find_recipe

    text = find_recipe(recipe)
    stages = [name for name, stage in text.load(overrides or []).stages if stage is not None]
    print(f"{text.where}: valid; stages: {', '.join(stages)}")


def ls() -> None:
    """List the shipped recipes."""
    from puna.workflow.shipped import shipped_recipes

    about = ""
    for recipe in shipped_recipes():
        if recipe.needs and recipe.about != about:
            about = recipe.about
            print(f"\n# {about}")
        print(f"{recipe.name:24} {recipe.needs or recipe.about}")


def cat(recipe: RecipeName) -> None:
    """Print a recipe."""
    from puna.workflow.shipped import find_recipe

    print(find_recipe(recipe).text, end="")


def cp(recipe: RecipeName, target: Path) -> None:
    """Copy a shipped recipe to a file of your own."""
    from puna.workflow.shipped import find_recipe

    source = find_recipe(recipe)
    if target.is_dir():
        target = target / f"{source.name}.yaml"
    if target.exists():
        raise UsageError(f"{target} exists already: choose another name")
    if not target.parent.is_dir():
        raise UsageError(f"no such folder: {target.parent}")
    write_text(target, source.text)
    print(f"{target}: edit it, then: puna run {target}")


def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write the report of a finished run anew and print its path."""
    from puna.workflow.report import write_report
    from puna.workflow.summary import read_summary

    print(write_report(run_folder, read_summary(run_folder)))
