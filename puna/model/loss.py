"""The head and its loss in chunks, so logits of shape (tokens, vocabulary) never exist at once.

Chunks of tokens pass through head, softmax and loss one after the other; of their logits nothing is
kept. On CPU the logits of a chunk take at most `CHUNK_BYTES`, whatever the batch. A GPU needs
longer products to be busy: there a chunk is a 24th of the tokens, and softmax, loss and gradient
are one compiled kernel that reads the logits as the product made them.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.model.vocabulary import VocabularyShard, gathered

CHUNK_BYTES = 64 * 1024**2
CPU_ROWS = 512  # of a chunk on CPU, at most: a small vocabulary's logits then stay in its cache
STRIPE = 8192  # rows of the head's gradient made at once
GPU_CHUNKS = 24  # logits and their gradient in bf16: 1/24 of what all logits take in fp32
GPU_ROWS = (256, 2048)  # of a chunk on a GPU, at least and at most
IGNORED = -100  # label of a position without a target


def chunk_rows(n_tokens: int, weight_vd: Tensor) -> int:
    """Tokens whose logits are made at once, at most."""
    if weight_vd.is_cuda:
        return min(max(n_tokens // GPU_CHUNKS, GPU_ROWS[0]), GPU_ROWS[1])
    return min(max(1, CHUNK_BYTES // (4 * len(weight_vd))), CPU_ROWS)


def _chunks(n_tokens: int, weight_vd: Tensor) -> Iterator[slice]:
    """Slices of the tokens, one for each chunk."""
    size = chunk_rows(n_tokens, weight_vd)
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


def _read_once(logits_nv: Tensor, labels_n: Tensor) -> Tensor:
    """Log-probability of each label (n,); to be compiled into one kernel."""
    wide = logits_nv.float()
    at_label = wide.gather(1, labels_n[:, None]).squeeze(1)
    return at_label - wide.logsumexp(1)


def _read_twice(
    logits_nv: Tensor, labels_n: Tensor, scale_n: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`_read_once` and the gradient of cross-entropy, by scale; to be compiled into two kernels."""
    wide = logits_nv.float()
    total = wide.logsumexp(1)
    at_label = wide.gather(1, labels_n[:, None]).squeeze(1)
    places = torch.arange(wide.shape[1], device=wide.device)
    gradient = (wide - total[:, None]).exp() - (places == labels_n[:, None]).float()
    if scale_n is not None:
        gradient = gradient * scale_n[:, None]
    return at_label - total, gradient.to(logits_nv.dtype)


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)


def _logprobs(
    hidden_nd: Tensor, cast_vd: Tensor, labels_n: Tensor, shard: VocabularyShard | None
) -> Tensor:
    """Log-probability of each label (n,), fp32."""
    if shard is not None:
        return shard.logprobs(F.linear(hidden_nd, cast_vd), labels_n)
    if hidden_nd.is_cuda:
        logprobs_n: Tensor = _compiled(_read_once)(F.linear(hidden_nd, cast_vd), labels_n)
        return logprobs_n
    return _softmax_in_place(F.linear(hidden_nd, cast_vd).float(), labels_n)


def _with_gradient(
    hidden_nd: Tensor,
    cast_vd: Tensor,
    labels_n: Tensor,
    scale_n: Tensor | None = None,
    shard: VocabularyShard | None = None,
) -> tuple[Tensor, Tensor]:
    """`_logprobs`, and cross-entropy's gradient in the logits, each row times its scale."""
    if shard is not None:
        return shard.with_gradient(F.linear(hidden_nd, cast_vd), labels_n, scale_n)
    if hidden_nd.is_cuda:
        logits = F.linear(hidden_nd, cast_vd)
        made: tuple[Tensor, Tensor] = _compiled(_read_twice)(logits, labels_n, scale_n)
        return made
    softmax = F.linear(hidden_nd, cast_vd).float()
    logprobs_n = _softmax_in_place(softmax, labels_n)
    gradient = _minus_target(softmax, labels_n)
    if scale_n is not None:
        gradient.mul_(scale_n[:, None])
    return logprobs_n, gradient.to(hidden_nd.dtype)


class _SummedLoss(torch.autograd.Function):
    """Sum of cross-entropies; gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        labels_n: Tensor,
        kept_n: Tensor,
        shard: VocabularyShard | None,
    ) -> Tensor:
        cast = weight_vd.to(hidden_nd.dtype)
        total = torch.zeros((), device=hidden_nd.device)
        of_hidden, of_weight, *_ = ctx.needs_input_grad
        hidden_grad = torch.zeros_like(hidden_nd) if of_hidden else None
        weight_grad = torch.zeros_like(weight_vd) if of_weight else None
        for part in _chunks(len(kept_n), weight_vd):
            seen_nd, labels = hidden_nd[kept_n[part]], labels_n[part]
            if not (of_hidden or of_weight):
                total -= _logprobs(seen_nd, cast, labels, shard).sum()
                continue
            logprobs, gradient = _with_gradient(seen_nd, cast, labels, shard=shard)
            total -= logprobs.sum()
            _spread(gradient, cast, seen_nd, kept_n[part], hidden_grad, weight_grad)
            del gradient  # before that of the next chunk is made
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        made: tuple[Tensor | None, Tensor | None] = ctx.saved_tensors
        if bool(grad == 1):
            return *made, None, None, None
        scaled = (None if each is None else each * grad.to(each.dtype) for each in made)
        return *scaled, None, None, None


def _spread(
    gradient_nv: Tensor,
    cast_vd: Tensor,
    seen_nd: Tensor,
    rows_n: Tensor,
    hidden_grad: Tensor | None,
    weight_grad: Tensor | None,
) -> None:
    """From the gradient in a chunk's logits to those in its hidden states and in the weight.

    A frozen head has no gradient of its own. That of a trained one is added up in stripes of the
    vocabulary, so no second matrix of its size is made.
    """
    if hidden_grad is not None:
        hidden_grad[rows_n] = gradient_nv @ cast_vd
    if weight_grad is None:
        return
    if weight_grad.is_cuda and gradient_nv.dtype == torch.bfloat16:
        # A GPU adds up in fp32 as it multiplies.
        torch.addmm(weight_grad, gradient_nv.T, seen_nd, out_dtype=torch.float32, out=weight_grad)
        return
    for start in range(0, len(weight_grad), STRIPE):
        rows = slice(start, start + STRIPE)
        weight_grad[rows] += gradient_nv[:, rows].T @ seen_nd


def _labelled(
    hidden_btd: Tensor, weight_vd: Tensor, labels_bt: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, VocabularyShard | None]:
    """All hidden states (n, d), the weight that is here, the labels, their places, the shard."""
    hidden_btd, weight_vd, shard = gathered(hidden_btd, weight_vd)
    kept_n = (labels_bt != IGNORED).flatten().nonzero().squeeze(1)
    return hidden_btd.flatten(0, 1), weight_vd, labels_bt.flatten()[kept_n], kept_n, shard


def cross_entropy_sum(
    hidden_btd: Tensor, weight_vd: Tensor, labels_bt: Tensor
) -> tuple[Tensor, int]:
    """Cross-entropy summed over positions with a label, and their number.

    Args:
        hidden_btd: final hidden states, any floating type.
        weight_vd: the head's weight; its rows may be spread over processes (DTensor).
        labels_bt: target ids; `IGNORED` where there is none.

    Returns:
        The sum in nats (fp32 scalar, to be differentiated once) and the count.
    """
    hidden_nd, weight_vd, labels_n, kept_n, shard = _labelled(hidden_btd, weight_vd, labels_bt)
    loss: Tensor = _SummedLoss.apply(hidden_nd, weight_vd, labels_n, kept_n, shard)
    return loss, len(kept_n)


@torch.no_grad()
def likeliest(hidden_btd: Tensor, weight_vd: Tensor, labels_bt: Tensor) -> Tensor:
    """Whether each label, where there is one, is the likeliest token: (n,), row after row."""
    hidden_nd, weight_vd, labels_n, kept_n, shard = _labelled(hidden_btd, weight_vd, labels_bt)
    logits_nv = F.linear(hidden_nd.index_select(0, kept_n), weight_vd.to(hidden_nd.dtype))
    if shard is not None:
        return shard.likeliest(logits_nv, labels_n)
    return logits_nv.argmax(1) == labels_n


class _TokenLogprobs(torch.autograd.Function):
    """Log-probability of each label; the backward pass computes the logits anew."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        labels_n: Tensor,
        kept_n: Tensor,
        shard: VocabularyShard | None,
    ) -> Tensor:
        cast = weight_vd.to(hidden_nd.dtype)
        logprobs = torch.empty(len(kept_n), device=hidden_nd.device)
        for part in _chunks(len(kept_n), weight_vd):
            logprobs[part] = _logprobs(hidden_nd[kept_n[part]], cast, labels_n[part], shard)
        ctx.save_for_backward(hidden_nd, weight_vd, labels_n, kept_n)
        ctx.shard = shard
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        hidden_nd, weight_vd, labels_n, kept_n = ctx.saved_tensors
        cast = weight_vd.to(hidden_nd.dtype)
        hidden_grad = torch.zeros_like(hidden_nd) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight_vd) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(kept_n), weight_vd):
            seen_nd = hidden_nd[kept_n[part]]
            _, gradient = _with_gradient(seen_nd, cast, labels_n[part], -grad_n[part], ctx.shard)
            _spread(gradient, cast, seen_nd, kept_n[part], hidden_grad, weight_grad)
            del gradient
        return hidden_grad, weight_grad, None, None, None


def token_logprobs(hidden_btd: Tensor, weight_vd: Tensor, labels_bt: Tensor) -> Tensor:
    """Log-probability (nats, fp32) of each label, (batch, time); 0 where the label is `IGNORED`.

    Differentiable in the hidden states and the weight, for losses that are not a plain sum.
    """
    hidden_nd, weight_vd, labels_n, kept_n, shard = _labelled(hidden_btd, weight_vd, labels_bt)
    logprobs_n: Tensor = _TokenLogprobs.apply(hidden_nd, weight_vd, labels_n, kept_n, shard)
    flat = torch.zeros(labels_bt.numel(), device=hidden_nd.device)
    return flat.index_copy(0, kept_n, logprobs_n).view(labels_bt.shape)
