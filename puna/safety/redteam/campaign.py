"""A run: trials side by side, each recorded when it is done, so that a kill loses none of them."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence

from puna.core.errors import PunaError
from puna.inference.batch import Line, Record
from puna.inference.results import Results
from puna.safety.models import DoesNotFit
from puna.safety.redteam import crescendo, gcg, mutation, trees
from puna.safety.redteam.arena import Arena, Cast, Outcome, Sent, Trial
from puna.safety.redteam.attacks import (
    CrescendoAttack,
    GradientAttack,
    MutationAttack,
    TemplateAttack,
    TreeAttack,
    conversation,
)

MOST_ERRORS = 8  # in a row: then the server is gone, and the rest is left for another run


def numbered(trials: Sequence[Trial]) -> dict[int, tuple[Line, Trial]]:
    """Trials by their numbers in the file of results, from 1."""
    lines = (
        Line(number, json.dumps(trial.spec(), sort_keys=True).encode())
        for number, trial in enumerate(trials, start=1)
    )
    return {line.number: (line, trial) for line, trial in zip(lines, trials, strict=True)}


async def run_trials(
    cast: Cast,
    trials: Sequence[Trial],
    results: Results,
    *,
    concurrency: int,
    done: Callable[[Record], None] = lambda _: None,
) -> None:
    """Carry out the trials that ``results`` does not hold yet.

    Args:
        cast: who takes part.
        trials: in their order.
        results: where records go, in the order in which they are done.
        concurrency: trials at the same time.
        done: called with each new record.

    Raises `PunaError` when `MOST_ERRORS` trials failed in a row.
    """
    plan = numbered(trials)
    missing = results.missing(line for line, _ in plan.values())
    in_a_row = 0

    async def work() -> None:
        nonlocal in_a_row
        for line in missing:  # shared: each worker takes the next
            record = await _record(cast, line, plan[line.number][1])
            results.append(record)
            done(record)
            in_a_row = in_a_row + 1 if "error" in record else 0
            if in_a_row >= MOST_ERRORS:
                raise PunaError(
                    f"{MOST_ERRORS} trials failed in a row, the last: {record['error']} "
                    "(the same command goes on from here)"
                )

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except* PunaError as errors:
        raise errors.exceptions[0] from None


async def _record(cast: Cast, line: Line, trial: Trial) -> Record:
    """What is kept of a trial: what came of it, why it was skipped, or its error."""
    aim = trial.aim
    head = {
        "line": line.number,
        "input": line.digest,
        **trial.spec(),
        "family": trial.attack.family,
        "kind": aim.kind,
        "group": aim.group,
        "request": aim.request,
        "marker": aim.marker,
        "opening": aim.opening,
    }
    arena = Arena(cast, trial)
    started = time.perf_counter()
    try:
        outcome = await attempt(arena)
    except DoesNotFit as error:
        return head | {"skipped": str(error)}
    except PunaError as error:
        return head | {"error": str(error)}
    seconds = round(time.perf_counter() - started, 3)
    return head | {"queries": arena.queries, "seconds": seconds} | outcome_fields(outcome)


async def attempt(arena: Arena) -> Outcome:
    """Carry out the trial's attack."""
    match arena.trial.attack:
        case TemplateAttack() as attack:
            aim, goal = arena.aim, arena.trial.goal
            messages = conversation(attack, goal, aim.request, aim.marker)
            return await arena.attempt([Sent(message) for message in messages])
        case CrescendoAttack() as attack:
            return await crescendo.run(attack, arena)
        case TreeAttack() as attack:
            return await trees.run(attack, arena)
        case MutationAttack() as attack:
            return await mutation.run(attack, arena)
        case GradientAttack() as attack:
            return await gcg.run(attack, arena)


def outcome_fields(outcome: Outcome) -> Record:
    """An outcome as JSON."""
    verdicts = outcome.verdicts
    return {
        "success": verdicts.success,
        "decided_by": verdicts.decided_by,
        "rules": verdicts.rules,
        "guard": verdicts.guard,
        "judge": verdicts.judge,
        "facts": verdicts.facts,
        "blocked": outcome.reply.blocked,
        "seed": outcome.seed,
        "messages": [_message(entry) for entry in outcome.sent],
        "answer": outcome.reply.text,
    }


def _message(entry: Sent) -> Record:
    message = entry.message
    fields: Record = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["calls"] = [
            {"name": call.name, "arguments": call.arguments} for call in message.tool_calls
        ]
    return fields | ({"said": True, "seed": entry.seed} if entry.said else {})
