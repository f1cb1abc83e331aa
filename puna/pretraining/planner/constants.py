"""What the planner cannot know from formulas: a few numbers, fitted on published runs or assumed.

`puna plan --check` prints the runs, which of them these were fitted on, and what is left over.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Shares of a peak that are reached, and bytes that programs take beside what they must."""

    attention: float = 0.44
    """Rate of fused attention over the rate of large products. Fitted (8B at 32,768 tokens)."""
    ring: float = 0.79
    """What is left of it when keys and values go round a ring of more than two. Fitted."""
    float8: float = 1.64
    """Rate of float8 products, casts included, over that of bf16 products. Fitted."""
    eager: float = 2.85
    """Memory traffic between products when nothing is fused, over fused. Fitted."""
    overlapped_tp: float = 0.62
    """Share of tensor parallel's exchanges that asynchronous TP leaves exposed. Fitted."""
    node: float = 0.80
    """Share of the switch's peak that large collectives reach. Assumed, as nccl-tests show."""
    network: float = 0.80
    """The same of the network between nodes. Assumed."""
    memory: float = 0.85
    """Share of the memory's peak that streaming kernels reach. Assumed."""
    reserve: float = 1.07
    """Memory that the allocator holds over what is in use. Fitted (8B on 8 and on 128 GPUs)."""
    working: float = 1.0
    """What the backward pass of a block makes, over what a block keeps without recomputation."""
    logit_bytes: float = 12.0
    """Bytes for each logit where all are there at once and the loss is compiled: in bf16, in fp32,
    and both gradients."""
    eager_logit_bytes: float = 14.0
    """The same where the loss is not compiled, or parallel over the vocabulary."""


FITTED = Constants()
