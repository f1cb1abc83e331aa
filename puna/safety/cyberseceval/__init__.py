"""CyberSecEval: how often a model writes insecure code, helps attackers, gives in, says no wrongly.

Suites after CyberSecEval 1 to 3 (Bhatt et al. 2023 and 2024, Wan et al. 2024), with the published
data where they are given and sets of the project's own where not.
"""

from puna.safety.cyberseceval.run import Plan, run
from puna.safety.cyberseceval.suites import SUITES, Suite, Tools, chosen

__all__ = ["SUITES", "Plan", "Suite", "Tools", "chosen", "run"]
