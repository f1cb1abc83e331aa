"""Commands on recipes and runs: run, validate, ls, cat, cp, report."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from puna.core.errors import UsageError

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
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe; started again after an interruption, it goes on where it was."""
    from puna.workflow.recipe import find_recipe, load_recipe

    carry_out(load_recipe(find_recipe(recipe), overrides or []), runs, as_json)


def carry_out(recipe: Any, runs: Path, as_json: bool) -> None:
    """Run a recipe with progress on the terminal, and show what came out."""
    from rich.console import Console

    from puna.parallel import here
    from puna.workflow.run import run_recipe
    from puna.workflow.show import show_result

    console = Console(stderr=as_json, quiet=not here().is_first)
    summary = run_recipe(recipe, runs, console)
    if not here().is_first:
        return
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        show_result(console, runs / recipe.name, summary)


def validate(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe without running it."""
    from puna.workflow.recipe import find_recipe, load_recipe

    path = find_recipe(recipe)
    found = load_recipe(path, overrides or [])
    stages = [name for name, stage in found.stages if stage is not None]
    print(f"{path}: valid; stages: {', '.join(stages)}")


def ls() -> None:
    """List the shipped recipes."""
    from puna.workflow.recipe import shipped_recipes

    for path in shipped_recipes():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"{path.stem:24} {first.removeprefix('#').strip()}")


def cat(recipe: RecipeName) -> None:
    """Print a recipe."""
    from puna.workflow.recipe import find_recipe

    print(find_recipe(recipe).read_text(encoding="utf-8"), end="")


def cp(recipe: RecipeName, target: Path) -> None:
    """Copy a shipped recipe to a file of your own."""
    from puna.workflow.recipe import find_recipe

    source = find_recipe(recipe)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise UsageError(f"{target} exists already: choose another name")
    if not target.parent.is_dir():
        raise UsageError(f"no such folder: {target.parent}")
    shutil.copyfile(source, target)
    print(f"{target}: edit it, then: puna run {target}")


def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write the report of a finished run anew and print its path."""
    from puna.workflow.report import write_report
    from puna.workflow.summary import read_summary

    print(write_report(run_folder, read_summary(run_folder)))
