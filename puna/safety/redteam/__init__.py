"""Red team: attacks as data, tried on a model; what succeeds is kept as a test.

``goals`` are what attacks are after, ``attacks`` how they ask, ``plan`` which are tried,
``campaign`` tries them, ``verdicts`` judges, ``run`` writes the folder, ``findings`` replays.
"""

from puna.safety.redteam.arena import Cast, Trial
from puna.safety.redteam.attacks import AnyAttack, attacks, read_attacks
from puna.safety.redteam.findings import Finding, Replayed, read_findings, replay
from puna.safety.redteam.goals import Goal, goals
from puna.safety.redteam.plan import Plan, RedTeamConfig, make_plan
from puna.safety.redteam.run import red_team

__all__ = [
    "AnyAttack",
    "Cast",
    "Finding",
    "Goal",
    "Plan",
    "RedTeamConfig",
    "Replayed",
    "Trial",
    "attacks",
    "goals",
    "make_plan",
    "read_attacks",
    "read_findings",
    "red_team",
    "replay",
]
