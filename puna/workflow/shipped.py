"""The recipes that come with Puna: files of ``recipes/``, some of which hold one for each size.

A file with ``variants`` is a method: what its recipes share, and a row for each model with what
differs, written as on the command line. ``llama3.1-8b`` of ``qlora.yaml`` is ``llama3.1-8b-qlora``.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from puna.core.config import apply_overrides, load_yaml, with_settings
from puna.core.errors import UsageError
from puna.workflow.recipe import Recipe

_PACKAGE = Path(__file__).parents[1]
FOLDER = next(  # within the package where that is installed, beside it in a checkout
    (folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if folder.is_dir()),
    _PACKAGE / "recipes",
)
_VARIANTS, _NEEDS = "variants", "needs"


@dataclass(frozen=True)
class RecipeText:
    """A recipe before it is validated."""

    name: str
    """What ``puna run`` calls it."""
    where: str
    """Its file, for messages."""
    about: str
    """What the first comment of its file says."""
    needs: str
    """Device and memory it is made for; empty where its file does not say."""
    values: dict[str, Any]
    """Its settings."""
    text: str
    """YAML, as a person reads it."""

    def load(self, overrides: Sequence[str]) -> Recipe:
        """The recipe with ``key=value`` settings applied; raises `UsageError`."""
        return Recipe.parse(apply_overrides(self.values, overrides), where=self.where)


def find_recipe(name: str) -> RecipeText:
    """A recipe file, or a shipped recipe by its name; raises `UsageError`."""
    path = Path(name)
    if path.exists():
        found = list(_recipes_of(path))
        if len(found) > 1:
            raise UsageError(f"{path} holds {len(found)} recipes: name one, e.g. {found[0].name}")
        return found[0]
    shipped = {recipe.name: recipe for recipe in shipped_recipes()}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=3) or [n for n in shipped if name in n]
    mend = f"did you mean {' or '.join(near)}?" if near else "puna ls lists those that ship"
    raise UsageError(f"no such recipe: {name}: name a YAML file or a shipped recipe; {mend}")


def shipped_recipes() -> list[RecipeText]:
    """All of them: whole lives, then methods, those of a file together."""
    files = [_recipes_of(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return [recipe for recipes in sorted(files, key=len) for recipe in recipes]


def _recipes_of(path: Path) -> list[RecipeText]:
    """The one recipe of a file, or one for each row of its ``variants``."""
    values = load_yaml(path)
    text = path.read_text(encoding="utf-8")
    first = text.partition("\n")[0]
    about = first.removeprefix("#").strip() if first.startswith("#") else ""
    rows: dict[str, dict[str, Any]] | None = values.pop(_VARIANTS, None)
    if rows is None:
        return [RecipeText(path.stem, str(path), about, "", values, text)]
    return [_variant(path, about, values, model, row) for model, row in rows.items()]


def _variant(
    path: Path, about: str, shared: dict[str, Any], model: str, row: dict[str, Any]
) -> RecipeText:
    name = f"{model}-{path.stem}"
    settings = {key: value for key, value in row.items() if key != _NEEDS}
    values = with_settings(shared, {"name": name, **settings})
    # Leaves in one line, as a person writes them.
    body = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
    text = f"# {about} Needs {row[_NEEDS]}.\n{body}"
    return RecipeText(name, f"recipe {name}", about, row[_NEEDS], values, text)
