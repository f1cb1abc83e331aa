"""Low-rank adapters: small trained changes to the products of a frozen model.

LoRA (Hu et al. 2021): ``y = W x + scale * B A x`` with A (rank, inputs) and B (outputs, rank).
rsLoRA (Kalajdzievski 2023) scales by alpha / sqrt(rank) in place of alpha / rank. DoRA (Liu et al.
2024) trains the length of each row of ``W + scale * B A`` apart from its direction. QLoRA
(Dettmers et al. 2023) holds the frozen weights in 4 bits. All are put on a model from outside.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.random import stable_seed
from puna.model.linear import Linear
from puna.model.llama import Llama
from puna.model.nf4 import NF4Linear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BLOCKS = re.compile(r"^layers\\\..*?\\\.")  # of `layers\.[89]\.\S+_proj`


class LoraPattern(Config):
    """What differs for the products that a pattern names; None is as for the others."""

    rank: int | None = Field(default=None, ge=1)
    """Rank of their changes."""
    alpha: float | None = Field(default=None, gt=0)
    """Their alpha."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Their dropout."""


class LoraConfig(Config):
    """Which products of the blocks get an adapter, and of what kind."""

    rank: int = Field(default=16, ge=1)
    """Rank of the changes."""
    alpha: float = Field(default=32.0, gt=0)
    """Over the rank, what the changes are multiplied with."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs left out at random while gradients are recorded."""
    targets: tuple[str, ...] = Field(default=PROJECTIONS, min_length=1)
    """Names of products, or regular expressions of the end of their full names."""
    patterns: dict[str, LoraPattern] = Field(default_factory=dict)
    """Other settings for some of them, by name or expression; the first that fits counts."""
    rslora: bool = False
    """Divide alpha by the root of the rank: large ranks keep their effect."""
    dora: bool = False
    """Train lengths and directions of the weights' rows apart."""
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """How A is drawn: uniform within 1 / sqrt(inputs), or normal with std 1 / rank; B is zero."""
    base: Literal["kept", "bf16", "nf4"] = "kept"
    """How the frozen weights are held: as they are, in bf16, or the blocks in 4 bits (QLoRA)."""

    def of(self, product: str) -> "LoraConfig":
        """The settings for one product, its pattern applied."""
        for pattern, change in self.patterns.items():
            if _fits(pattern, product):
                return self.model_copy(update=change.model_dump(exclude_none=True))
        return self

    def scale(self) -> float:
        """What the product of B and A is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoRALinear(nn.Module):
    """A frozen product with its trained change.

    Args:
        base: the frozen product.
        config: rank, alpha, dropout and kind of this change.
        generator: A is drawn from it.

    Attributes:
        config: as given.
        scale: what the product of B and A is multiplied with.
        enabled: whether the change acts.
        magnitude: with DoRA the trained lengths of the weight's rows (outputs,), else None.
    """

    base_square: Tensor

    def __init__(
        self, base: Linear | NF4Linear, config: LoraConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base
        self.config, self.scale = config, config.scale()
        self.enabled = True
        outputs, inputs = _shape(base)
        device = next(base.buffers() if isinstance(base, NF4Linear) else base.parameters()).device
        drawn = draw_down(config, inputs, generator)
        self.lora_A = nn.Parameter(drawn.to(device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, config.rank, device=device))
        self.magnitude: nn.Parameter | None = None
        if config.dora:
            square = dense_weight(base).square().sum(1)
            self.register_buffer("base_square", square, persistent=False)
            self.magnitude = nn.Parameter(square.sqrt())

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.base(x)
        if not self.enabled:
            return product
        # scoring and sampling record no gradients, so they need no switch to be exact
        drop = self.config.dropout if torch.is_grad_enabled() else 0.0
        low = F.linear(F.dropout(x, drop) if drop else x, self.lora_A.to(x.dtype)) * self.scale
        product = product + F.linear(low, self.lora_B.to(x.dtype))
        if self.magnitude is None:
            return product
        return product * (self.magnitude / self.row_lengths()).to(x.dtype)

    @torch.no_grad()
    def row_lengths(self) -> Tensor:
        """Length of each row of ``W + scale * B A`` (outputs,), a constant in DoRA's gradient.

        Its section 4.3. From |w + c|^2 = |w|^2 + 2 w.c + |c|^2 with c a row of the change, so no
        matrix of the weight's size is made.
        """
        down, up = self.lora_A, self.scale * self.lora_B
        crossed = (self.base(down).T * up).sum(1)
        changed = ((up @ (down @ down.T)) * up).sum(1)
        return (self.base_square + 2 * crossed + changed).clamp(min=0).sqrt()


def draw_down(config: LoraConfig, inputs: int, generator: torch.Generator) -> Tensor:
    """A fresh A (rank, inputs), as ``config.init`` says."""
    drawn = torch.empty(config.rank, inputs, device="cpu")
    if config.init == "kaiming":
        return drawn.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return drawn.normal_(0.0, 1 / config.rank, generator=generator)


def generator_of(seed: int, product: str) -> torch.Generator:
    """What the A of a product is drawn from."""
    return torch.Generator().manual_seed(stable_seed(seed, "lora", product))


def add_lora(model: Llama, config: LoraConfig, *, seed: int = 0) -> None:
    """Freeze ``model`` and give the products that ``config`` names an adapter, in place.

    The model computes what it did before, since B starts at zero. Only adapters are trained, and a
    head that is not over the vocabulary, such as a reward model's. A is drawn for each product by
    the seed and its name, whatever the other targets.

    Raises `UsageError` for a target that fits no product and for a model with adapters.
    """
    if any(True for _ in lora_layers(model)):
        raise UsageError("the model has an adapter already: merge it before adding another")
    chosen = _chosen(model, config)
    for parameter in _base_parameters(model):
        parameter.requires_grad = False
    freeze_base(model, config.base)
    for name in chosen:
        base = model.get_submodule(name)
        assert isinstance(base, Linear | NF4Linear)
        replace_module(model, name, LoRALinear(base, config.of(name), generator_of(seed, name)))


def of_any_block(target: str) -> str:
    r"""A target without the blocks it names: ``layers\.[89]\.\S+_proj`` is ``\S+_proj``.

    For a model with fewer blocks that stands for a larger one.
    """
    return _BLOCKS.sub("", target)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Name and layer of each product with an adapter, e.g. ``model.layers.0.mlp.up_proj``."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Within, the model computes what its base does: the reference of DPO and PPO for free.

    With checkpointed activations, run the backward pass of what was computed here in here too.
    """
    layers = [layer for _, layer in lora_layers(model)]
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


@torch.no_grad()
def weaken(model: nn.Module, strength: float) -> None:
    """Keep this share of what every adapter changes, in place.

    Raises `UsageError` for DoRA, whose change is more than a sum.
    """
    for _, layer in lora_layers(model):
        if layer.magnitude is not None:
            raise UsageError("an adapter with dora has no strength: leave out one of the two")
        layer.lora_B.mul_(strength)


@torch.no_grad()
def freeze_base(model: Llama, base: Literal["kept", "bf16", "nf4"]) -> None:
    """Hold the model's weights as `LoraConfig.base` says, one product after the other."""
    if base == "nf4":
        for name, module in list(model.model.layers.named_modules(prefix="model.layers")):
            if isinstance(module, Linear):
                replace_module(model, name, NF4Linear(module.weight))
    if base != "kept":
        for parameter in _base_parameters(model):
            parameter.data = parameter.data.bfloat16()


def _base_parameters(model: Llama) -> Iterator[nn.Parameter]:
    """Those of the language model: blocks, embedding and the head over the vocabulary."""
    yield from model.model.parameters()
    if model.lm_head is not None:
        yield from model.lm_head.parameters()


def dense_weight(base: Linear | NF4Linear) -> Tensor:
    """The weight of a product (outputs, inputs) in fp32."""
    if isinstance(base, NF4Linear):
        return base.dequantize(torch.float32)
    return base.weight.detach().float()


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``model`` has one of this name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _shape(base: Linear | NF4Linear) -> torch.Size:
    return base.shape if isinstance(base, NF4Linear) else base.weight.shape


def _chosen(model: Llama, config: LoraConfig) -> list[str]:
    """Names of the products that some target fits."""
    products = [
        name
        for name, module in model.model.layers.named_modules(prefix="model.layers")
        if isinstance(module, Linear | NF4Linear)
    ]
    for pattern in (*config.targets, *config.patterns):
        if not any(_fits(pattern, name) for name in products):
            raise UsageError(
                f"lora: {pattern!r} fits no product of the blocks: name some of "
                f"{', '.join(PROJECTIONS)}, or write an expression such as "
                r"'layers\.[01]\.mlp\..*'"
            )
    return [name for name in products if any(_fits(p, name) for p in config.targets)]


def _fits(pattern: str, product: str) -> bool:
    """Whether a pattern matches the end of a product's name, as PEFT looks patterns up."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", product) is not None
    except re.error as error:
        raise UsageError(f"lora: the pattern {pattern!r} is broken: {error}") from error
