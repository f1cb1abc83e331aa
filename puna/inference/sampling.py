"""How the next token is chosen: one request's settings."""

from collections.abc import Mapping

from pydantic import Field, FiniteFloat, field_validator

from puna.core.config import Config

MOST_LOGPROBS = 20


class Sampling(Config):
    """How tokens are chosen and when to stop."""

    max_new_tokens: int = Field(default=256, ge=0)
    """Most tokens to generate; 0 only reads the prompt (for its log-probabilities)."""
    temperature: float = Field(default=0.0, ge=0, le=100)
    """Divides the logits; 0 is greedy."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many most probable tokens; 0 is all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the fewest tokens whose probabilities reach this sum."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Leave out tokens less probable than this share of the most probable one's."""
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=10)
    """Divides positive and multiplies negative logits of tokens seen (Keskar et al. 2019)."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from the logit of every token generated before, once."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from the logit of a token as often as it was generated before."""
    logit_bias: Mapping[int, FiniteFloat] = Field(default_factory=dict, max_length=1024)
    """Added to the logits of these tokens."""
    seed: int = 0
    """Seed of the draw; the same seed and the same prompt give the same text, in any batch."""
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    """Texts that end the generation; they are not part of it."""
    ignore_stop_tokens: bool = False
    """Write on after a stop token, to the length asked: for benchmarks."""
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """Report each token's log-probability, and those of this many most probable tokens."""
    prompt_logprobs: bool = False
    """Report the prompt's log-probabilities too, in the first delta."""

    @field_validator("stop")
    @classmethod
    def _stops_are_not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text or len(text) > 256 for text in stop):
            raise ValueError("a stop text has 1 to 256 characters")
        return stop

    @property
    def penalises(self) -> bool:
        """Whether tokens seen before are made less (or more) likely."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the choice."""
        return self.penalises or bool(self.logit_bias)

    @property
    def filters(self) -> bool:
        """Whether only the most probable tokens may be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0
