"""Prompts of one's own, and those of the generators."""

import json
from pathlib import Path

import pytest

from puna.core.errors import UsageError
from puna.data import read_prompts
from puna.data.generators import generate_questions, is_held_out
from puna.data.prompts import PROMPT_ROWS
from puna.tokenizer import Message


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_prompt_is_messages_or_a_text_and_the_row_is_kept_for_the_scorer(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "2 + 3?"}
    rows = [
        {"messages": [system, user], "answer": "5"},
        {"prompt": "2 + 3?", "limit": 4},
        {"prompt": [user]},
        {"question": "2 + 3?", "metadata": {"source_dataset": "sums"}},
    ]
    found = list(read_prompts(write(tmp_path / "p.jsonl", *rows)))
    asked = Message("user", "2 + 3?")
    assert found[0].messages == (Message("system", "Be brief."), asked)
    assert [prompt.messages for prompt in found[1:]] == [(asked,)] * 3
    assert [prompt.record for prompt in found] == rows
    assert found[1].drawn(3) == found[2].drawn(3) != found[0].drawn(3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello"}, "no prompt (its keys: text): " + PROMPT_ROWS),
        ({"questions": "2 + 2?"}, 'is "questions" meant to be "question"?'),
        ({"prompt": "  "}, '"prompt" is empty'),
        ({"question": 3}, 'a list in "question"'),
        ({"messages": [{"role": "assistant", "content": "5"}]}, "ends with a turn of assistant"),
    ],
)
def test_a_row_that_asks_nothing_is_named(tmp_path: Path, row: object, said: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "2 + 3?"}, row)
    with pytest.raises(UsageError) as raised:
        list(read_prompts(path))
    assert f"{path}, line 2" in str(raised.value)
    assert said in str(raised.value)


def test_generated_questions_keep_away_from_what_is_held_out() -> None:
    questions = list(generate_questions(3, 300, ()))
    assert len(questions) == 300
    assert len({question.prompt for question in questions}) > 250
    assert not any(is_held_out(question.key, 3) for question in questions)
    assert questions[:40] == list(generate_questions(3, 40, ()))
