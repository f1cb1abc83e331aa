"""Named tensors, wherever they come from, put into a Llama whole or not at all."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from typing_extensions import TypeVar

from puna.core.errors import UsageError
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.tokenizer import Tokenizer

Shapes = Mapping[str, tuple[int, ...]]
Model = TypeVar("Model", bound=Llama, default=Llama)
_MAX_PARAMS = 2**60  # torch cannot count the bytes of more: checked before a hostile size is built


def build_model(
    cls: type[Model],
    config: LlamaConfig,
    shapes: Shapes,
    read: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    where: str,
) -> Model:
    """A model of class ``cls`` holding the tensors that ``read`` returns by name.

    The model is built without memory, names and shapes are checked before anything is read, and
    tensors are then taken one at a time: beyond the model itself one source tensor is in memory.
    Each is copied, so the model does not depend on its file, and its memory is aligned the same
    way on every load, which keeps matrix products reproducible.

    Raises `UsageError`, starting with ``where``, for a tensor that is missing, unexpected or of
    another shape than ``config`` asks for.
    """
    if config.n_layers > len(shapes) or config.n_params() > _MAX_PARAMS:
        raise UsageError(
            f"{where}: the configuration asks for {config.n_layers} layers of "
            f"{config.n_params()} parameters in all, more than the file holds: correct it"
        )
    with torch.device("meta"):
        model = cls(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_tensors(wanted, shapes, where)
    state = {name: read(name).to(device=device, dtype=dtype, copy=True) for name in wanted}
    model.load_state_dict(state, assign=True)
    return model


def check_vocabulary(tokenizer: Tokenizer, rows: int, where: str) -> None:
    """Raise `UsageError` when ``tokenizer`` has ids beyond the model's ``rows`` of embedding."""
    if tokenizer.vocab_size > rows:
        raise UsageError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model {rows} rows: use "
            "the tokenizer this model was trained with"
        )


def check_tensors(wanted: Shapes, found: Shapes, where: str) -> None:
    """Raise `UsageError`, starting with ``where``, for a tensor that is not as it should be."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UsageError(
            f"{where}: the tensor {_few(missing)} is missing: fetch the model again, or correct "
            "its configuration"
        )
    surplus = [name for name in found if name not in wanted]
    if surplus:
        raise UsageError(
            f"{where}: unexpected tensor {_few(surplus)}: not a plain Llama of this configuration"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UsageError(
                f"{where}: the tensor {name!r} has shape {found[name]}, expected {shape}: correct "
                "the configuration, or fetch the model again"
            )


def _few(names: list[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
