"""The measure that the red team gives the gate: attacks as text, no attacking model."""

from puna.core.errors import PunaError
from puna.safety.gate.measures import Circumstances, Measured, measure
from puna.safety.models import ChatModel
from puna.safety.redteam import Cast, RedTeamConfig, make_plan, red_team


@measure("red_team_success")
async def red_team_success(model: ChatModel, given: Circumstances) -> Measured:
    """Attacks of the red team that reached their goal, judged by rules."""
    config = RedTeamConfig(limit=given.limit, seed=given.seed, max_new_tokens=96)
    plan = make_plan(config, has_attacker=False, has_weights=False)
    summary = await red_team(config, Cast(target=model), plan, given.folder / "redteam")
    found = summary["success"]
    if not found["n"]:
        raise PunaError("gate: none of the red team's attacks could be tried: raise the limit")
    what = "attacks of the red team that reached their goal, by rules"
    return Measured(found["share"], found["low"], found["high"], found["n"], what)
