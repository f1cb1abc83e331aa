"""Generated text for pretraining, as documents of some 100 to 400 characters."""

from collections.abc import Iterator, Mapping, Sequence

from numpy.random import Generator
from pydantic import Field

from puna.core.config import Config
from puna.core.random import stream
from puna.data.document import Document
from puna.data.generators.geography import geography_paragraph
from puna.data.generators.kinds import WEIGHTS, Mixture
from puna.data.generators.problems import below, chance, draw_problem
from puna.data.generators.stories import story
from puna.data.geography import Country


class GeneratedText(Config):
    """How many documents of each sort to write."""

    exercises: int = Field(default=12_000, ge=0)
    """Solved problems, of those that are trained only."""
    geography: int = Field(default=4_000, ge=0)
    """Paragraphs on countries, as many on each."""
    stories: int = Field(default=3_000, ge=0)
    """Tiny stories."""


def generate_documents(
    seed: int,
    config: GeneratedText,
    countries: Sequence[Country],
    weights: Mapping[str, float] = WEIGHTS,
) -> Iterator[Document]:
    """Documents from the sources ``generated-exercises``, ``-geography`` and ``-stories``.

    Exercises that are all of one kind are of that kind's own source, as ``generated-addition``.
    No held-out exercise occurs in them; the facts of held-out countries do, as statements in
    paragraphs. ``seed`` is that of the split; without countries there is no geography.
    """
    exercises = Mixture(weights, countries)
    rng = stream(seed, "generated-exercises")
    for number in range(config.exercises):
        source, text = _solved_problems(rng, seed, exercises)
        yield Document(text, f"generated-{source}", str(number))
    rng = stream(seed, "generated-geography")
    for number in range(config.geography if countries else 0):
        country = countries[number % len(countries)]
        text = geography_paragraph(rng, country, countries)
        yield Document(text, "generated-geography", str(number))
    rng = stream(seed, "generated-stories")
    for number in range(config.stories):
        yield Document(story(rng), "generated-stories", str(number))


def _solved_problems(rng: Generator, seed: int, exercises: Mixture) -> tuple[str, str]:
    """(the kind they all are of, or "exercises"; four to nine of them in lines).

    Each is stated, or each is asked and answered.
    """
    draw = exercises.pick(rng)
    mixed, asked = chance(rng, 0.5), chance(rng, 0.5)
    lines, kind = [], "exercises"
    for _ in range(4 + below(rng, 6)):
        chosen = exercises.pick(rng) if mixed else draw
        problem = draw_problem(chosen, rng, seed=seed, held_out=False)
        if not mixed:
            kind = problem.kind
        if asked:
            lines.append(f"{problem.question(rng).prompt} {problem.full_answer}")
        else:
            lines.append(problem.statement(rng))
    return kind, "\n".join(lines)
