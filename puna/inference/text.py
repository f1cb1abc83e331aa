"""Tokens to text as it may be shown: whole characters, and nothing of a stop text."""

from collections.abc import Sequence

from puna.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """Decodes one request's tokens and looks for its stop texts, also across token borders.

    Args:
        tokenizer: whose ids they are.
        stops: texts that end the generation; none is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special=True)
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop text that was found; nothing is decoded after it."""

    def push(self, token: int) -> str:
        """The text that ``token`` makes sure of; what may open a stop text is held back."""
        return self._release(self._decoder.push(token))

    def flush(self) -> str:
        """What is left at the end."""
        text = self._release(self._decoder.flush())
        held, self._held = self._held, ""
        return text + held

    def _release(self, new: str) -> str:
        if self.matched is not None:
            return ""
        text = self._held + new
        # the stop that is complete first counts, whatever pieces the text comes in
        ends = [
            (place + len(stop), place, stop)
            for stop in self._stops
            if (place := text.find(stop)) >= 0
        ]
        if ends:
            _, place, self.matched = min(ends)
            self._held = ""
            return text[:place]
        hold = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that a stop text begins with."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
