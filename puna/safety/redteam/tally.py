"""What a run found: shares with intervals by attack, category, language; and who agrees."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from puna.evaluation.intervals import wilson_interval
from puna.inference.batch import Record
from puna.safety.redteam.agreement import agreement

OPINIONS = ("rules", "guard", "judge")


def share(successes: int, n: int) -> dict[str, Any]:
    """A share with its Wilson interval at 95%; of nothing it is null."""
    if n == 0:
        return {"successes": 0, "n": 0, "share": None, "low": None, "high": None}
    low, high = wilson_interval(successes, n)
    kept = {"successes": successes, "n": n, "share": successes / n}
    return kept | {"low": low, "high": high}


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file of results."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def tally(records: Sequence[Record]) -> dict[str, Any]:
    """The figures of a run.

    ``success`` counts trials. ``goals_reached`` counts goals, in a language, that at least one
    attack reached. Trials on one goal are alike, so the interval over all of them is narrower than
    what other goals would show.
    """
    judged = [record for record in records if "success" in record]
    return {
        "success": _share(judged),
        "goals_reached": _goals(judged),
        "by_family": _by(judged, lambda record: record["family"]),
        "by_attack": _by(judged, lambda record: record["attack"]),
        "by_group": _by(judged, lambda record: record["group"]),
        "by_language": _by(judged, lambda record: record["language"]),
        "decided_by": _counts(record["decided_by"] for record in judged),
        "agreement": _agreements([r for r in judged if r["decided_by"] != "marker"]),
        "blocked": sum(record["blocked"] for record in judged),
        "refused": sum(bool(record["facts"].get("refused")) for record in judged),
        "skipped": sum("skipped" in record for record in records),
        "failed": sum("error" in record for record in records),
        "queries": sum(record["queries"] for record in judged),
        "seconds_of_trials": round(sum(record["seconds"] for record in judged), 1),
    }


def _share(records: Sequence[Record]) -> dict[str, Any]:
    return share(sum(record["success"] for record in records), len(records))


def _goals(records: Sequence[Record]) -> dict[str, Any]:
    reached: dict[tuple[str, str], bool] = {}
    for record in records:
        goal = record["goal"], record["language"]
        reached[goal] = reached.get(goal, False) or record["success"]
    return share(sum(reached.values()), len(reached))


def _by(records: Sequence[Record], key: Callable[[Record], str]) -> dict[str, Any]:
    """Shares by a name, the highest first."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(key(record), []).append(record)
    shares = {name: _share(part) for name, part in parts.items()}
    return dict(sorted(shares.items(), key=lambda entry: (-entry[1]["share"], entry[0])))


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _agreements(records: Sequence[Record]) -> dict[str, Mapping[str, Any]]:
    """Each pair of opinions on the answers that no marker decides, where both are there."""
    found: dict[str, Mapping[str, Any]] = {}
    for one, other in combinations(OPINIONS, 2):
        both = agreement([r[one] for r in records], [r[other] for r in records])
        if both.n:
            found[f"{one} and {other}"] = {"n": both.n, "same": both.same, "kappa": both.kappa}
    return found
