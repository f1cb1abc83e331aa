"""LoRA adapters in PEFT's folders: ``adapter_config.json`` and ``adapter_model.safetensors``.

LoRA (Hu et al. 2021) adds a product of two thin matrices to a layer's own product.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.formats.hf_config import read_json

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
_TENSOR = re.compile(
    r"base_model\.model\.(?P<product>model\.layers\.\d+\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))"
    r"_proj)\.lora_(?P<side>[AB])\.weight"
)
# Settings that change what is computed beyond the two matrices; each must be off.
_REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Ways to start that leave the model's own weights as they are; PiSSA, OLoRA and others do not.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a product: ``y += up @ (down @ x)``, in fp32."""

    down_ri: Tensor
    """(rank, inputs)."""
    up_or: Tensor
    """(outputs, rank); the adapter's scale is in it."""


class _Settings(Config):
    r: int = Field(ge=1)
    """Rank of the changes."""
    lora_alpha: float = Field(allow_inf_nan=False)
    """Over the rank, what the changes are multiplied with."""
    use_rslora: bool = False
    """Divide by the root of the rank instead (Kalajdzievski 2023)."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Ranks of products by regular expression."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Alphas likewise."""

    def scale(self, product: str, rank: int) -> float:
        """Of the change to ``product``: alpha / rank, and with rsLoRA alpha / sqrt(rank)."""
        alpha = _by_pattern(self.alpha_pattern, product, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def load_lora(folder: Path) -> dict[str, LowRank]:
    """The changes that the adapter in ``folder`` makes, by product: ``model.layers.0.mlp.up_proj``.

    Raises `UsageError` naming the file and the key or tensor that is missing, broken or of a kind
    that is more than LoRA on the products of blocks.
    """
    path, settings = folder / TENSORS, _read_settings(folder)
    sides = _read_sides(folder)
    changes = {}
    for product, pair in sides.items():
        if len(pair) < 2:
            lacking = "B" if "A" in pair else "A"
            raise UsageError(f"{path}: {product} lacks its lora_{lacking}: save the adapter again")
        down, up = pair["A"].float(), pair["B"].float()
        rank = _by_pattern(settings.rank_pattern, product, settings.r)
        if down.ndim != 2 or up.ndim != 2 or not down.shape[0] == up.shape[1] == rank:
            raise UsageError(
                f"{path}: {product} has matrices of shapes {tuple(down.shape)} and "
                f"{tuple(up.shape)}, and {CONFIG} says rank {rank}: save the adapter again"
            )
        changes[product] = LowRank(down, up * settings.scale(product, rank))
    return changes


def _read_settings(folder: Path) -> _Settings:
    path = folder / CONFIG
    if not path.exists():
        raise UsageError(f"{folder} holds no {CONFIG}: name the folder of a PEFT adapter")
    found = read_json(path)
    for key, only in (("peft_type", "LORA"), ("bias", "none")):
        if found.get(key, only) != only:
            raise UsageError(f"{path}: '{key}' is {found[key]!r}: only '{only}' is supported")
    for key in _REFUSED:
        if found.get(key):
            raise UsageError(
                f"{path}: '{key}' is {found[key]!r}, which is not supported: use plain LoRA"
            )
    start = found.get("init_lora_weights")
    if start not in _STARTS:
        raise UsageError(
            f"{path}: 'init_lora_weights' is {start!r}, which changes the model's own weights: "
            "save it with PEFT's path_initial_model_for_weight_conversion"
        )
    given = {key: found[key] for key in _Settings.model_fields if found.get(key) is not None}
    return _Settings.parse(given, where=str(path))


def _read_sides(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The matrices A and B of each product."""
    path = folder / TENSORS
    if not path.exists():
        raise UsageError(_why_no_tensors(folder))
    sides: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                match = _TENSOR.fullmatch(name)
                if match is None:
                    raise UsageError(
                        f"{path}: the tensor {name!r} is no LoRA of a product in a block: adapt "
                        "the projections q, k, v, o, gate, up and down only"
                    )
                sides.setdefault(match["product"], {})[match["side"]] = file.get_tensor(name)
    except SafetensorError as error:
        raise UsageError(f"{path} is truncated or damaged: fetch it again") from error
    if not sides:
        raise UsageError(f"{path} holds no tensors: save the adapter again")
    return sides


def _why_no_tensors(folder: Path) -> str:
    if (folder / PICKLE).exists():
        return (
            f"{folder}: {PICKLE} is a pickle, which can run code when opened: where you trust it, "
            "save the adapter as safetensors with PEFT's save_pretrained"
        )
    return f"{folder} holds no {TENSORS}: fetch the adapter again"


def _by_pattern(patterns: dict[str, Any], product: str, default: Any) -> Any:
    """The first value whose pattern matches the end of a product's name, as PEFT looks it up."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", product):
                return value
        except re.error as error:
            raise UsageError(f"{CONFIG}: the pattern {pattern!r} is broken: {error}") from error
    return default
