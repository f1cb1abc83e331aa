"""Scorers that are ready: a reward model, and functions named ``module:function`` in a recipe.

A scoring function takes the text of an answer and the row of data its prompt is from, and returns a
number, the higher the better.
"""

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from puna.alignment.pairs import AnswerTokens, Comparison
from puna.alignment.reward import RewardModel, score_comparisons
from puna.alignment.rollouts import Answer, Scorer
from puna.core.errors import ExtraMissing, UsageError

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def by_reward_model(model: RewardModel) -> Scorer:
    """Scores answers by a reward model with the policy's tokenizer, at their last token."""

    def score(answers: Sequence[Answer]) -> list[float]:
        rows = [
            Comparison(a.task.prompt, (AnswerTokens(a.ids, [True] * len(a.ids)),)) for a in answers
        ]
        return [found[0] for found in score_comparisons(model, rows)]

    return score


def last_number(text: str, record: Mapping[str, Any]) -> float:
    """1 where the last number of the text equals the one in the row's ``answer``, else 0."""
    wanted = _NUMBER.findall(str(record.get("answer", "")))
    if not wanted:
        raise UsageError('last_number needs a row with a number in "answer"')
    found = _NUMBER.findall(text)
    return float(bool(found) and _value(found[-1]) == _value(wanted[-1]))


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def reasoning_gym(text: str, record: Mapping[str, Any]) -> float:
    """reasoning-gym's own score, 0 to 1, for a row that `reasoning_gym_rows` made.

    The answer is what stands between ``<answer>`` and ``</answer>``, else the whole text.

    Raises `ExtraMissing` where the package is not installed.
    """
    tagged = _TAGGED.findall(text)
    answer = (tagged[-1] if tagged else text).strip()
    task = record.get("metadata", {}).get("source_dataset")
    if task is None:
        raise UsageError('reasoning_gym needs a row with "metadata" naming its "source_dataset"')
    return float(_gym().get_score_answer_fn(task)(answer=answer, entry=dict(record)))


def reasoning_gym_rows(task: str, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """``n`` rows of one of reasoning-gym's tasks (``"basic_arithmetic"``): question, answer and
    what its scorer needs, with ``messages`` for the model.

    Raises `UsageError` for an unknown task, `ExtraMissing` where the package is not installed.
    """
    gym = _gym()
    try:
        made = gym.create_dataset(task, size=n, seed=seed)
    except ValueError as error:
        raise UsageError(f"reasoning-gym: {error}") from error
    for entry in made:
        yield {**entry, "messages": [{"role": "user", "content": entry["question"]}]}


def _gym() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise ExtraMissing("reasoning-gym", "a task of reasoning-gym") from error
