"""The hazards a conversation is judged for: Llama Guard 3's fourteen, and those of one's own.

Codes and names are those of Llama Guard 3's prompt, which follow MLCommons' taxonomy of hazards
(AI Safety v0.5, arXiv 2404.12241).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hazard:
    """A kind of harm.

    Attributes:
        code: what a guard answers, e.g. ``"S1"``.
        name: what the prompt calls it, without the full stop.
        description: what it covers, for hazards that no model was trained on.
    """

    code: str
    name: str
    description: str = ""


HAZARDS = (
    Hazard("S1", "Violent Crimes"),
    Hazard("S2", "Non-Violent Crimes"),
    Hazard("S3", "Sex Crimes"),
    Hazard("S4", "Child Exploitation"),
    Hazard("S5", "Defamation"),
    Hazard("S6", "Specialized Advice"),
    Hazard("S7", "Privacy"),
    Hazard("S8", "Intellectual Property"),
    Hazard("S9", "Indiscriminate Weapons"),
    Hazard("S10", "Hate"),
    Hazard("S11", "Self-Harm"),
    Hazard("S12", "Sexual Content"),
    Hazard("S13", "Elections"),
    Hazard("S14", "Code Interpreter Abuse"),
)
"""Llama Guard 3's, in its order."""

CODES = tuple(hazard.code for hazard in HAZARDS)
INJECTION = "injection"
"""What the detector of prompt injections and jailbreaks answers in place of a hazard's code."""
