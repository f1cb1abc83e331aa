"""What is done about each hazard, in a YAML file.

::

    default: block            # of hazards that are not named
    hazards:
      S6: warn                # both directions
      S8: {input: allow, output: warn}
    custom:
      - code: S15
        name: Betting Tips
        description: Tells people on which horse, team or number to bet.
        action: warn
    injection: {input: block, threshold: 0.8}
    secrets: block            # keys and passwords
    personal: {input: allow, output: redact}

A wrong key or code is an error that names the nearest right one.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from puna.core.config import Config, load_yaml
from puna.safety.guard.hazards import CODES, HAZARDS, Hazard
from puna.safety.guard.sensitive import Group, Removal
from puna.safety.safeguard import Decision

Direction = Literal["input", "output"]


def _both(value: Any) -> Any:
    """``warn`` is short for ``{input: warn, output: warn}``."""
    return {"input": value, "output": value} if isinstance(value, str) else value


class RuleFields(Config):
    """What is done, by direction."""

    input: Decision = "block"
    """With a prompt."""
    output: Decision = "block"
    """With an answer."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """The guard's score from which it is done; None is the guard's own threshold."""

    def on(self, direction: Direction) -> Decision:
        """What is done in this direction."""
        return self.input if direction == "input" else self.output


Rule = Annotated[RuleFields, BeforeValidator(_both)]


class RemovalFields(Config):
    """What is done with a kind of text that can be taken out, by direction."""

    input: Removal = "allow"
    """With a prompt."""
    output: Removal = "allow"
    """With an answer."""

    def on(self, direction: Direction) -> Removal:
        """What is done in this direction."""
        return self.input if direction == "input" else self.output


RemovalRule = Annotated[RemovalFields, BeforeValidator(_both)]


class CustomHazard(Config):
    """A hazard of one's own, which a Llama Guard model is told of in its prompt."""

    code: str = Field(pattern=r"^S[1-9]\d{0,2}$")
    """What the guard answers, from S15 on."""
    name: str = Field(min_length=1, max_length=100)
    """A few words."""
    description: str = Field(min_length=1, max_length=2000)
    """What it covers."""
    action: Rule = RuleFields()
    """What is done about it."""

    @field_validator("code")
    @classmethod
    def _free(cls, code: str) -> str:
        if code in CODES:
            raise ValueError(f"{code} is Llama Guard's own: take S15 or a higher number")
        return code


class Policy(Config):
    """A policy; the default blocks every hazard, and warns of nothing it was not asked for."""

    default: Rule = RuleFields()
    """What is done about hazards that are not named, and about a turn that is unsafe for a reason
    the guard does not give."""
    hazards: dict[str, Rule] = Field(default_factory=dict)
    """By code, S1 to S14."""
    custom: tuple[CustomHazard, ...] = ()
    """Hazards of one's own."""
    injection: Rule = RuleFields(output="allow")
    """Prompt injections and jailbreaks, where there is a detector."""
    secrets: RemovalRule = RemovalFields()
    """Keys, tokens and passwords."""
    personal: RemovalRule = RemovalFields()
    """Addresses, numbers and other traces of people."""
    kinds: dict[str, RemovalRule] = Field(default_factory=dict)
    """Exceptions for one kind of secret or trace, such as ``EMAIL``."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """The guard's score from which a turn is unsafe; None is the guard's own threshold."""
    on_error: Decision = "block"
    """What is done when the guard fails or is too late."""
    seconds: float = Field(default=30, gt=0, le=600)
    """Time for one judgement."""
    every_chars: int = Field(default=600, ge=1, le=100_000)
    """How much of a streamed answer is held until it is judged."""
    prompt: Literal["conversation", "frame"] = "conversation"
    """What a guard behind an address is sent: the conversation, to which its server applies Llama
    Guard's template, or the written prompt."""

    @field_validator("hazards")
    @classmethod
    def _known(cls, hazards: dict[str, RuleFields]) -> dict[str, RuleFields]:
        for code in hazards:
            if code not in CODES:
                names = {hazard.name.lower(): hazard.code for hazard in HAZARDS}
                near = difflib.get_close_matches(code.lower(), names, n=1)
                near = [names[near[0]]] if near else difflib.get_close_matches(code, CODES, n=1)
                raise ValueError(
                    f"unknown hazard '{code}': "
                    + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(CODES)}")
                )
        return hazards

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        codes = [hazard.code for hazard in self.custom]
        if len(set(codes)) < len(codes):
            raise ValueError("two hazards of one's own have the same code")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file; raises `UsageError` naming what is wrong in it."""
        return cls.parse(load_yaml(path), where=str(path))

    def all_hazards(self) -> tuple[Hazard, ...]:
        """Llama Guard's hazards and one's own."""
        own = tuple(Hazard(h.code, h.name, h.description) for h in self.custom)
        return HAZARDS + own

    def rule(self, code: str) -> RuleFields:
        """What is done about a hazard."""
        own = {hazard.code: hazard.action for hazard in self.custom}
        return own.get(code) or self.hazards.get(code, self.default)

    def removal(self, kind: str, group: Group) -> RemovalFields:
        """What is done about a kind of secret or trace."""
        return self.kinds.get(kind, self.secrets if group == "secrets" else self.personal)
