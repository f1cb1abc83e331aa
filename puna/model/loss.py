"""The head and its loss in chunks, so logits of shape (tokens, vocabulary) never exist at once.

Chunks of tokens pass through head, softmax and loss one after the other; what is kept is a few
numbers per token. Peak memory of the logits is `CHUNK_BYTES`, whatever the batch.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 64 * 1024**2
STRIPE = 8192  # rows of the head's gradient made at once
IGNORED = -100  # label of a position without a target


def _chunks(n_tokens: int, vocab_size: int) -> Iterator[slice]:
    """Slices of the tokens whose logits take at most `CHUNK_BYTES` in fp32."""
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return (slice(start, start + size) for start in range(0, n_tokens, size))


def _softmax_in_place(logits_nv: Tensor, labels_n: Tensor) -> Tensor:
    """Log-probability of each label (n,); leaves the softmax in ``logits_nv``.

    In place, since fresh memory of this size costs more than the arithmetic.
    """
    at_label = logits_nv.gather(1, labels_n[:, None]).squeeze(1)
    largest = logits_nv.amax(1)
    total = logits_nv.sub_(largest[:, None]).exp_().sum(1)
    logits_nv.div_(total[:, None])
    return at_label - largest - total.log()


def _minus_target(softmax_nv: Tensor, labels_n: Tensor) -> Tensor:
    """Gradient of cross-entropy in the logits: softmax less one-hot, in place."""
    target = torch.full_like(labels_n, -1, dtype=softmax_nv.dtype)
    return softmax_nv.scatter_add_(1, labels_n[:, None], target[:, None])


class _SummedLoss(torch.autograd.Function):
    """Sum of cross-entropies; gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, labels_n: Tensor) -> Tensor:
        cast = weight_vd.to(hidden_nd.dtype)
        total = torch.zeros((), device=hidden_nd.device)
        of_hidden, of_weight, _ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden_nd) if of_hidden else None
        weight_grad = torch.zeros_like(weight_vd) if of_weight else None
        for part in _chunks(len(labels_n), len(weight_vd)):
            logits = F.linear(hidden_nd[part], cast).float()
            total -= _softmax_in_place(logits, labels_n[part]).sum()
            if of_hidden or of_weight:
                gradient = _minus_target(logits, labels_n[part]).to(hidden_nd.dtype)
                _spread(gradient, cast, hidden_nd, part, hidden_grad, weight_grad)
                del gradient
            del logits  # before those of the next chunk are made
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        made: tuple[Tensor | None, Tensor | None] = ctx.saved_tensors
        if bool(grad == 1):
            return *made, None
        hidden_grad, weight_grad = (
            None if each is None else each * grad.to(each.dtype) for each in made
        )
        return hidden_grad, weight_grad, None


def _spread(
    gradient_nv: Tensor,
    cast_vd: Tensor,
    hidden_nd: Tensor,
    part: slice,
    hidden_grad: Tensor | None,
    weight_grad: Tensor | None,
) -> None:
    """From the gradient in the logits of ``part`` to those in hidden states and weight.

    A frozen head has no gradient of its own. That of a trained one is added up in stripes of the
    vocabulary, so no second matrix of its size is made.
    """
    if hidden_grad is not None:
        torch.mm(gradient_nv, cast_vd, out=hidden_grad[part])
    if weight_grad is not None:
        for start in range(0, len(weight_grad), STRIPE):
            rows = slice(start, start + STRIPE)
            weight_grad[rows] += gradient_nv[:, rows].T @ hidden_nd[part]


def cross_entropy_sum(
    hidden_btd: Tensor, weight_vd: Tensor, labels_bt: Tensor
) -> tuple[Tensor, int]:
    """Cross-entropy summed over positions with a label, and their number.

    Args:
        hidden_btd: final hidden states, any floating type.
        weight_vd: the head's weight.
        labels_bt: target ids; `IGNORED` where there is none.

    Returns:
        The sum in nats (fp32 scalar, differentiable) and the count.
    """
    kept = (labels_bt != IGNORED).flatten().nonzero().squeeze(1)
    hidden_nd = hidden_btd.flatten(0, 1).index_select(0, kept)
    loss: Tensor = _SummedLoss.apply(hidden_nd, weight_vd, labels_bt.flatten()[kept])
    return loss, len(kept)


class _TokenLogprobs(torch.autograd.Function):
    """Log-probability of each label; the backward pass computes the logits anew."""

    @staticmethod
    def forward(ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, labels_n: Tensor) -> Tensor:
        cast = weight_vd.to(hidden_nd.dtype)
        logprobs = torch.empty(len(labels_n), device=hidden_nd.device)
        for part in _chunks(len(labels_n), len(weight_vd)):
            logits = F.linear(hidden_nd[part], cast).float()
            logprobs[part] = _softmax_in_place(logits, labels_n[part])
        ctx.save_for_backward(hidden_nd, weight_vd, labels_n)
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_nd, weight_vd, labels_n = ctx.saved_tensors
        cast = weight_vd.to(hidden_nd.dtype)
        hidden_grad = torch.empty_like(hidden_nd) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight_vd) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(labels_n), len(weight_vd)):
            logits = F.linear(hidden_nd[part], cast).float()
            _softmax_in_place(logits, labels_n[part])
            gradient = _minus_target(logits, labels_n[part]).mul_(-grad_n[part, None])
            _spread(gradient.to(hidden_nd.dtype), cast, hidden_nd, part, hidden_grad, weight_grad)
        return hidden_grad, weight_grad, None


def token_logprobs(hidden_btd: Tensor, weight_vd: Tensor, labels_bt: Tensor) -> Tensor:
    """Log-probability (nats, fp32) of each label, (batch, time); 0 where the label is `IGNORED`.

    Differentiable in the hidden states and the weight, for losses that are not a plain sum.
    """
    kept = (labels_bt != IGNORED).flatten().nonzero().squeeze(1)
    hidden_nd = hidden_btd.flatten(0, 1).index_select(0, kept)
    logprobs_n: Tensor = _TokenLogprobs.apply(hidden_nd, weight_vd, labels_bt.flatten()[kept])
    flat = torch.zeros(labels_bt.numel(), device=hidden_btd.device)
    return flat.index_copy(0, kept, logprobs_n).view(labels_bt.shape)
