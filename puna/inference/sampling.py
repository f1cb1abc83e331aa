"""From logits to the next token: greedy, temperature, nucleus."""

import torch
from pydantic import Field
from torch import Tensor

from puna.core.config import Config


class Sampling(Config):
    """How tokens are chosen and when to stop."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens to generate."""
    temperature: float = Field(default=0.0, ge=0)
    """Divides the logits; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the fewest tokens whose probabilities reach this sum."""
    seed: int = 0
    """Seed of the draw; the same seed and the same prompts give the same text."""


def choose(logits_bv: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Next token of each row: (batch,) int64.

    Nucleus sampling (Holtzman et al. 2019) keeps the smallest set of most probable tokens whose
    mass reaches ``top_p``; the most probable token is always in it.
    """
    if sampling.temperature == 0:
        return logits_bv.argmax(-1)
    probabilities = torch.softmax(logits_bv.float() / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, tokens = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, tokens, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
