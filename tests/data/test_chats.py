import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.core.errors import UsageError
from puna.data import NamedChat, held_out, read_chats
from puna.data.chats import CHAT_ROWS, ChatForm
from puna.tokenizer import Message, ToolCall

TALK = (Message("user", "Hi"), Message("assistant", "Hello!"))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def said(speaker: str, value: str, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value, **more}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [turn("user", "Hi"), turn("assistant", "Hello!")]},
        {"messages": [turn("user", "Hi", name="Ann"), turn("assistant", "Hello!", train=None)]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                turn("assistant", "Hello!"),
            ]
        },
        {"conversations": [said("human", "Hi"), said("gpt", "Hello!")]},
        {"id": 7, "conversations": [said("user", "Hi"), said("assistant", "Hello!")]},
        {"conversations": [turn("user", "Hi"), turn("assistant", "Hello!")]},
        {"instruction": "Hi", "input": "", "output": "Hello!"},
        {"instruction": "Hi", "output": "Hello!"},
    ],
)
def test_the_form_of_a_chat_is_recognised(tmp_path: Path, row: Any) -> None:
    (chat,) = read_chats(write(tmp_path / "my.jsonl", row))
    assert chat.messages == TALK
    assert chat.name.endswith("my.jsonl, line 1")


def test_an_instruction_has_its_input_below_it_and_its_system_prompt_before(tmp_path: Path) -> None:
    row = {"system": "Be brief.", "instruction": "Translate.", "input": "llama", "output": "llama"}
    (chat,) = read_chats(write(tmp_path / "my.jsonl", row))
    assert [m.content for m in chat.messages] == ["Be brief.", "Translate.\n\nllama", "llama"]
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]


def test_sharegpt_has_a_system_prompt_calls_and_results(tmp_path: Path) -> None:
    call = '{"name": "weather", "arguments": {"city": "Lhasa"}}'
    talk = [said("human", "?"), said("function_call", call), said("observation", "21")]
    (chat,) = read_chats(write(tmp_path / "my.jsonl", {"system": "S", "conversations": talk}))
    assert chat.messages == (
        Message("system", "S"),
        Message("user", "?"),
        Message("assistant", "", (ToolCall("weather", '{"city": "Lhasa"}'),)),
        Message("tool", "21"),
    )


def test_tools_and_calls_come_along_as_objects_or_as_text(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "now"}}
    calls = [{"type": "function", "function": {"name": "now", "arguments": "{}"}}]
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    rows = [
        {"messages": [turn("user", "?"), called], "tools": tools, "builtin_tools": ["brave_search"]}
        for tools in ([tool], json.dumps([tool]))
    ]
    for chat in read_chats(write(tmp_path / "my.jsonl", *rows)):
        assert chat.tools == (tool,)
        assert chat.builtin_tools == ("brave_search",)
        assert chat.messages[1] == Message("assistant", "", (ToolCall("now", "{}"),))


@pytest.mark.parametrize(
    ("row", "switches"),
    [
        ({"messages": [turn("user", "a"), turn("assistant", "b", train=False)]}, [None, False]),
        ({"messages": [turn("user", "a"), turn("assistant", "b", weight=0)]}, [None, False]),
        ({"messages": [turn("user", "a", train=True), turn("assistant", "b")]}, [True, None]),
        ({"conversations": [said("human", "a"), said("gpt", "b", weight=1)]}, [None, True]),
    ],
)
def test_a_turn_says_whether_it_is_trained(
    tmp_path: Path, row: Any, switches: list[bool | None]
) -> None:
    (chat,) = read_chats(write(tmp_path / "my.jsonl", row))
    assert [message.train for message in chat.messages] == switches


MESSAGES = {"messages": [turn("user", "Hi")]}


@pytest.mark.parametrize(
    ("rows", "form", "message"),
    [
        ([MESSAGES, {"text": "x"}], "auto", 'line 2: expected an object with a list in "messages"'),
        ([{"messages": [{"role": "user"}]}], "auto", 'line 1: each message needs a string in "ro'),
        ([{"messages": [turn("user", 5)]}], "auto", "line 1: each message needs a string"),  # type: ignore[arg-type]
        (
            [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}],
            "auto",
            "each message needs a string",
        ),
        ([{"conversations": [said("alien", "x")]}], "auto", "a turn is from 'alien': use human"),
        ([{"conversations": [turn("a", "b"), 5]}], "auto", "each message needs a string"),
        ([{"instruction": "x"}], "auto", 'expected strings in "instruction" and "output"'),
        ([{"text": "x"}], "auto", "no known form of a chat (its keys: text): " + CHAT_ROWS),
        ([{"Conversation": []}], "auto", 'is "Conversation" meant to be "conversations"?'),
        ([{"chosen": "x", "rejected": "y"}], "auto", "these are preferences, not chats"),
        ([{"instruction": "x", "output": "y"}], "sharegpt", 'a list in "conversations"'),
        ([{"messages": [turn("user", "a", train="no")]}], "auto", "\"weight\" 0 or 1; not 'no'"),
        ([MESSAGES | {"tools": "["}], "auto", '"tools" is not valid JSON'),
        ([MESSAGES | {"tools": ["weather"]}], "auto", '"tools" must be a list of definitions'),
    ],
)
def test_a_broken_row_is_named(
    tmp_path: Path, rows: list[Any], form: ChatForm, message: str
) -> None:
    with pytest.raises(UsageError) as error:
        list(read_chats(write(tmp_path / "my.jsonl", *rows), form))
    assert message in str(error.value)
    assert str(tmp_path / "my.jsonl") in str(error.value)


def chat(number: int, name: str) -> NamedChat:
    return NamedChat(name, (Message("user", f"{number}?"), Message("assistant", f"{number}!")))


def drawn(chats: list[NamedChat], seed: int = 1) -> Any:
    return np.array([each.drawn(seed) for each in chats])


def test_equal_chats_stand_on_the_same_side_and_the_share_is_of_different_ones() -> None:
    chats = [chat(number % 10, str(number)) for number in range(60)]
    aside = held_out(drawn(chats), 0.2)
    assert len({c.messages for c, on in zip(chats, aside, strict=True) if on}) == 2
    kept = {c.messages for c, on in zip(chats, aside, strict=True) if not on}
    assert len(kept) == 8


def test_the_seed_and_the_text_alone_say_who_is_held_out() -> None:
    chats = [chat(number, str(number)) for number in range(200)]
    aside = held_out(drawn(chats), 0.1)
    backwards = held_out(drawn([chat(n, "elsewhere") for n in range(199, -1, -1)]), 0.1)
    assert aside.tolist() == backwards[::-1].tolist()
    assert aside.tolist() != held_out(drawn(chats, seed=2), 0.1).tolist()
    assert aside.sum() == 20


def test_two_chats_give_one_to_each_side_and_one_gives_none_away() -> None:
    assert held_out(drawn([chat(1, "a"), chat(2, "b")]), 0.05).sum() == 1
    assert held_out(drawn([chat(1, "a")]), 0.05).sum() == 0
    assert held_out(np.array([], dtype=np.int64), 0.05).sum() == 0


def test_no_more_than_the_bound_is_held_out() -> None:
    assert held_out(np.arange(1000), 0.5, most=30).sum() == 30


def test_reading_stops_where_the_caller_does(tmp_path: Path) -> None:
    path = write(tmp_path / "my.jsonl", *[MESSAGES] * 3)
    path.write_text(path.read_text() + "broken")
    chats = read_chats(path)
    names = [next(chats).name for _ in range(3)]
    assert all(a < b for a, b in pairwise(names))
    with pytest.raises(UsageError, match="line 4: not valid JSON"):
        next(chats)
