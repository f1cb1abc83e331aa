"""What the planner is asked about: a model, its batches, a layout, and the machines."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from puna.core.errors import UsageError
from puna.model import LlamaConfig
from puna.parallel import Layout
from puna.pretraining.planner.hardware import Hardware

BF16, FP32 = 2, 4  # bytes of a number
Kept = Literal["none", "selective", "alternate", "full"]


@dataclass(frozen=True)
class Style:
    """How the training program does its work; the defaults are Puna's."""

    float8: bool = False
    """Products of the blocks in 8 bits."""
    compiled: bool = True
    """Whether what lies between products is fused."""
    logits: Literal["chunked", "whole"] = "chunked"
    """Logits of a chunk of tokens at a time, or of all at once."""
    wide_ends: bool = True
    """Whether embedding, norm and head are gathered in fp32, so that a process adds up their
    gradient, of all its tokens, in fp32; else in bf16 as the blocks are."""
    overlapped_tp: bool = False
    """Whether tensor parallel's exchanges run beside its products (asynchronous TP)."""
    ring: bool = False
    """Whether context parallel sends keys and values round a ring, not gathers them at once."""

    @property
    def end_bytes(self) -> int:
        """Bytes of a number of the ends once it is gathered."""
        return FP32 if self.wide_ends else BF16


PUNA = Style()


@dataclass(frozen=True)
class Job:
    """A step of training on a layout, and how often it is done.

    Attributes:
        model: its shape.
        gpu: what each process runs on.
        layout: how the processes share the work; ``dp_replicate`` at least 1.
        row_length: tokens in a row.
        rows: rows of a step for each of the layout's ``dp`` parts.
        micro_rows: rows in one forward pass of a stage.
        recompute: what blocks forget: ``none``, ``selective`` (all but results of products),
            ``alternate`` (results of every second product too), ``full``.
        style: how the program works.
    """

    model: LlamaConfig
    gpu: Hardware
    layout: Layout
    row_length: int
    rows: int
    micro_rows: int = 1
    recompute: Kept = "none"
    style: Style = PUNA

    def check(self) -> None:
        """Raise `UsageError`, naming the number to change, where something does not divide."""
        layout = self.layout
        layout.check_model(self.model)
        layout.check_batches(self.row_length, self.rows * layout.dp, 0)
        if self.rows % self.micro_rows:
            raise UsageError(
                f"{self.micro_rows} rows of a pass do not divide the {self.rows} rows of a part: "
                "change one of them"
            )
        if self.style.float8 and not self.gpu.fp8_tflops:
            raise UsageError(f"{self.gpu.about} has no float8 products: plan in bf16")

    @property
    def passes(self) -> int:
        """Forward passes of a step, through each stage: micro-batches."""
        return self.rows // self.micro_rows

    @property
    def tokens_of_pass(self) -> int:
        """Tokens that a process sees in one pass, with others of its context-parallel group apart.

        Those of its tensor-parallel group see the same.
        """
        return self.micro_rows * self.row_length // self.layout.cp

    @property
    def tokens_of_step(self) -> int:
        """Tokens of a step, over all processes."""
        return self.rows * self.layout.dp * self.row_length

    @property
    def layers_of_places(self) -> list[list[int]]:
        """For each place of the pipeline, the layers in each of its stages."""
        return _layers_of_places(self.layout, self.model.n_layers)

    def holds(self, place: int) -> tuple[bool, bool]:
        """Whether a place of the pipeline holds the embedding, and the head."""
        stages = self.layout.stages_of(place)
        return stages[0] == 0, stages[-1] == self.layout.stages - 1

    @property
    def kinds_of_places(self) -> dict[int, int]:
        """One place for each kind, the first, and how many there are of it.

        Places with as many layers in each stage, and as much of embedding and head, are alike.
        """
        first: dict[tuple[object, ...], int] = {}
        counts: Counter[int] = Counter()
        for place, layers in enumerate(self.layers_of_places):
            counts[first.setdefault((*layers, *self.holds(place)), place)] += 1
        return dict(counts)


@lru_cache(maxsize=4096)
def _layers_of_places(layout: Layout, n_layers: int) -> list[list[int]]:
    layers = layout.layers_of_stages(n_layers)
    return [[layers[s] for s in layout.stages_of(place)] for place in range(layout.pp)]
