"""A Hugging Face model folder, read and written: the form in which Puna keeps every model."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.core.errors import UsageError
from puna.core.files import new_folder, write_json
from puna.formats.hf_config import CONFIG, config_json, load_config, read_json
from puna.formats.weights import Model, build_model, check_vocabulary
from puna.model import LlamaConfig
from puna.model.llama import Llama
from puna.tokenizer import Tokenizer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
# Left out when reading: RoPE's frequencies, which old releases of transformers saved.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")


def load_folder(
    folder: Path, *, dtype: torch.dtype, device: torch.device | str, cls: type[Model]
) -> tuple[Model, Tokenizer]:
    """The model and tokenizer of a Hugging Face folder.

    Raises `UsageError` naming the file or tensor that is missing, broken or of the wrong shape.
    """
    config = load_config(folder, cls.architecture)
    weights = FolderWeights(folder)
    shapes = weights.model_shapes(config)
    tokenizer = Tokenizer.from_folder(folder)
    check_vocabulary(tokenizer, config.vocab_size, str(folder))
    model = build_model(
        cls, config, shapes, weights.read, dtype=dtype, device=device, where=str(folder)
    )
    return model, tokenizer


def save_model(
    folder: Path,
    model: Llama,
    tokenizer: Tokenizer,
    *,
    max_shard_bytes: int = 5 * 1024**3,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` and ``tokenizer`` as a Hugging Face folder, which appears whole or not.

    Tensors keep their data types. Weights of more than ``max_shard_bytes`` are split into files of
    at most that size (one tensor may be larger) with an index. ``generation_config.json`` stops
    generation at the tokenizer's ``stop_ids``. ``changes`` are further keys of ``config.json``, or
    other values. An existing ``folder`` is replaced.
    """
    with new_folder(folder) as building:
        save_beside_weights(building, model, tokenizer, changes)
        _save_weights(building, model.state_dict(), max_shard_bytes)


def save_beside_weights(
    folder: Path, model: Llama, tokenizer: Tokenizer, changes: Mapping[str, Any] | None = None
) -> None:
    """Write what a model's folder has beside its weights; arguments as in `save_model`."""
    check_vocabulary(tokenizer, model.config.vocab_size, str(folder))
    special: dict[str, Any] = {
        "bos_id": tokenizer.bos_id,
        "eos_ids": sorted(tokenizer.stop_ids),
        "pad_id": tokenizer.pad_id,
    }
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = config_json(model.config, dtype=dtype, architecture=model.architecture, **special)
    config |= changes or {}
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(folder / CONFIG, config)
    write_json(folder / "generation_config.json", {key: config[key] for key in keys})
    tokenizer.save(folder)


class FolderWeights:
    """The tensors of a folder's safetensors files, mapped, not read.

    Attributes:
        shapes: of every tensor, by name.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path, names in weight_files(folder).items():
            self._map(path, names)

    def model_shapes(self, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """`shapes`, less those of what a model of this configuration computes or shares."""
        shapes = {name: shape for name, shape in self.shapes.items() if not _COMPUTED.search(name)}
        if config.tie_embeddings:
            shapes.pop("lm_head.weight", None)
        return shapes

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def slices(self, name: str) -> Any:
        """The tensor, of which what is asked for by ``[...]`` is read."""
        return self._file_of[name].get_slice(name)

    def _map(self, path: Path, names: list[str] | None) -> None:
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise UsageError(f"{path} is truncated or damaged: fetch it again") from error
        held = set(file.keys())
        for name in sorted(held) if names is None else names:
            if name not in held:
                raise UsageError(f"{path} lacks the tensor {name!r} that {INDEX} places there")
            self._file_of[name] = file
            self.shapes[name] = tuple(file.get_slice(name).get_shape())


def weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The weight files of a folder, each with the tensors to take from it; None means all."""
    if (folder / SINGLE).exists():
        return {folder / SINGLE: None}
    if not (folder / INDEX).exists():
        raise UsageError(_why_no_weights(folder))
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UsageError(f"{folder / INDEX} has no weight_map: fetch the file again")
    files: dict[Path, list[str] | None] = {}
    for shard in sorted({str(place) for place in places.values()}):
        if Path(shard).name != shard:
            raise UsageError(f"{folder / INDEX} names {shard!r}, which is no plain file name")
        if not (folder / shard).exists():
            raise UsageError(f"{folder}: the shard {shard} is missing: fetch that file again")
        files[folder / shard] = [name for name, place in places.items() if place == shard]
    return files


def _why_no_weights(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir())
    pickled = [name for name in names if Path(name).suffix in _PICKLES]
    if pickled:
        return (
            f"{folder}: {pickled[0]} is a pickle, which can run code when opened: where you trust "
            "it, save the model as safetensors with transformers' save_pretrained"
        )
    packed = [name for name in names if name.endswith(".gguf")]
    if packed:
        return f"{folder} holds no {SINGLE}: name the file {folder / packed[0]}"
    return f"{folder} holds no {SINGLE} and no {INDEX}: fetch the model again"


def _save_weights(folder: Path, state: dict[str, Tensor], max_shard_bytes: int) -> None:
    sizes = {name: tensor.nbytes for name, tensor in state.items()}
    shards = list(weight_shards(sizes, max_shard_bytes))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: state[name].detach().cpu().contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / INDEX, index)


def weight_shards(sizes: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
    """Names of tensors in order, in runs of at most ``max_bytes`` each, from their sizes."""
    names: list[str] = []
    size = 0
    for name, n_bytes in sizes.items():
        if names and size + n_bytes > max_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += n_bytes
    yield names
