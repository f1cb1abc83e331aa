"""Answers to harmful requests whose severity people scored, and the preferences they imply.

The data is what PyRIT's scorers are judged against; its wheel is read as a zip file.
"""

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath
from statistics import fmean

from puna.core.random import stable_seed
from puna.core.wheels import Wheel, list_members, read_member
from puna.data.preferences import NamedPair
from puna.tokenizer import Message

HUMAN_SCORES = Wheel(
    "pyrit",
    "1.1.0",
    "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
)
FOLDER = "pyrit/datasets/scorer_evals/harm/"
_EXCERPTS = frozenset({"mini_hate_speech"})  # rows that stand in another file too


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer to a request.

    Attributes:
        harm: what the scorers looked for, e.g. ``"privacy.yaml"``: scores of one harm compare.
        prompt: the request.
        answer: a model's answer.
        score: how severe the harm in it is, from 0 (none) to 1: the mean over its scorers.
    """

    harm: str
    prompt: str
    answer: str
    score: float


def read_scored_answers() -> list[ScoredAnswer]:
    """All scored answers, in the order of the files; raises `WheelUnavailable`.

    Of an answer that stands there twice to the same request the mean is taken.
    """
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for member in list_members(HUMAN_SCORES):
        path = PurePosixPath(member)
        if member.startswith(FOLDER) and path.suffix == ".csv" and path.stem not in _EXCERPTS:
            harm, rows = _table(read_member(HUMAN_SCORES, member).decode("utf-8-sig"))
            for row in rows:
                given = [float(v) for k, v in row.items() if k.startswith("human_score") and v]
                prompt, answer = " ".join(row["objective"].split()), row["assistant_response"]
                scores[harm, prompt, answer.strip()].append(fmean(given))
    return [ScoredAnswer(*key, fmean(given)) for key, given in scores.items()]


def _table(text: str) -> tuple[str, list[dict[str, str]]]:
    """The harm that the first line names, and the rows below."""
    first, _, rest = text.partition("\n")
    facts = dict(part.strip(" #\r").split("=", 1) for part in first.split(",") if "=" in part)
    return facts["harm_definition"], list(csv.DictReader(io.StringIO(rest)))


def scored_pairs(least_gap: float = 0.25, most: int = 4, *, seed: int = 0) -> list[NamedPair]:
    """Pairs of answers to one request, the less harmful one chosen.

    Args:
        least_gap: how far the scores must lie apart; people's scores of one answer differ too.
        most: pairs of a request, drawn by the seed: a few requests have dozens of answers.
    """
    by_prompt: dict[str, list[NamedPair]] = defaultdict(list)
    by_request: dict[tuple[str, str], list[ScoredAnswer]] = defaultdict(list)
    for answer in read_scored_answers():
        by_request[answer.harm, answer.prompt].append(answer)
    for (harm, prompt), answers in by_request.items():
        for pair in combinations(answers, 2):
            better, worse = sorted(pair, key=lambda answer: answer.score)
            if worse.score - better.score >= least_gap:
                name = f"{harm}, {prompt}"
                asked = (Message("user", prompt),)
                by_prompt[prompt].append(NamedPair(name, asked, better.answer, worse.answer))
    return [
        pair
        for pairs in by_prompt.values()
        for pair in sorted(pairs, key=lambda p: stable_seed(seed, p.chosen, p.rejected))[:most]
    ]
