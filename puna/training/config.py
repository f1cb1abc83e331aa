"""The knobs every training method shares."""

from typing import Literal, Self

from pydantic import Field, model_validator

from puna.core.config import Config


class LoopConfig(Config):
    """How a model is optimised, whatever the objective."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_rows: int = Field(ge=1)
    """Rows of data in one optimizer step, over all processes and micro-batches."""
    micro_rows: int = Field(default=0, ge=0)
    """Rows in one forward pass; 0 takes the whole batch at once."""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """AdamW for everything, as Llama 3; the same with moments of 8 bits, in a quarter of their
    memory; or Muon for the blocks' matrices: far fewer steps."""
    optimizer_in_backward: bool = False
    """Update each weight within the backward pass and free its gradient. ``clip_norm`` then holds
    for each parameter's gradient by itself, and a step is one pass: ``micro_rows`` must be 0."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up to the peak."""
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1)
    """Where the cosine ends, as a fraction of the peak."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decoupled decay, on matrices only."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    precision: Literal["auto", "bf16", "fp32", "float8"] = "auto"
    """Data type of activations and products; auto is bf16 where the hardware has it. float8 is bf16
    with the products of the blocks in 8 bits: faster on GPUs from Hopper on, slower elsewhere."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What blocks forget and compute again in the backward pass: nothing, all but the results of
    their products, or everything; losses stay the same, bit for bit."""
    recompute_every: int = Field(default=1, ge=1)
    """With ``recompute``, every how many blocks forget."""
    offload_activations: bool = False
    """With ``recompute`` on a GPU, keep in the host's memory what blocks keep. Nothing on CPU."""
    compile: bool = False
    """Compile each block with torch.compile: slower first step, faster others."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(default=10, ge=1)
    """Steps between progress events."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.optimizer_in_backward and self.micro_rows not in (0, self.batch_rows):
            raise ValueError(
                f"optimizer_in_backward updates after one pass, micro_rows {self.micro_rows} makes "
                "several: set it to 0"
            )
        if self.recompute == "none" and (self.offload_activations or self.recompute_every > 1):
            raise ValueError(
                "offload_activations and recompute_every need recompute: set it to full"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}: lower it"
            )
        if self.micro_rows and self.batch_rows % self.micro_rows:
            raise ValueError(
                f"batch_rows {self.batch_rows} is not a multiple of micro_rows {self.micro_rows}"
            )
        return self
