"""How an engine is set up."""

import warnings
from typing import Literal, Self

from pydantic import Field

from puna.core.config import Config
from puna.core.errors import PunaWarning
from puna.inference.kernels import has_compiler


class EngineConfig(Config):
    """Settings of an engine."""

    weights: Literal["auto", "fp32", "bf16", "int8", "int4", "w8a8"] = "auto"
    """Format of the weights; auto is bf16, but fp32 on GPUs without it and for a model at hand that
    computes in fp32. int8 and int4 round the weights only: the smallest and fastest for one text.
    w8a8 rounds activations too: on CPU the fastest for prompts and for many texts at once."""
    max_rows: int = Field(default=64, ge=1)
    """Most requests decoded together."""
    page_size: int = Field(default=32, ge=1)
    """Tokens a page of the cache holds; on CPU multiples of 16 are fast. A text leaves half a page
    unused on average, and prompts share whole pages."""
    cache_tokens: int | None = Field(default=None, ge=1)
    """Tokens the cache holds; None takes a quarter of the memory that is free, at most as many as
    ``max_rows`` full contexts need."""
    cache_weights: Literal["auto", "int8"] = "auto"
    """Format of keys and values; auto is that of the activations."""
    chunk_tokens: int = Field(default=512, ge=8)
    """Most prompt tokens in one step; longer prompts take several, with decoding in between."""
    max_queue: int = Field(default=1024, ge=1)
    """Most requests waiting."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Most prompt tokens waiting to be read."""
    prefix_cache: bool = True
    """Keep pages of earlier texts for prompts with the same beginning."""
    speculation: int = Field(default=0, ge=0, le=16)
    """Tokens proposed ahead for each row, by a draft model or from the row's own text; 0 is off."""
    compile: bool = False
    """Compile the blocks for decoding; the first start takes seconds, later ones read a cache."""
    packed_copy: bool | None = None
    """On CPU, keep dense weights a second time in the layout that matrix products prefer: several
    rows decode up to twice as fast. Weights changed in place are then not seen. None is no, and
    for an engine that loads its model itself yes where memory is ample."""
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """Processes that share each product of the model; on GPUs one each. More than one is for
    engines that load their model themselves."""

    def on(self, device_type: str) -> Self:
        """These settings, without compilation where it is asked for and nothing can compile."""
        if not self.compile or device_type != "cpu" or has_compiler():
            return self
        warnings.warn(
            "no C++ compiler is there (g++, or what CXX names), so decoding is not compiled, which "
            "is slower: install one, as Debian's g++, or leave compilation out (--no-compile)",
            PunaWarning,
            stacklevel=2,
        )
        return self.model_copy(update={"compile": False})
