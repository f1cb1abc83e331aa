"""Documents as tokens on disk, in the form the packed rows read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.data import Document, TokenFile, write_tokens
from puna.tokenizer import Tokenizer

_AT_ONCE = 1024  # documents per call of the tokenizer, which spreads them over the cores


def document_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text between its begin token, where the vocabulary has one, and its end token."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [[*begin, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[Document], folder: Path
) -> tuple[TokenFile, dict[str, int]]:
    """Write the tokens of each document; also count those of each source."""
    tokens_of: Counter[str] = Counter()

    def items() -> Iterator[tuple[list[int], None]]:
        for start in range(0, len(documents), _AT_ONCE):
            part = documents[start : start + _AT_ONCE]
            encoded = document_tokens(tokenizer, [document.text for document in part])
            for document, ids in zip(part, encoded, strict=True):
                tokens_of[document.source] += len(ids)
                yield ids, None

    written = write_tokens(folder, items(), tokenizer.vocab_size)
    return written, dict(tokens_of)
