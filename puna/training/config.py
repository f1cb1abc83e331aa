"""The knobs every training method shares."""

from typing import Literal, Self

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.parallel import Layout

CIRCUMSTANCES = (
    "layout", "checkpoint_async", "durable", "durable_every", "trace_step", "trace_to",
)  # fmt: skip
"""Fields that change no result: a run goes on with other values of them."""


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
    cosine_steps: int = Field(default=0, ge=0)
    """Steps from the first to the cosine's end; 0 ends it with the last one."""
    anneal_steps: int = Field(default=0, ge=0)
    """Last steps, in which the rate falls linearly to 0 from where the cosine has come to."""
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
    checkpoint_async: bool = False
    """Write checkpoints while training goes on, from a copy of the state in the host's memory."""
    durable: str = ""
    """Where rarer checkpoints are copied to, to outlive the machine: a place that fsspec knows,
    such as ``s3://bucket/run``; empty for nowhere."""
    durable_every: int = Field(default=1000, ge=1)
    """Steps between those, a multiple of ``checkpoint_every``; the last is always copied."""
    log_every: int = Field(default=10, ge=1)
    """Steps between progress events."""
    trace_step: int = Field(default=0, ge=0)
    """Step whose operations are written down as a trace, to be opened in Perfetto; 0 for none."""
    trace_to: str = "traces"
    """Folder of traces, one file for each process."""
    layout: Layout = Layout()
    """How several processes share the work; it changes neither data nor results, and a run may go
    on with another one."""

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
        if self.layout.async_tp and not self.compile:
            raise ValueError("layout.async_tp is of compiled blocks: set compile to true")
        if self.optimizer == "adamw8bit" and not self.layout.only_replicas:
            raise ValueError(
                "optimizer adamw8bit keeps moments in blocks of whole matrices, the layout spreads "
                "them: set it to adamw, whose moments are spread too"
            )
        if self.durable and self.durable_every % self.checkpoint_every:
            raise ValueError(
                f"durable_every {self.durable_every} is no multiple of checkpoint_every "
                f"{self.checkpoint_every}: make it one"
            )
        if self.precision == "float8" and self.layout.tp > 1:
            raise ValueError("precision float8 multiplies whole matrices: set layout.tp to 1")
        if self.anneal_steps > self.steps:
            raise ValueError(
                f"anneal_steps {self.anneal_steps} exceeds steps {self.steps}: lower it"
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
