"""What the model asks of a key/value cache; the engine's paged one is in `puna.inference`."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class LayerCache(Protocol):
    """Keys and values of one layer for the rows of one call."""

    def attend(self, queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor) -> Tensor:
        """Store the new keys and values; attention of the queries over all they may see.

        Returns (batch, heads, time, head_dim).
        """
        ...


class Cache(Protocol):
    """Keys and values kept between calls, so that a new token costs one position of work."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One for each layer of the model."""
        ...
