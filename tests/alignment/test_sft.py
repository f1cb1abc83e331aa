import pytest

from puna.alignment import encode_chat
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
