"""Hugging Face folders of models that no single process could hold: written and read in pieces."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

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
from puna.model import Llama, LoraConfig
from puna.parallel.build import begin_adapter, empty_spread, held_by_name, whole_weights
from puna.parallel.files import read_tensors
from puna.parallel.layout import Layout
from puna.parallel.parallelize import laid_out
from puna.tokenizer import Tokenizer


def save_spread(
    folder: Path,
    model: Llama,
    tokenizer: Tokenizer,
    *,
    weights: dict[str, Tensor] | None = None,
    max_shard_bytes: int = 5 * 1024**3,
) -> None:
    """`puna.formats.save_model` for a model that `parallelize` has spread; all processes call it.

    Each writes its pieces; the first joins them into whole tensors, from file to file. Its
    ``folder`` appears whole or not at all. ``weights`` are written in place of the model's own,
    such as `puna.parallel.adapters.merged_weights`.
    """
    from torch.distributed import checkpoint as dcp

    parallel = laid_out(model)
    assert parallel is not None
    mesh = parallel.mesh
    if weights is None:
        weights = {name: held[0] for name, held in held_by_name(model, parallel).items()}
    n_bytes = next(iter(weights.values())).element_size()
    sizes = {name: n_bytes * one.numel() for name, one in whole_weights(model.config).items()}
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
    folder: Path,
    layout: Layout,
    *,
    dtype: torch.dtype = torch.float32,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> tuple[Llama, Tokenizer]:
    """The model of a Hugging Face folder, laid out; all processes call it, each reads its pieces.

    With ``lora`` it has a fresh adapter, that of `puna.model.add_lora` with this ``seed``.

    Raises `UsageError` naming the file or tensor that is missing, broken or of the wrong shape.
    """
    config = load_config(folder, Llama.architecture)
    check_tensors(
        {name: tuple(one.shape) for name, one in whole_weights(config).items()},
        FolderWeights(folder).model_shapes(config),
        str(folder),
    )
    tokenizer = Tokenizer.from_folder(folder)
    check_vocabulary(tokenizer, config.vocab_size, str(folder))
    model, parallel = empty_spread(config, layout, dtype=dtype, lora=lora)
    held = held_by_name(model, parallel)
    read_tensors(folder, [(name, t) for name, ts in held.items() for t in ts], parallel.mesh)
    begin_adapter(model, seed)
    return model, tokenizer
