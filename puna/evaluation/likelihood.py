"""Bits per byte: how well a model foretells text, comparable across tokenizers and compressors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.evaluation.scoring import summed_logprobs
from puna.model import Llama
from puna.tokenizer import Tokenizer


@dataclass(frozen=True)
class BitsPerByte:
    """The figure and what it is made of: ``bits_per_byte = bits / n_bytes``."""

    bits_per_byte: float
    bits: float
    n_tokens: int
    n_bytes: int
    n_documents: int


def document_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, between the begin token (end of text where none exists) and the end.

    The begin token is given; the end token is predicted, as where a text ends is part of it.
    """
    begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return [[begin, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]


def n_bytes(texts: Sequence[str]) -> int:
    """UTF-8 bytes of the texts, without whatever separates them."""
    return sum(len(text.encode()) for text in texts)


def bits_per_byte(model: Llama, tokenizer: Tokenizer, texts: Sequence[str]) -> BitsPerByte:
    """Negative log2-likelihood of the texts per byte of UTF-8.

    Summed over the tokens of all texts, the end token included and the begin token not, then
    divided once. A text longer than the context is cut into windows that share one token, so every
    token is predicted exactly once and the first of a later window sees that one token only.
    """
    documents = document_ids(tokenizer, texts)
    windows = [w for ids in documents for w in _windows(ids, model.config.context)]
    scored = [[True] * len(window) for window in windows]
    bits = -math.fsum(summed_logprobs(model, windows, scored)) / math.log(2)
    n_tokens = sum(len(ids) - 1 for ids in documents)
    size = n_bytes(texts)
    return BitsPerByte(bits / size, bits, n_tokens, size, len(texts))


def _windows(ids: Sequence[int], context: int) -> Iterator[Sequence[int]]:
    """Pieces of up to ``context + 1`` ids, each beginning with the last id of the one before."""
    for start in range(0, len(ids) - 1, context):
        yield ids[start : start + context + 1]
