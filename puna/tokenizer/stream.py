"""Text of tokens as they come, never half a character."""

import codecs

from puna.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one id at a time; the pieces joined equal `Tokenizer.decode` of all ids.

    Args:
        tokenizer: whose ids they are.
        skip_special: leave special tokens out.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that ``id`` completes; empty while a character is still in pieces."""
        if id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)
