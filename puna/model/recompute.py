"""Activations that are computed again in the backward pass in place of being kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost": the same operations run twice on
the same numbers, so losses and gradients are unchanged, bit for bit.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

# Results of products are dear to compute and cheap to keep; norms, activations and attention's
# scores are the other way round (Korthikanti et al. 2022, section 5). Fused attention makes no
# scores: what it returns is kept too, since long rows spend more on it than on products.
_KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
]


@dataclass(frozen=True)
class Recompute:
    """Which blocks forget their activations, and how much of them."""

    kind: Literal["full", "selective"] = "full"
    """Keep a block's input only, or the results of its products and of fused attention too."""
    every: int = 1
    """Every n-th block forgets, from the first."""
    offload: bool = False
    """Keep what is kept in the host's memory. On CPU it is there already: nothing changes."""

    def wrap(self, number: int, block: nn.Module) -> Callable[..., Tensor]:
        """What to call in place of block ``number``."""
        return partial(self._run, block) if number % self.every == 0 else block

    def _run(self, block: nn.Module, x_btd: Tensor, *others: Any) -> Tensor:
        settings: dict[str, Any] = {"use_reentrant": False}
        if self.kind == "selective":
            settings["context_fn"] = partial(create_selective_checkpoint_contexts, _KEPT)
        with self._place(x_btd.device):
            result: Tensor = checkpoint(block, x_btd, *others, **settings)
        return result

    def _place(self, device: torch.device) -> AbstractContextManager[Any]:
        return (
            save_on_cpu(pin_memory=True) if self.offload and device.type != "cpu" else nullcontext()
        )
