"""AdamW whose two moments take 8 bits each: 2 bytes a weight in place of 8.

As Dettmers et al. 2021 ("8-bit Optimizers via Block-wise Quantization"): each block of 256 numbers
is divided by its largest, and moments of small tensors stay in fp32. The code is a power in place
of their table, so that encoding is arithmetic: the first moment is kept as the root of its
magnitude, with sign, in steps of 1/127; the second as its fourth root in steps of 1/255, never
rounded to zero. A number a thousandth of its block's largest is kept to 1/4 and to 1/22 at worst.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

BLOCK = 256
SMALL = 4096  # numbers; a tensor of fewer keeps its moments in fp32
_AT_ONCE = BLOCK * 2**10  # numbers that are wide at once


class AdamW8bit(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with moments in 8 bits.

    Args:
        params: parameters or groups of them, contiguous.
        lr: learning rate.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or self._start(parameter)
        state["step"] += 1
        flat, gradient = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        if "exp_avg_max" not in state:
            _adamw(flat, gradient, state["exp_avg"], state["exp_avg_sq"], group, state["step"])
            return
        for start in range(0, len(flat), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            blocks = slice(start // BLOCK, (start + _AT_ONCE) // BLOCK)
            first = _signed(state["exp_avg"][part], state["exp_avg_max"][blocks])
            second = _positive(state["exp_avg_sq"][part], state["exp_avg_sq_max"][blocks])
            _adamw(flat[part], gradient[part], first, second, group, state["step"])
            _store_signed(first, state["exp_avg"][part], state["exp_avg_max"][blocks])
            _store_positive(second, state["exp_avg_sq"][part], state["exp_avg_sq_max"][blocks])

    def _start(self, parameter: Tensor) -> dict[str, Any]:
        n, device, state = parameter.numel(), parameter.device, self.state[parameter]
        state["step"] = torch.zeros(())
        if n < SMALL:
            state["exp_avg"] = torch.zeros(n, device=device)
            state["exp_avg_sq"] = torch.zeros(n, device=device)
            return state
        n_blocks = -(-n // BLOCK)
        state["exp_avg"] = torch.zeros(n, dtype=torch.int8, device=device)
        state["exp_avg_sq"] = torch.zeros(n, dtype=torch.uint8, device=device)
        state["exp_avg_max"] = torch.zeros(n_blocks, device=device)
        state["exp_avg_sq_max"] = torch.zeros(n_blocks, device=device)
        return state


def _adamw(
    flat: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    group: dict[str, Any],
    step: Tensor,
) -> None:
    """One step of AdamW on flat tensors, in place, moments included."""
    beta1, beta2 = group["betas"]
    gradient = gradient.float()
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (second / (1 - beta2 ** float(step))).sqrt_().add_(group["eps"])
    flat.mul_(1 - group["lr"] * group["weight_decay"])
    flat.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1 ** float(step)))


def _signed(codes: Tensor, block_max: Tensor) -> Tensor:
    root = codes.float() / 127
    return _times(root * root.abs(), block_max)


def _positive(codes: Tensor, block_max: Tensor) -> Tensor:
    return _times((codes.float() / 255).square_().square_(), block_max)


def _store_signed(values: Tensor, codes: Tensor, block_max: Tensor) -> None:
    block_max.copy_(_largest(values))
    scaled = _times(values, 1 / block_max.clamp(min=1e-38))
    codes.copy_((scaled.abs().sqrt_() * 127).round_().copysign_(values))


def _store_positive(values: Tensor, codes: Tensor, block_max: Tensor) -> None:
    block_max.copy_(_largest(values))
    scaled = _times(values, 1 / block_max.clamp(min=1e-38))
    steps = (scaled.sqrt_().sqrt_() * 255).round_()
    # a second moment of zero would make a step of its weight endless
    codes.copy_(torch.where(values > 0, steps.clamp(min=1), steps))


def _times(flat: Tensor, by_block: Tensor) -> Tensor:
    """Each number times the factor of its block."""
    return flat * by_block.repeat_interleave(BLOCK)[: len(flat)]


def _largest(flat: Tensor) -> Tensor:
    """Largest magnitude of each block."""
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK))
    return padded.view(-1, BLOCK).abs().amax(1)
