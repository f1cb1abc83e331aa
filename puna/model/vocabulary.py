"""A head whose vocabulary is spread over processes: each has the logits of some of its rows.

Softmax and loss need three numbers of each token from the others: the largest logit, the sum of
exponentials and the label's logit (Shoeybi et al. 2019, "Megatron-LM", section 3).
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class VocabularyShard:
    """The rows of the vocabulary that this process has."""

    first: int
    """The first of them."""
    group: dist.ProcessGroup
    """The processes that have the others."""

    def logprobs(self, logits_nv: Tensor, labels_n: Tensor) -> Tensor:
        """Log-probability of each label (n,), fp32."""
        return self._softmax(logits_nv, labels_n)[0]

    def with_gradient(
        self, logits_nv: Tensor, labels_n: Tensor, scale_n: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`logprobs`, and cross-entropy's gradient in these logits, each row times its scale."""
        logprobs_n, softmax, place, own = self._softmax(logits_nv, labels_n)
        softmax.scatter_add_(1, place[:, None], -own[:, None].to(softmax.dtype))
        if scale_n is not None:
            softmax.mul_(scale_n[:, None])
        return logprobs_n, softmax.to(logits_nv.dtype)

    def likeliest(self, logits_nv: Tensor, labels_n: Tensor) -> Tensor:
        """Whether no token has a larger logit than the label: (n,)."""
        place = labels_n - self.first
        own = (place >= 0) & (place < logits_nv.shape[1])
        at_label = logits_nv.gather(1, place.where(own, 0)[:, None]).squeeze(1).float()
        both = torch.stack([logits_nv.amax(1).float(), at_label.where(own, -torch.inf)])
        dist.all_reduce(both, dist.ReduceOp.MAX, self.group)
        return both[0] == both[1]

    def _softmax(
        self, logits_nv: Tensor, labels_n: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities, the softmax, each label's column here, and whether it has one."""
        wide = logits_nv.float()
        place = labels_n - self.first
        own = (place >= 0) & (place < wide.shape[1])
        place = place.where(own, 0)
        at_label = wide.gather(1, place[:, None]).squeeze(1).where(own, 0.0)
        largest = wide.amax(1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self.group)
        exponentials = (wide - largest[:, None]).exp_()
        sums = torch.stack([exponentials.sum(1), at_label])
        dist.all_reduce(sums, group=self.group)
        total, at_label = sums
        return at_label - largest - total.log(), exponentials.div_(total[:, None]), place, own


def gathered(
    hidden_btd: Tensor, weight_vd: Tensor
) -> tuple[Tensor, Tensor, VocabularyShard | None]:
    """Both as plain tensors, and which rows of the head these are; None when they are all.

    A sharded head's hidden states are gathered, and their gradient, of which each process has the
    part that its rows give, is summed.
    """
    if type(weight_vd) in (Tensor, nn.Parameter):
        return hidden_btd, weight_vd, None
    from torch.distributed.tensor import DTensor, Partial, Replicate  # takes most of a second

    assert isinstance(weight_vd, DTensor)
    mesh = weight_vd.device_mesh
    local_vd = weight_vd.to_local()
    if isinstance(hidden_btd, DTensor):
        whole = hidden_btd.redistribute(placements=[Replicate()])
        hidden_btd = whole.to_local(grad_placements=[Partial()])
    shard = VocabularyShard(mesh.get_local_rank() * len(local_vd), mesh.get_group())
    return hidden_btd, local_vd, shard
