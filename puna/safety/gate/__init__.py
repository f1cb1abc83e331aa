"""The gate: measures of a model's safety, thresholds, and a verdict beside the weights.

A model whose verdict is bad, missing its weights or broken is not served without a reason that is
written down.
"""

from puna.safety.gate.measures import Circumstances, Measured, measure, measure_of, names
from puna.safety.gate.verdict import (
    GATE,
    Check,
    Verdict,
    admit,
    leave,
    read_verdict,
    weights_digest,
)

__all__ = [
    "GATE",
    "Check",
    "Circumstances",
    "Measured",
    "Verdict",
    "admit",
    "leave",
    "measure",
    "measure_of",
    "names",
    "read_verdict",
    "weights_digest",
]
