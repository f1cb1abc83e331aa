"""The guard: conversations are judged for hazards, prompt injections, secrets and personal data.

`open_guard` makes a `puna.safety.Safeguard` of heads trained here, of Llama Guard models, and of a
`Policy`.
"""

from puna.safety.guard.hazards import HAZARDS, Hazard
from puna.safety.guard.judgement import Classifier, Judgement
from puna.safety.guard.load import close_guard, open_guard
from puna.safety.guard.policy import Policy
from puna.safety.guard.safeguard import Guard

__all__ = [
    "HAZARDS",
    "Classifier",
    "Guard",
    "Hazard",
    "Judgement",
    "Policy",
    "close_guard",
    "open_guard",
]
