"""Answers that people scored, and the pairs they make."""

from itertools import groupby

from puna.data.human_scores import read_scored_answers, scored_pairs


def test_every_answer_stands_once_for_its_request_with_a_score_from_0_to_1() -> None:
    answers = read_scored_answers()
    keys = {(answer.harm, answer.prompt, answer.answer) for answer in answers}
    assert len(keys) == len(answers)
    assert all(0 <= answer.score <= 1 and answer.answer for answer in answers)
    assert {answer.harm for answer in answers} >= {"privacy.yaml", "violence.yaml"}


def test_the_chosen_answer_is_the_less_harmful_by_the_gap_asked_for() -> None:
    scores: dict[tuple[str, str], set[float]] = {}
    for answer in read_scored_answers():
        scores.setdefault((answer.prompt, answer.answer), set()).add(answer.score)
    pairs = scored_pairs(least_gap=0.5)
    assert len(pairs) > 200
    for pair in pairs:
        (message,) = pair.prompt
        better, worse = (scores[message.content, text] for text in (pair.chosen, pair.rejected))
        assert max(worse) - min(better) >= 0.5


def test_no_request_gives_more_pairs_than_asked_and_the_draw_is_the_same_each_time() -> None:
    pairs = scored_pairs(most=2)
    together = groupby(sorted(pair.prompt[0].content for pair in pairs))
    assert max(len(list(group)) for _, group in together) == 2
    assert pairs == scored_pairs(most=2)
    assert set(pairs) <= set(scored_pairs(most=10_000))
