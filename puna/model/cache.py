"""What the model asks of a key/value cache; the engine's paged one is in `puna.inference`."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class LayerCache(Protocol):
    """Keys and values of one layer for the rows of one call."""

    def update(self, keys_bgtd: Tensor, values_bgtd: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new entries; return all that the rows may attend to: (b, g, span, d)."""
        ...


class Cache(Protocol):
    """Keys and values kept between calls, so that a new token costs one position of work."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One for each layer of the model."""
        ...

    @property
    def mask(self) -> Tensor:
        """What each new token attends to: (batch, 1, time, span), True or 0 = may attend."""
        ...
