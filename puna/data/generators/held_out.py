"""The questions a tuned model is judged by: none of their problems occurs in training."""

from collections.abc import Iterable, Mapping, Sequence

from puna.core.random import stream
from puna.data.generators.kinds import WEIGHTS, Mixture
from puna.data.generators.problems import Question, draw_problem
from puna.data.geography import Country

_TRIES = 20  # draws per question, before a small kind counts as exhausted


def evaluation_questions(
    seed: int,
    n_per_kind: int,
    countries: Sequence[Country],
    weights: Mapping[str, float] = WEIGHTS,
) -> list[Question]:
    """Up to ``n_per_kind`` questions with different prompts of each kind, on held-out problems.

    ``seed`` is that of the split. A small kind (one country in five is held out) may give fewer.
    """
    questions: list[Question] = []
    for kind, draw in Mixture(weights, countries).draws.items():
        rng = stream(seed, "evaluation", kind)
        found: dict[str, Question] = {}
        for _ in range(_TRIES * n_per_kind):
            if len(found) == n_per_kind:
                break
            question = draw_problem(draw, rng, seed=seed, held_out=True).question(rng)
            found.setdefault(question.prompt, question)
        questions += found.values()
    return questions


def evaluation_strings(questions: Iterable[Question]) -> list[str]:
    """What no training text may hold: each question with its answer, curt and in full.

    The full answer alone is not among them: pretraining states the facts of every country.
    """
    return [
        f"{question.prompt} {answer}"
        for question in questions
        for answer in (question.answer, question.full_answer)
    ]
