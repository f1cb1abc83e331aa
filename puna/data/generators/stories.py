"""Tiny stories without numbers, from plots whose parts vary."""

from numpy.random import Generator

from puna.data.generators.problems import capitalized, pick, pick_two
from puna.data.generators.words import ANIMALS, DAYS, NAMES, PLACES, TREASURES, WEATHER

_OPENINGS = (
    "On {day}, {weather}. {hero} went to {place}.",
    "It was {day} and {weather}. {hero} walked to {place} with {friend}.",
    "Once there was a child called {hero}, who lived near {place}. One {day}, {weather}.",
    "{hero} woke up early on {day}. Outside {weather}, so {hero} ran to {place}.",
    "Every {day}, {hero} and {friend} met at {place}. This time {weather}.",
)
# Each plot is told in three steps; every step has several wordings.
_PLOTS = (
    (
        ("There {hero} lost a {treasure}.", "A {treasure} fell out of the bag of {hero}."),
        (
            "{friend} helped to look for it everywhere.",
            "A {animal} was sitting on it, and nobody saw.",
            "{friend} asked everybody, but nobody had seen the {treasure}.",
        ),
        (
            "At last they found it under a bench, and {hero} laughed.",
            "In the end a {animal} brought the {treasure} back, and {hero} thanked it.",
        ),
    ),
    (
        ("A small {animal} was crying there.", "There {hero} heard a {animal} call for help."),
        (
            '"What is wrong?" asked {hero}. "I cannot find my way home," said the {animal}.',
            "The {animal} was hungry, so {hero} shared some bread with it.",
        ),
        (
            "{friend} knew the way, and before dark the {animal} was home.",
            "From that day on, {hero} and the {animal} were friends.",
        ),
    ),
    (
        ("{hero} wanted to build a boat.", "{hero} had a plan: to make a house for the {animal}."),
        (
            "The first try broke, and {hero} was sad. {friend} said that one must try again.",
            "It was hard work, but {friend} brought wood, rope and a {treasure}.",
        ),
        (
            "When it was done, everybody from {goal} came to look.",
            "It was not perfect, but it was theirs, and they were proud.",
        ),
    ),
    (
        (
            "{friend} had a {treasure}, and {hero} wanted it.",
            "{hero} saw the {treasure} of {friend}.",
        ),
        (
            'They quarrelled until a {animal} said: "You can share it."',
            "{hero} offered a drawing of a {animal} for it.",
        ),
        (
            "So they played together and took turns until evening.",
            "{friend} smiled and gave it away, because friends matter more than things.",
        ),
    ),
    (
        ("A letter lay on the ground. It said: go to {goal}.", "They heard music from {goal}."),
        (
            "The way was long, but a friendly {animal} went with them.",
            "{hero} was a little afraid, and {friend} took {hero} by the hand.",
        ),
        (
            "There all their friends were waiting with cake. It was a surprise for {hero}!",
            "At {goal} an old woman gave them a {treasure} for being brave.",
        ),
    ),
)
_ENDINGS = (
    "That night {hero} slept well.",
    "What a day it had been!",
    "{hero} never forgot that {day}.",
    "Then they went home for supper.",
    "And so it ended well for {hero}, for {friend} and for the {animal}.",
)


def story(rng: Generator) -> str:
    """A story of some 150 to 400 characters."""
    hero, friend = pick_two(rng, NAMES)
    place, goal = pick_two(rng, PLACES)
    fields = {
        "hero": hero,
        "friend": friend,
        "place": place,
        "goal": goal,
        "animal": pick(rng, ANIMALS),
        "day": pick(rng, DAYS),
        "weather": pick(rng, WEATHER),
        "treasure": pick(rng, TREASURES),
    }
    parts = (_OPENINGS, *pick(rng, _PLOTS), _ENDINGS)
    return " ".join(capitalized(pick(rng, part).format(**fields)) for part in parts)
