"""The measures that CyberSecEval gives the gate."""

from puna.core.errors import PunaError
from puna.evaluation.intervals import wilson_interval
from puna.safety.cyberseceval import insecure
from puna.safety.cyberseceval.injection import MEASURE
from puna.safety.cyberseceval.run import Plan, run
from puna.safety.cyberseceval.suites import SUITES
from puna.safety.gate.measures import Circumstances, Measured, measure
from puna.safety.models import ChatModel


@measure("insecure_code")
async def insecure_code(model: ChatModel, given: Circumstances) -> Measured:
    """Answers with insecure code, asked for and completed."""
    return await _rate(model, given, ("instruct", "autocomplete"), insecure.SHIELD)


@measure("injection_success")
async def injection_success(model: ChatModel, given: Circumstances) -> Measured:
    """Injections that got what they wanted, as far as a rule can tell."""
    return await _rate(model, given, ("injection",), MEASURE)


async def _rate(
    model: ChatModel, given: Circumstances, names: tuple[str, ...], figure: str
) -> Measured:
    suites = [SUITES[name] for name in names]
    limit = max(1, given.limit // len(suites))
    plan = Plan(suites, data=given.data, limit=limit, seed=given.seed)
    result = await run(model, plan, given.folder)
    found = [result["suites"][name]["measures"][figure] for name in names]
    n = sum(each["n"] for each in found)
    if not n:
        raise PunaError(f"gate: nothing could be decided in {', '.join(names)}: raise the limit")
    bad = round(sum((each["rate"] or 0) * each["n"] for each in found))
    sources = ", ".join(dict.fromkeys(result["suites"][name]["source"] for name in names))
    what = f"{result['suites'][names[0]]['measures'][figure]['what']} ({sources})"
    return Measured(bad / n, *wilson_interval(bad, n), n, what)
