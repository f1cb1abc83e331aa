import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from puna.core.errors import UsageError
from puna.data import UnfitPair, read_pairs
from puna.tokenizer import Message

HH_RLHF = Path(__file__).parents[3] / "shared" / "data" / "hh-rlhf" / "test.jsonl.gz"
ASKED = (Message("user", "Hi"),)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, GOOD, BAD = turn("user", "Hi"), turn("assistant", "Hello!"), turn("assistant", "What?")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Hello!", "rejected": "What?"},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
            "rejected": "\n\nHuman: Hi\n\nAssistant: What?",
        },
        {"prompt": "\n\nHuman: Hi", "chosen": "Hello!", "rejected": "What?"},
    ],
)
def test_the_form_of_a_pair_is_recognised(tmp_path: Path, row: Any) -> None:
    (pair,) = read_pairs(write(tmp_path / "pairs.jsonl", row))
    assert (pair.prompt, pair.chosen, pair.rejected) == (ASKED, "Hello!", "What?")


def test_what_two_dialogues_share_is_the_prompt(tmp_path: Path) -> None:
    shared = "\n\nHuman: One\n\nmore line\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: "
    row = {"chosen": shared + "Four", "rejected": shared + "Five"}
    (pair,) = read_pairs(write(tmp_path / "pairs.jsonl", row))
    assert [m.content for m in pair.prompt] == ["One\n\nmore line", "Two", "Three"]
    assert [m.role for m in pair.prompt] == ["user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == ("Four", "Five")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "chosen": "Hello!"}, "no pair of answers (its keys: prompt, chosen): a"),
        ({"prompt": "Hi", "chosen": "a", "reject": "b"}, 'is "reject" meant to be "rejected"?'),
        ({"prompt": "Hi", "chosen": "a", "rejected": 5}, 'expected a text or messages in "chosen"'),
        ({"chosen": "Hello!", "rejected": "What?"}, 'needs a "prompt"'),
        ({"prompt": "Hi", "chosen": "Yes ", "rejected": "Yes"}, "are equal"),
        ({"chosen": [USER, GOOD], "rejected": [turn("user", "x"), BAD]}, "differ before"),
        ({"chosen": [GOOD, USER], "rejected": [GOOD, USER]}, "must end with an assistant's"),
        ({"prompt": [{}], "chosen": "a", "rejected": "b"}, "each message needs a string"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        list(read_pairs(write(tmp_path / "pairs.jsonl", row)))
    assert message in str(error.value)
    assert "pairs.jsonl, line 1: " in str(error.value)


def test_real_dialogues_are_read_and_the_one_that_forks_early_is_left_out(tmp_path: Path) -> None:
    unfit: list[UnfitPair] = []
    pairs = list(read_pairs(HH_RLHF, unfit.append))
    with gzip.open(HH_RLHF, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(pairs) + len(unfit) == len(rows) > 1000
    assert len(unfit) == 1
    assert "differ before their last answer" in str(unfit[0])
    by_line = {int(pair.name.rpartition(" ")[2]) - 1: pair for pair in pairs}
    for number, pair in by_line.items():
        assert rows[number]["chosen"].endswith(pair.chosen)
        assert rows[number]["rejected"].rstrip().endswith(pair.rejected)
        assert pair.prompt[-1].role == "user"
        said = "".join(message.content for message in pair.prompt)
        assert all(said.count(mark) == 0 for mark in ("\n\nHuman:", "\n\nAssistant:"))
