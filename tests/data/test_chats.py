from pathlib import Path

import pytest

from puna.core.errors import UsageError
from puna.data import NamedChat, read_chats, split_chats
from puna.tokenizer import Message


def chat(number: int, name: str) -> NamedChat:
    return NamedChat(name, (Message("user", f"{number}?"), Message("assistant", f"{number}!")))


def test_equal_chats_stand_on_the_same_side() -> None:
    chats = [chat(number % 10, str(number)) for number in range(60)]
    kept, aside = split_chats(chats, 0.2, seed=1)
    assert len(kept) + len(aside) == 60
    assert len({c.messages for c in aside}) == 2
    assert not {c.messages for c in kept} & {c.messages for c in aside}


def test_two_chats_give_one_to_each_side_and_one_gives_none_away() -> None:
    assert [len(side) for side in split_chats([chat(1, "a"), chat(2, "b")], 0.05, 0)] == [1, 1]
    assert [len(side) for side in split_chats([chat(1, "a")], 0.05, 0)] == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"messages": [{"role": "user"', "line 1: not valid JSON"),
        ('\n{"text": "x"}', 'line 2: expected an object with a list in "messages"'),
        ('{"messages": [{"role": "user"}]}', 'line 1: each message needs a string in "role"'),
        ("\n\n", "holds no chats"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_chats(path)
    assert message in str(error.value)
