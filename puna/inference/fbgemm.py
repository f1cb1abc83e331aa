"""What reaches FBGEMM, the library of products behind torch's quantised ones on x86."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_fbgemm(*operators: str) -> bool:
    """Whether it is made for this processor, and this torch still has these ways to it."""
    return "fbgemm" in torch.backends.quantized.supported_engines and all(
        hasattr(torch.ops.quantized, name) for name in operators
    )


@contextmanager
def fbgemm_packs() -> Iterator[None]:
    """Weights packed meanwhile are packed for it, whatever engine is chosen otherwise."""
    engines = torch.backends.quantized
    former = engines.engine
    try:
        engines.engine = "fbgemm"
        yield
    finally:
        engines.engine = former
