"""Tokens to text: whole characters, nothing of a stop text."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.inference.text import TextStream
from puna.tokenizer import Tokenizer

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
LETTERS = st.text("aab👍é", max_size=25)
STOPS = st.lists(st.text("ab👍é", min_size=1, max_size=5), max_size=4)


def bytes_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of one byte each: every character of more bytes is split over tokens."""
    of_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [of_byte[bytes([byte])] for byte in text.encode()]


def shown(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[str], str | None]:
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.matched is not None:
            break
    return [*pieces, stream.flush()], stream.matched


@SHARED
@given(text=LETTERS, stops=STOPS, whole=st.booleans())
def test_text_ends_before_the_stop_that_is_complete_first(
    tokenizer: Tokenizer, text: str, stops: list[str], whole: bool
) -> None:
    """Whether it comes in bytes or in the tokenizer's own pieces."""
    ids = tokenizer.encode(text) if whole else bytes_of(tokenizer, text)
    pieces, matched = shown(tokenizer, ids, stops)
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    place, stop = min(ends)[1:] if ends else (len(text), None)
    assert "".join(pieces) == text[:place]
    assert matched == stop


@SHARED
@given(text=LETTERS, stops=STOPS)
def test_what_was_shown_is_never_taken_back(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    """Each prefix of what was shown is right whatever would have followed."""
    stream, so_far, fed = TextStream(tokenizer, stops), "", b""
    for token in bytes_of(tokenizer, text):
        so_far += stream.push(token)
        fed += tokenizer.token_bytes(token)
        assert text.startswith(so_far)
        if stream.matched is not None:
            return
        known = fed.decode(errors="ignore")
        # nothing shown lies in a stop, or in what the next tokens could make one
        for start in range(len(so_far)):
            assert not any(stop.startswith(known[start:][: len(stop)]) for stop in stops)


@SHARED
@given(ids=st.lists(st.integers(0, 319), max_size=30))
def test_streamed_text_is_the_whole_decoded(tokenizer: Tokenizer, ids: list[int]) -> None:
    pieces, _ = shown(tokenizer, ids, [])
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=True)


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("a STO b STOP c", ["STOP"], "a STO b "),
        ("ababac!", ["abac"], "ab"),
        ("👍👎", ["👎"], "👍"),
        ("stop", ["stop"], ""),
        ("an open sto", ["stop"], "an open sto"),
    ],
)
def test_examples_of_stops(tokenizer: Tokenizer, text: str, stops: list[str], left: str) -> None:
    assert "".join(shown(tokenizer, bytes_of(tokenizer, text), stops)[0]) == left
