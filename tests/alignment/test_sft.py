from pathlib import Path
from typing import Any

import pytest

from puna.alignment import ChatSet, ChatSource, TooLong, encode_chat, write_chats
from puna.core.errors import UsageError
from puna.data import NamedChat
from puna.tokenizer import Message, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Hello there, how are you today?"] * 3, 290, n_special=16)


def test_the_answers_and_their_ends_are_trained_and_nothing_else(tokenizer: Tokenizer) -> None:
    talk = [Message("user", "Hello"), Message("assistant", "Hello there")] * 2
    item = encode_chat(tokenizer, NamedChat("chat", tuple(talk)), 100)
    assert item is not None
    ids, trained = item
    text = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
    assert text == "Hello there<|eot_id|>Hello there<|eot_id|>"


def test_a_chat_without_an_answer_is_an_error_that_names_it(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"my\.jsonl, line 4: no token is trained"):
        encode_chat(tokenizer, NamedChat("my.jsonl, line 4", (Message("user", "Hello"),)), 100)


def test_a_chat_longer_than_a_row_is_an_error_that_names_it(tokenizer: Tokenizer) -> None:
    talk = (Message("user", "Hello " * 50), Message("assistant", "there"))
    with pytest.raises(UsageError, match=r"line 9: .* exceed the row length of 40"):
        encode_chat(tokenizer, NamedChat("line 9", talk), 40)


def chats(answers: list[str]) -> list[NamedChat]:
    return [
        NamedChat(f"chat {n}", (Message("user", "Hello"), Message("assistant", answer)))
        for n, answer in enumerate(answers)
    ]


def write(tokenizer: Tokenizer, folder: Path, *sources: ChatSource, **options: Any) -> ChatSet:
    return write_chats(folder, tokenizer, sources, row_length=60, seed=1, **options)


def test_every_chat_is_of_one_group_or_held_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = [ChatSource(chats([f"a {n}" for n in range(40)]), 3.0, may_hold_out=True)]
    own += [ChatSource(chats([f"b {n}" for n in range(20)]), 1.0, may_hold_out=True)]
    rest = ChatSource(chats(["c"] * 5))
    found = write(
        tokenizer, tmp_path, *own, rest, held_out_fraction=0.1, replay=lambda n: [([n % 7], [True])]
    )
    assert [group.weight for group in found.groups] == [3.0, 1.0, None, None]
    numbers = [*(i for group in found.groups for i in group.items.tolist()), *found.held_out]
    assert sorted(numbers) == list(range(66)) == list(range(len(found.tokens)))
    assert len(found.held_out) == 6
    assert max(found.held_out) < 60
    assert found.groups[2].items.tolist() == [60, 61, 62, 63, 64]
    assert found.groups[3].items.tolist() == [65]
    assert found.counts.tokens == found.tokens.lengths[:65].sum()
    assert found.counts.chats == found.counts.trained_ends == 65


def test_questions_are_of_held_out_chats(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = [
        NamedChat(str(n), (Message("user", f"{n}?"), Message("assistant", "yes")))
        for n in range(30)
    ]
    found = write(tokenizer, tmp_path, ChatSource(made, may_hold_out=True), held_out_fraction=0.1)
    asked = {messages[0].content for messages in found.questions}
    assert asked == {made[n].messages[0].content for n in found.held_out}
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("too_long", "kept", "cut", "dropped"), [("cut", 3, 1, 0), ("drop", 2, 0, 1)]
)
def test_a_chat_longer_than_a_row_is_cut_or_dropped(
    tokenizer: Tokenizer, tmp_path: Path, too_long: TooLong, kept: int, cut: int, dropped: int
) -> None:
    source = ChatSource(chats(["one", "Hello there " * 30, "three"]))
    found = write(tokenizer, tmp_path, source, too_long=too_long)
    assert (found.counts.chats, found.counts.cut, found.counts.dropped) == (kept, cut, dropped)
    assert len(found.tokens) == kept
    assert found.counts.trained_ends == 2, "the end of the one that was cut is gone"
    assert max(found.tokens.lengths) <= 60


def test_a_cut_that_leaves_nothing_trained_drops_the_chat(tokenizer: Tokenizer) -> None:
    talk = (Message("user", "Hello " * 50), Message("assistant", "there"))
    assert encode_chat(tokenizer, NamedChat("x", talk), 40, "cut") is None


def test_a_chat_of_exactly_a_row_is_not_cut(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one = chats(["Hello there"])
    item = encode_chat(tokenizer, one[0], 1000)
    assert item is not None
    found = write_chats(
        tmp_path, tokenizer, [ChatSource(one)], row_length=len(item[0]), seed=1, too_long="cut"
    )
    assert (found.counts.cut, found.counts.trained_ends) == (0, 1)
