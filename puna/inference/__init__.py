"""Generation: sampling, batched decoding over a key/value cache, streaming."""

from puna.inference.generate import Generation, generate, stream
from puna.inference.sampling import Sampling

__all__ = ["Generation", "Sampling", "generate", "stream"]
