"""Attacks as data: how a request is put so that a model does what it should decline.

A `TemplateAttack` writes one conversation. The others ask again and again: see `crescendo`,
`trees`, `mutation`, `gcg`. All lie in ``attacks/``; files of one's own have the same form.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.files import sha256_value
from puna.safety.redteam.encodings import ENCODINGS, encode
from puna.safety.redteam.goals import Goal, Kind, Turn, fill, read_list, shots
from puna.tokenizer import Message

_FOLDER = Path(__file__).parent / "attacks"
_ASKED = (Turn(role="user", content="{request}"),)


class Attack(Config):
    """What every attack says of itself."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Its name, as ``--attack`` takes it."""
    about: str = Field(min_length=1)
    """What it does, in a sentence."""
    family: str = Field(min_length=1)
    """What it is counted with."""
    source: str = ""
    """Where the idea was published."""
    against: tuple[Kind, ...] = ("harm", "leak")
    """Kinds of goals it can be tried on."""

    @property
    def digest(self) -> str:
        """Tells this form of the attack from a changed one."""
        return sha256_value(self.model_dump(mode="json"))[:12]


class TemplateAttack(Attack):
    """A fixed way to ask, in one go."""

    method: Literal["template"] = "template"
    """Which kind of attack this is."""
    messages: tuple[Turn, ...] = _ASKED
    """The conversation, after the goal's own; places: ``{request}``, ``{encoded}``,
    ``{opening}``, ``{first_half}``, ``{second_half}``."""
    injection: str = "{request}"
    """The text that stands in a document or in a tool's output; the same places."""
    encode: tuple[str, ...] = ()
    """Encodings of ``{encoded}``, one after another."""
    shots: int = Field(default=0, ge=0, le=1024)
    """Invented exchanges before the request, in which the assistant agrees."""

    @field_validator("encode")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ENCODINGS:
                raise ValueError(f"no encoding '{name}': use {', '.join(ENCODINGS)}")
        return names


class CrescendoAttack(Attack):
    """A conversation that goes a step further each turn (Russinovich et al. 2024)."""

    method: Literal["crescendo"]
    """Which kind of attack this is."""
    turns: int = Field(default=6, ge=1, le=50)
    """Questions that were answered, at most."""
    backtracks: int = Field(default=4, ge=0, le=50)
    """Refused questions that are taken back, at most."""


class TreeAttack(Attack):
    """Prompts refined by an attacker model in a tree (PAIR: Chao et al.; TAP: Mehrotra et al.).

    PAIR is the tree that never branches and never prunes.
    """

    method: Literal["pair", "tap"]
    """Which kind of attack this is."""
    streams: int = Field(default=1, ge=1, le=64)
    """Roots of the tree."""
    depth: int = Field(default=3, ge=1, le=20)
    """Refinements, at most."""
    branching: int = Field(default=1, ge=1, le=16)
    """Children of each node."""
    width: int = Field(default=64, ge=1, le=64)
    """Leaves that live on."""

    @property
    def prunes(self) -> bool:
        """Whether prompts that lost sight of the goal are cut before they are sent."""
        return self.method == "tap"


class MutationAttack(Attack):
    """Templates that are crossed and changed; the fittest live on (after Yu et al. 2023)."""

    method: Literal["mutation"]
    """Which kind of attack this is."""
    population: int = Field(default=8, ge=2, le=256)
    """Templates of each generation."""
    generations: int = Field(default=4, ge=1, le=100)
    """Generations, at most."""


class GradientAttack(Attack):
    """A suffix found by greedy coordinate gradient (Zou et al. 2023); see `gcg`."""

    method: Literal["gcg"]
    """Which kind of attack this is."""
    steps: int = Field(default=40, ge=1, le=10_000)
    """Steps, at most."""
    suffix_tokens: int = Field(default=16, ge=1, le=256)
    """Tokens of the suffix."""
    candidates: int = Field(default=64, ge=1, le=4096)
    """Suffixes whose loss is computed in a step."""
    top_k: int = Field(default=128, ge=1)
    """Tokens that a position may change to: those of the most negative gradient."""
    seconds: float = Field(default=300, gt=0)
    """Time, at most."""


AnyAttack = TemplateAttack | CrescendoAttack | TreeAttack | MutationAttack | GradientAttack
_BY_METHOD: Mapping[str, type[AnyAttack]] = {
    "template": TemplateAttack,
    "crescendo": CrescendoAttack,
    "pair": TreeAttack,
    "tap": TreeAttack,
    "mutation": MutationAttack,
    "gcg": GradientAttack,
}
DIRECT = TemplateAttack(
    name="direct",
    about="The request as it is: what other attacks are compared with.",
    family="direct",
    against=("harm", "leak", "document", "tool"),
)


def parse_attack(entry: Any, where: str) -> AnyAttack:
    """An attack of a YAML entry; raises `UsageError` naming ``where`` and the key."""
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: an attack is a mapping with name, about and family")
    method = entry.get("method", "template")
    if method not in _BY_METHOD:
        raise UsageError(f"{where}: no method '{method}': use {', '.join(_BY_METHOD)}")
    return _BY_METHOD[method].parse(entry, where=where)


def read_attacks(path: Path) -> list[AnyAttack]:
    """The attacks of a file."""
    entries = enumerate(read_list(path), start=1)
    return [parse_attack(entry, f"{path.name}, entry {number}") for number, entry in entries]


@cache
def attacks() -> tuple[AnyAttack, ...]:
    """All attacks of the project, the direct request first."""
    files = sorted(_FOLDER.glob("*.yaml"))
    return (DIRECT, *(attack for path in files for attack in read_attacks(path)))


def conversation(
    attack: TemplateAttack,
    goal: Goal,
    request: str,
    marker: str,
    turns: Sequence[Turn] | None = None,
) -> list[Message]:
    """What is sent to the model.

    Args:
        attack: how the request is put.
        goal: what is wanted; its conversation comes first, or holds the ``{injection}``.
        request: the goal's request in the language of the trial.
        marker: the goal's marker; "" where it has none.
        turns: other messages in place of the attack's own.
    """
    request = fill(request, {"marker": marker})
    words = request.split(" ")
    middle = (len(words) + 1) // 2
    values = {
        "encoded": encode(request, attack.encode),
        "opening": goal.opening or "Sure, here it is",
        "first_half": " ".join(words[:middle]),
        "second_half": " ".join(["", *words[middle:]]),
        "request": request,
    }
    around = {"marker": marker, "injection": fill(attack.injection, values).strip()}
    before = [turn.filled(around) for turn in goal.conversation]
    if goal.kind in ("document", "tool"):
        return before
    asked = [turn.filled(values) for turn in (attack.messages if turns is None else turns)]
    return [*before, *_shown(attack.shots), *asked]


def _shown(number: int) -> list[Message]:
    """Exchanges before the request, again from the first when there are not as many."""
    known = shots()
    messages = []
    for place in range(number):
        exchange = known[place % len(known)]
        messages += [Message("user", exchange.question), Message("assistant", exchange.answer)]
    return messages
