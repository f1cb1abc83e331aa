"""Documents as tokens on disk, in the form the packed rows read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.data import Document, TokenFile, write_tokens
from puna.tokenizer import Tokenizer

_AT_ONCE = 1024  # documents per call of the tokenizer, which spreads them over the cores


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[Document], folder: Path
) -> tuple[TokenFile, dict[str, int]]:
    """Write each document between its begin and end tokens; also the tokens of each source.

    A vocabulary without a begin token has documents end only.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    tokens_of: Counter[str] = Counter()

    def items() -> Iterator[tuple[list[int], None]]:
        for start in range(0, len(documents), _AT_ONCE):
            part = documents[start : start + _AT_ONCE]
            for document, ids in zip(
                part, tokenizer.encode_batch([d.text for d in part]), strict=True
            ):
                item = [*begin, *ids, tokenizer.eos_id]
                tokens_of[document.source] += len(item)
                yield item, None

    written = write_tokens(folder, items(), tokenizer.vocab_size)
    return written, dict(tokens_of)
