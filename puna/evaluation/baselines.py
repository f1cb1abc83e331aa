"""What plain methods make of the same text: a compressor and a 5-gram model.

All figures are bits per byte of the validation texts, so they stand beside `bits_per_byte`.
"""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyppmd

from puna.evaluation.likelihood import document_ids, n_bytes
from puna.evaluation.ngram import kneser_ney_bits
from puna.tokenizer import Tokenizer

PPMD_ORDER = 5  # bytes of context
PPMD_MEMORY = 1 << 28  # bytes: enough never to forget what it was trained on
# One byte ends each text for the compressor, as one token does for the models.
_END = b"\0"


@dataclass(frozen=True)
class Baselines:
    """Bits per byte of the validation texts.

    Attributes:
        xz_alone: ``xz -9`` of the validation texts by themselves.
        xz_primed: what they add to the ``xz -9`` of the training texts: the harder figure.
        ppmd: what they add to the PPMd of the training texts: an adaptive model of bytes in
            contexts of up to five, by the library `pyppmd`.
        five_gram: a Kneser-Ney 5-gram model over the language model's own tokens and training
            texts: the hardest of them.
        n_bytes: UTF-8 bytes of the validation texts.
    """

    xz_alone: float
    xz_primed: float
    ppmd: float
    five_gram: float
    n_bytes: int


def measure_baselines(
    train: Sequence[str], validation: Sequence[str], tokenizer: Tokenizer
) -> Baselines:
    """Measure all baselines; the compressor runs beside the counting of n-grams."""
    seen, new = _joined(train), _joined(validation)
    with ThreadPoolExecutor(max_workers=2) as pool:
        sizes = pool.map(_xz_bytes, (seen + new, seen, new))
        primed = _ppmd_bytes(seen + new) - _ppmd_bytes(seen)
        ids = document_ids(tokenizer, [*train, *validation])
        costs = kneser_ney_bits(ids[: len(train)], ids[len(train) :], tokenizer.vocab_size)
        both, before, alone = sizes
    size = n_bytes(validation)
    return Baselines(
        xz_alone=8 * alone / size,
        xz_primed=8 * (both - before) / size,
        ppmd=8 * primed / size,
        five_gram=sum(costs) / size,
        n_bytes=size,
    )


def _joined(texts: Sequence[str]) -> bytes:
    return b"".join(text.encode() + _END for text in texts)


def _ppmd_bytes(content: bytes) -> int:
    encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, PPMD_MEMORY)
    return len(encoder.encode(content)) + len(encoder.flush())


def _xz_bytes(content: bytes) -> int:
    return len(lzma.compress(content, preset=9))
