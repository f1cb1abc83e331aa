"""Hugging Face folders of models that no single process could hold: written and read in pieces."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from puna.core.devices import default_device
from puna.core.files import new_folder
from puna.formats.hf_config import load_config
from puna.formats.huggingface import (
    INDEX,
    SINGLE,
    FolderWeights,
    save_beside_weights,
    weight_shards,
)
from puna.formats.weights import check_tensors, check_vocabulary
from puna.model import Llama, LlamaConfig
from puna.parallel.files import read_tensors
from puna.parallel.layout import Layout
from puna.parallel.parallelize import Parallel, laid_out, parallelize
from puna.tokenizer import Tokenizer


def save_spread(
    folder: Path, model: Llama, tokenizer: Tokenizer, *, max_shard_bytes: int = 5 * 1024**3
) -> None:
    """`puna.formats.save_model` for a model that `parallelize` has spread; all processes call it.

    Each writes its pieces; the first joins them into whole tensors, from file to file. Its
    ``folder`` appears whole or not at all.
    """
    from torch.distributed import checkpoint as dcp

    parallel = laid_out(model)
    assert parallel is not None
    mesh, weights = parallel.mesh, dict(_by_stored_name(model, parallel))
    n_bytes = next(iter(weights.values())).element_size()
    sizes = {name: n_bytes * one.numel() for name, one in _whole(model.config).items()}
    runs = enumerate(weight_shards(sizes, max_shard_bytes), start=1)
    places = {name: number for number, names in runs for name in names}
    with ExitStack() as stack:
        place = stack.enter_context(new_folder(folder)) if mesh.is_first else folder
        shared = mesh.on_first(lambda: place)
        writer = dcp.HuggingFaceStorageWriter(
            str(shared), places, save_distributed=True, enable_consolidation=True
        )
        dcp.save(weights, storage_writer=writer)
        if mesh.is_first:
            shutil.rmtree(place / "sharded")
            if max(places.values()) == 1:
                next(place.glob("*.safetensors")).rename(place / SINGLE)
                (place / INDEX).unlink()
            save_beside_weights(place, model, tokenizer)
    mesh.wait()  # until the folder has its name


def load_spread(
    folder: Path, layout: Layout, *, dtype: torch.dtype = torch.float32
) -> tuple[Llama, Tokenizer]:
    """The model of a Hugging Face folder, laid out; all processes call it, each reads its pieces.

    Raises `UsageError` naming the file or tensor that is missing, broken or of the wrong shape.
    """
    config = load_config(folder, Llama.architecture)
    check_tensors(
        {name: tuple(one.shape) for name, one in _whole(config).items()},
        FolderWeights(folder).model_shapes(config),
        str(folder),
    )
    tokenizer = Tokenizer.from_folder(folder)
    check_vocabulary(tokenizer, config.vocab_size, str(folder))
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    parallel = parallelize(model, layout)
    model.to_empty(device=default_device())
    read_tensors(folder, _by_stored_name(model, parallel), parallel.mesh)
    return model, tokenizer


def _by_stored_name(model: Llama, parallel: Parallel) -> list[tuple[str, Tensor]]:
    return [(parallel.name_of(name), p.detach()) for name, p in model.named_parameters()]


def _whole(config: LlamaConfig) -> dict[str, Tensor]:
    """The weights of the whole model by name, without their numbers."""
    with torch.device("meta"):
        return dict(Llama(config).named_parameters())
