"""LoRA adapters in PEFT's folders: ``adapter_config.json`` and ``adapter_model.safetensors``.

LoRA (Hu et al. 2021) adds a product of two thin matrices to a layer's own product. For inference
`load_lora` reads what is added; for training `load_adapter` puts it on a model and `save_adapter`
writes it, DoRA included.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.files import new_folder, write_json
from puna.formats.hf_config import read_json
from puna.model import Llama, LoraConfig, add_lora
from puna.model.lora import LoRALinear, lora_layers

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
_TENSOR = re.compile(
    r"base_model\.model\.(?P<product>model\.layers\.\d+\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))"
    r"_proj)\.lora_(?P<side>[AB]\.weight|magnitude_vector)"
)
_DOWN, _UP, _MAGNITUDE = "A.weight", "B.weight", "magnitude_vector"
# Settings that change what is computed beyond the two matrices; each must be off.
_REFUSED = (
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
    use_dora: bool = False
    """Lengths of the weights' rows are trained apart (Liu et al. 2024)."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs left out while training."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Ranks of products by regular expression."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Alphas likewise."""

    def of(self, product: str) -> tuple[int, float]:
        """Rank and alpha of the change to ``product``."""
        rank = _by_pattern(self.rank_pattern, product, self.r)
        return rank, _by_pattern(self.alpha_pattern, product, self.lora_alpha)


def load_lora(folder: Path) -> dict[str, LowRank]:
    """The changes that the adapter in ``folder`` makes, by product: ``model.layers.0.mlp.up_proj``.

    Raises `UsageError` naming the file and the key or tensor that is missing, broken or of a kind
    that is more than LoRA on the products of blocks.
    """
    settings = _read_settings(folder)
    if settings.use_dora:
        raise UsageError(
            f"{folder / CONFIG}: 'use_dora' is True, which is not supported beside a running "
            "model: merge it into the model, or use plain LoRA"
        )
    changes = {}
    for product, sides in _read_sides(folder, settings).items():
        rank, alpha = settings.of(product)
        scale = alpha / (math.sqrt(rank) if settings.use_rslora else rank)
        changes[product] = LowRank(sides[_DOWN], sides[_UP] * scale)
    return changes


def load_adapter(
    folder: Path, model: Llama, *, base: Literal["kept", "bf16", "nf4"] = "kept"
) -> None:
    """Put the adapter in ``folder`` on ``model``, to train it further or to merge it.

    Args:
        base: how the frozen weights are held, as in `LoraConfig`.

    Raises `UsageError` as `load_lora` does, and for an adapter made for another model.
    """
    settings = _read_settings(folder)
    sides = _read_sides(folder, settings)
    ranks = {product: settings.of(product) for product in sides}
    fields: dict[str, Any] = {
        "rank": settings.r,
        "alpha": settings.lora_alpha,
        "dropout": settings.lora_dropout,
        "targets": list(sides),
        "patterns": {name: {"rank": r, "alpha": alpha} for name, (r, alpha) in ranks.items()},
        "rslora": settings.use_rslora,
        "dora": settings.use_dora,
        "base": base,
    }
    _check_fit(model, sides, folder)
    add_lora(model, LoraConfig.parse(fields, where=str(folder / CONFIG)))
    with torch.no_grad():
        for product, layer in lora_layers(model):
            for side, parameter in _trained(layer).items():
                parameter.copy_(sides[product][side])


def save_adapter(folder: Path, model: Llama, base_model: str) -> None:
    """Write the adapter of ``model`` as PEFT does; the folder appears whole or not at all.

    Args:
        base_model: name or path of the model it changes, ``base_model_name_or_path``.

    Raises `UsageError` for a model without one.
    """
    write_adapter(folder, model, base_model, adapter_tensors(model))


def adapter_tensors(
    model: Llama, whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """What is trained of an adapter, by its names in PEFT's files; ``whole`` gathers each tensor.

    Raises `UsageError` for a model without one.
    """
    layers = dict(lora_layers(model))
    if not layers:
        raise UsageError("the model has no adapter to save: train one first")
    return {
        f"base_model.model.{product}.lora_{side}": whole(parameter.detach()).cpu().contiguous()
        for product, layer in layers.items()
        for side, parameter in _trained(layer).items()
    }


def write_adapter(folder: Path, model: Llama, base_model: str, tensors: dict[str, Tensor]) -> None:
    """Write ``tensors``, those of the adapter of ``model``, as `save_adapter` does."""
    with new_folder(folder) as building:
        write_json(building / CONFIG, _config_json(model, dict(lora_layers(model)), base_model))
        save_file(tensors, building / TENSORS, metadata={"format": "pt"})


def _trained(layer: LoRALinear) -> dict[str, Tensor]:
    """The trained parameters of a product by their names in PEFT's files."""
    both: dict[str, Tensor] = {_DOWN: layer.lora_A, _UP: layer.lora_B}
    return both if layer.magnitude is None else both | {_MAGNITUDE: layer.magnitude}


def _config_json(model: Llama, layers: dict[str, LoRALinear], base_model: str) -> dict[str, Any]:
    """PEFT's configuration; ranks and alphas that differ from the most common are patterns."""
    of = {product: layer.config for product, layer in layers.items()}
    rank = Counter(config.rank for config in of.values()).most_common(1)[0][0]
    alpha = Counter(config.alpha for config in of.values()).most_common(1)[0][0]
    some = next(iter(of.values()))
    short = {product.rpartition(".")[2] for product in of}
    everywhere = len(of) == len(short) * model.config.n_layers
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(config.dropout for config in of.values()),
        "target_modules": sorted(short if everywhere else of),
        "rank_pattern": {name: c.rank for name, c in of.items() if c.rank != rank},
        "alpha_pattern": {name: c.alpha for name, c in of.items() if c.alpha != alpha},
        "use_rslora": some.rslora,
        "use_dora": some.dora,
        "bias": "none",
        "inference_mode": True,
    }


def _check_fit(model: Llama, sides: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Raise `UsageError` unless the products exist in ``model`` and have these shapes."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for product, pair in sides.items():
        wanted = shapes.get(f"{product}.weight")
        if wanted is None:
            raise UsageError(f"{folder}: the model has no {product}: load an adapter made for it")
        found = (pair[_UP].shape[0], pair[_DOWN].shape[1])
        if found != wanted:
            raise UsageError(
                f"{folder}: {product} is changed from {found[1]} inputs to {found[0]} outputs, the "
                f"model has {wanted[1]} and {wanted[0]}: load an adapter made for it"
            )


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


def _read_sides(folder: Path, settings: _Settings) -> dict[str, dict[str, Tensor]]:
    """The tensors of each product in fp32, their shapes checked against the settings."""
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
                tensor = file.get_tensor(name).float()
                sides.setdefault(match["product"], {})[match["side"]] = tensor
    except SafetensorError as error:
        raise UsageError(f"{path} is truncated or damaged: fetch it again") from error
    if not sides:
        raise UsageError(f"{path} holds no tensors: save the adapter again")
    for product, found in sides.items():
        _check_sides(product, found, settings, path)
    return sides


def _check_sides(product: str, found: dict[str, Tensor], settings: _Settings, path: Path) -> None:
    wanted = (_DOWN, _UP, _MAGNITUDE) if settings.use_dora else (_DOWN, _UP)
    for side in wanted:
        if side not in found:
            lacking = side.removesuffix(".weight")
            raise UsageError(f"{path}: {product} lacks its lora_{lacking}: save the adapter again")
    if len(found) > len(wanted):
        raise UsageError(f"{path}: {product} has lengths of DoRA, and {CONFIG} says it is none")
    rank, _ = settings.of(product)
    down, up = found[_DOWN], found[_UP]
    if down.ndim != 2 or up.ndim != 2 or not down.shape[0] == up.shape[1] == rank:
        raise UsageError(
            f"{path}: {product} has matrices of shapes {tuple(down.shape)} and "
            f"{tuple(up.shape)}, and {CONFIG} says rank {rank}: save the adapter again"
        )
    if settings.use_dora and found[_MAGNITUDE].shape != (len(up),):
        raise UsageError(
            f"{path}: {product} has {tuple(found[_MAGNITUDE].shape)} lengths for {len(up)} rows: "
            "save the adapter again"
        )


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
