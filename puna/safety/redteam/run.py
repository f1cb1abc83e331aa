"""From settings to a folder: results, findings, summary and report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from puna import __version__
from puna.core.files import write_json
from puna.inference.batch import Record
from puna.inference.results import Results
from puna.safety.redteam.arena import Cast
from puna.safety.redteam.campaign import run_trials
from puna.safety.redteam.findings import finding_of, write_findings
from puna.safety.redteam.plan import Plan, RedTeamConfig
from puna.safety.redteam.report import write_report
from puna.safety.redteam.tally import read_records, tally

RESULTS, SUMMARY = "results.jsonl", "summary.json"


async def red_team(
    config: RedTeamConfig,
    cast: Cast,
    plan: Plan,
    folder: Path,
    *,
    concurrency: int = 16,
    started: Callable[[int, int], None] = lambda _done, _all: None,
    done: Callable[[Record], None] = lambda _: None,
) -> dict[str, Any]:
    """Attack the model and write ``folder``; the same call goes on where an earlier one stopped.

    Args:
        config: what was asked for; it and the cast are what the results depend on.
        cast: who takes part.
        plan: the trials, see `make_plan`.
        folder: gets ``results.jsonl`` line by line, then ``findings.jsonl``, ``summary.json`` and
            ``report.html``.
        concurrency: trials at the same time.
        started: told how many trials are done already, and how many there are.
        done: called with each new record.

    Returns the summary. Raises `UsageError` for a folder begun with other settings, `PunaError`
    when the model cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with Results(folder / RESULTS, _settings(config, cast)) as results:
        started(results.n_done, len(plan.trials))
        await run_trials(cast, plan.trials, results, concurrency=concurrency, done=done)
    found = sorted(read_records(folder / RESULTS), key=lambda record: record["line"])
    records = [record for record in found if record["line"] <= len(plan.trials)]
    findings = [finding_of(record, cast) for record in records if record.get("success")]
    write_findings(folder, findings)
    summary = {
        "puna": __version__,
        "model": cast.target.name,
        "digest": cast.target.digest,
        "attacker": _name(cast.attacker),
        "judge": _name(cast.judge),
        "guard": _name(cast.guard),
        "settings": config.model_dump(mode="json"),
        **tally(records),
        "left_out": plan.left_out,
        "findings": len(findings),
        "seconds": round(time.monotonic() - begun, 1),
    }
    write_json(folder / SUMMARY, summary)
    write_report(folder, summary, findings)
    return summary


def _settings(config: RedTeamConfig, cast: Cast) -> dict[str, Any]:
    """What results depend on, but for the trials: each is known by a hash of its own."""
    return {
        "model": cast.target.digest,
        "attacker": cast.attacker and cast.attacker.digest,
        "judge": cast.judge and cast.judge.digest,
        "guard": _name(cast.guard),
        **config.model_dump(mode="json", exclude={"limit"}),
    }


def _name(somebody: Any) -> str | None:
    return None if somebody is None else str(somebody.name)
