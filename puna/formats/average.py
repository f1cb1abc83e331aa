"""The average of models: one folder whose every weight is the mean of theirs.

"The Llama 3 Herd of Models" section 4.1.5 averages models of one stage that saw other data or other
settings. Models that began as the same one and did not go far lie in one basin, so their mean is a
model too (Wortsman et al. 2022, arXiv 2203.05482).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from puna.core.errors import UsageError
from puna.core.files import new_folder
from puna.formats.hf_config import CONFIG, load_config, read_json
from puna.formats.huggingface import FolderWeights, weight_files
from puna.model import Llama, LlamaConfig

_WEIGHTS = ".safetensors"
_TOKENIZER = "tokenizer.json"


def average_models(
    folders: Sequence[Path], target: Path, weights: Sequence[float] | None = None
) -> None:
    """Write the average of Hugging Face folders as the folder ``target``, whole or not at all.

    One file of the first model's weights is in memory at a time, whatever the models' size. Sums
    are taken in fp64, so equal models average to themselves; data types, configuration and
    tokenizer are the first model's.

    Args:
        folders: of models of one shape, with one tokenizer.
        target: replaced when it exists.
        weights: how much each model counts, above 0, in any unit; None counts all alike.

    Raises `UsageError` for models that differ in a tensor's name or shape, in configuration or in
    tokenizer.
    """
    shares = _shares(folders, weights)
    models = [FolderWeights(folder) for folder in folders]
    for folder, model in zip(folders[1:], models[1:], strict=True):
        _check_alike(folders[0], models[0], folder, model)
    with new_folder(target) as building:
        for path, listed in weight_files(folders[0]).items():
            names = models[0].shapes if listed is None else listed
            means = {name: _mean([model.read(name) for model in models], shares) for name in names}
            save_file(means, building / path.name, metadata={"format": "pt"})
        for item in sorted(folders[0].iterdir()):
            if item.is_file() and item.suffix != _WEIGHTS:
                shutil.copyfile(item, building / item.name)


def _shares(folders: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    if len(folders) < 2:
        raise UsageError(f"an average is of two models or more, not of {len(folders)}")
    weights = [1.0] * len(folders) if weights is None else weights
    if len(weights) != len(folders):
        raise UsageError(f"{len(weights)} weights for {len(folders)} models: give each model one")
    if min(weights) <= 0:
        raise UsageError(f"the weight {min(weights)} of a model: give a number above 0")
    return [weight / sum(weights) for weight in weights]


def _check_alike(
    first_folder: Path, first: FolderWeights, other_folder: Path, other: FolderWeights
) -> None:
    both = f"{first_folder} and {other_folder} cannot be averaged"
    lone = sorted(first.shapes.keys() ^ other.shapes.keys())
    if lone:
        raise UsageError(f"{both}: only one has the tensor {lone[0]!r}: give models of one shape")
    for name, shape in first.shapes.items():
        if other.shapes[name] != shape:
            raise UsageError(
                f"{both}: the tensor {name!r} has shapes {shape} and {other.shapes[name]}: give "
                "models of one shape"
            )
    if _config(first_folder) != _config(other_folder):
        raise UsageError(f"{both}: their {CONFIG} differ: give models of one architecture")
    tokenizers = [folder / _TOKENIZER for folder in (first_folder, other_folder)]
    if len({path.read_bytes() for path in tokenizers if path.exists()}) > 1:
        raise UsageError(f"{both}: their tokenizers differ: give models of one tokenizer")


def _config(folder: Path) -> LlamaConfig:
    """Of a reward model as of a language model."""
    named = read_json(folder / CONFIG).get("architectures") or [Llama.architecture]
    return load_config(folder, named[0])


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor, alpha=share)
    return total.to(tensors[0].dtype)
