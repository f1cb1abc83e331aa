import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.tokenizer import StreamDecoder, Tokenizer

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@SHARED
@given(ids=st.lists(st.integers(0, 599), max_size=40), skip=st.booleans())
def test_the_pieces_joined_equal_the_decoded_whole(
    small: Tokenizer, ids: list[int], skip: bool
) -> None:
    stream = StreamDecoder(small, skip_special=skip)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == small.decode(ids, skip_special=skip)


@SHARED
@given(text=st.text(max_size=20))
def test_valid_text_never_shows_a_replacement_it_does_not_hold(small: Tokenizer, text: str) -> None:
    stream = StreamDecoder(small)
    shown = ""
    for id in small.encode(text):
        shown += stream.push(id)
        assert text.startswith(shown)
    assert shown == text
    assert stream.flush() == ""


def test_a_character_in_pieces_appears_when_it_is_whole(small: Tokenizer) -> None:
    stream = StreamDecoder(small)
    assert [stream.push(id) for id in small.encode("👍")] == ["", "", "", "👍"]


def test_a_character_never_completed_is_flushed_as_one_replacement(small: Tokenizer) -> None:
    stream = StreamDecoder(small)
    for id in small.encode("👍")[:3]:
        assert stream.push(id) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize(("skip", "shown"), [(True, "ab"), (False, "a<|eot_id|>b")])
def test_special_tokens_are_shown_only_if_asked(small: Tokenizer, skip: bool, shown: str) -> None:
    stream = StreamDecoder(small, skip_special=skip)
    ids = [*small.encode("a"), small.eot_id, *small.encode("b")]
    assert "".join(map(stream.push, ids)) == shown
