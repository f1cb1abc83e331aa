"""Distillation: a student learns the whole distribution of a teacher, not only the next token.

Hinton et al. 2015; for language models forward, reverse and symmetric KL compare in Gu et al. 2023
(arXiv 2306.08543). Logits of both are made for a chunk of tokens at a time and made again in the
backward pass, so none of shape (tokens, vocabulary) is kept.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from puna.alignment.losses import forward_kl, reverse_kl, symmetric_kl
from puna.core.config import Config
from puna.core.errors import UsageError
from puna.data import Batch
from puna.model import IGNORED, Llama, cross_entropy_sum
from puna.training import Outcome

CHUNK_BYTES = 32 * 1024**2  # of one side's fp32 logits; a handful of such tensors are alive at once
_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "symmetric": symmetric_kl,
}


class DistillConfig(Config):
    """The knobs of distillation."""

    divergence: Literal["forward", "reverse", "symmetric"] = "forward"
    """KL(teacher || student), which covers all the teacher says; KL(student || teacher), which
    keeps to what it says most; or their mean."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both logits; the loss is multiplied with its square, which keeps gradients' size."""
    label_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of plain next-token loss in the sum; the divergence has the rest."""


class DistillObjective:
    """Divergence from a frozen teacher, summed over the labelled positions of packed rows.

    Args:
        config: which divergence.
        teacher: a model of the same vocabulary; it may be wider or narrower.
    """

    def __init__(self, config: DistillConfig, teacher: Llama) -> None:
        self.config, self.teacher = config, teacher.requires_grad_(requires_grad=False)

    def __call__(self, model: Llama, batch: Batch) -> Outcome:
        if self.teacher.config.vocab_size != model.config.vocab_size:
            raise UsageError(
                f"the teacher has {self.teacher.config.vocab_size} tokens, the student "
                f"{model.config.vocab_size}: distil between models of one tokenizer"
            )
        with torch.no_grad():
            taught = _hidden(self.teacher, batch)
        hidden = _hidden(model, batch)
        kept = (batch.labels != IGNORED).flatten().nonzero().squeeze(1)
        student_nd, teacher_nd = (h.flatten(0, 1).index_select(0, kept) for h in (hidden, taught))
        total = self._divergence(
            student_nd, model.head_weight(), teacher_nd, self.teacher.head_weight()
        )
        metrics = {"divergence": float(total.detach())}
        weight = self.config.label_weight
        if weight:
            likelihood, _ = cross_entropy_sum(hidden, model.head_weight(), batch.labels)
            metrics["nll"] = float(likelihood.detach())
            total = (1 - weight) * total + weight * likelihood
        return Outcome(total, len(kept), metrics)

    def _divergence(
        self, student_nd: Tensor, student_vd: Tensor, teacher_nd: Tensor, teacher_vd: Tensor
    ) -> Tensor:
        """Summed over n positions, a chunk at a time."""
        total = torch.zeros((), device=student_nd.device)
        for part in _chunks(len(student_nd), len(student_vd)):
            sides = (student_nd[part], student_vd, teacher_nd[part], teacher_vd)
            total = total + checkpoint(self._of_chunk, *sides, use_reentrant=False)
        return total

    def _of_chunk(
        self, student_nd: Tensor, student_vd: Tensor, teacher_nd: Tensor, teacher_vd: Tensor
    ) -> Tensor:
        heat = self.config.temperature
        student_nv = F.linear(student_nd, student_vd.to(student_nd.dtype)).float() / heat
        teacher_nv = F.linear(teacher_nd, teacher_vd.to(teacher_nd.dtype)).float() / heat
        divergence = _DIVERGENCES[self.config.divergence]
        return divergence(student_nv, teacher_nv).sum() * heat**2


def _hidden(model: Llama, batch: Batch) -> Tensor:
    return model.hidden(batch.ids, positions_bt=batch.positions, documents_bt=batch.documents)


def _chunks(n_tokens: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return (slice(start, start + size) for start in range(0, n_tokens, size))
