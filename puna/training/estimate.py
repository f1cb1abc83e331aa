"""How much memory a run will take, before it starts: a dry run on tensors without contents.

Weights, gradients and moments follow from shapes. What autograd will keep of the activations is
counted: the forward pass is run on fake tensors, which have shapes and no memory, with hooks that
see each tensor that is saved. So adapters, recomputation and data types are all taken as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from puna.core.devices import default_device
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.model.attention import PLAIN_POSITIONS, plain_is_faster
from puna.model.lora import of_any_block
from puna.model.loss import chunk_rows
from puna.training.adamw8bit import BLOCK, SMALL
from puna.training.config import LoopConfig
from puna.training.loop import compute_dtype, recompute_of


@dataclass(frozen=True)
class Estimate:
    """Bytes a training run needs, beyond what the program itself takes."""

    weights: int
    """Parameters and quantised weights, all the time."""
    optimizer: int
    """Moments, all the time."""
    gradients: int
    """Of trained parameters, complete at the end of the backward pass."""
    activations: int
    """Kept for the backward pass, at the end of the forward pass."""
    logits: int
    """Of the chunk in hand, with the head's copy in the activations' data type."""
    block: int
    """What the backward pass of one block makes and drops."""
    early_gradients: int
    """There before the backward pass: the head's, and those that earlier micro-batches left."""

    @property
    def peak(self) -> int:
        """The most at any moment: the loss after the forward pass, or the last block backward."""
        forward = self.activations + self.logits + self.early_gradients
        backward = self.gradients + self.block
        return self.weights + self.optimizer + max(forward, backward)

    def table(self) -> list[tuple[str, float]]:
        """Name and GB of each part, and of the peak."""
        parts = [(each.name.replace("_", " "), getattr(self, each.name)) for each in fields(self)]
        return [(name, n_bytes / 1e9) for name, n_bytes in [*parts, ("peak", self.peak)]]


def estimate(
    config: LlamaConfig,
    loop: LoopConfig,
    row_length: int,
    lora: LoraConfig | None = None,
    *,
    device: torch.device | None = None,
) -> Estimate:
    """Bytes that training ``config`` with full rows will take.

    Args:
        config: the model's shape.
        loop: rows in a pass, data types and the memory ladder.
        row_length: tokens in a row.
        lora: the adapter; None trains everything.
        device: where it will run; by default where this process would.
    """
    device = device or default_device()
    dtype = compute_dtype(loop, device)
    rows = loop.micro_rows or loop.batch_rows
    with FakeTensorMode(allow_non_fake_inputs=True), device:
        model = Llama(config.model_copy(update={"n_layers": 1}))
        if lora is not None:  # as if it were in every block
            targets = tuple(of_any_block(target) for target in lora.targets)
            add_lora(model, lora.model_copy(update={"targets": targets}))
        model.compute_dtype, model.recompute = dtype, recompute_of(loop)
        ids_bt = torch.zeros(rows, row_length, dtype=torch.int64)
        activations = _activations(model, config, loop, ids_bt)
        model.recompute = None
        kept = _kept(model, 2, ids_bt) - _kept(model, 1, ids_bt)
    one_block, outside = _split(model)
    trained = _bytes(outside, trained=True) + config.n_layers * _bytes(one_block, trained=True)
    head, moved = model.head_weight(), rows * row_length * config.dim * dtype.itemsize
    head_gradient = head.nbytes if head.requires_grad else 0
    gradients = trained
    if loop.optimizer_in_backward:  # the largest is there when all others are gone
        gradients = max(p.nbytes for p in model.parameters() if p.requires_grad)
    if config.tie_embeddings:  # the look-up's gradient, before it is added to the head's
        gradients += head_gradient
    return Estimate(
        weights=_bytes(outside) + config.n_layers * _bytes(one_block),
        optimizer=_moments(outside, loop) + config.n_layers * _moments(one_block, loop),
        gradients=gradients,
        activations=activations,
        logits=_logits(head, rows * row_length, dtype),
        block=(kept if loop.recompute != "none" else 0) + 2 * moved,
        early_gradients=head_gradient + (trained if rows < loop.batch_rows else 0),
    )


@lru_cache(maxsize=32)
def kept_by_block(
    config: LlamaConfig, recompute: Literal["none", "selective", "full"], dtype: torch.dtype
) -> float:
    """Bytes of activations that one block keeps for each token of a row without borders.

    For plans on other machines: attention keeps what a fused kernel keeps, no mask.
    """
    if recompute == "full":
        return float(config.dim * dtype.itemsize)
    short, long = 2 * PLAIN_POSITIONS, 4 * PLAIN_POSITIONS
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model = Llama(config.model_copy(update={"n_layers": 1, "context": long}))
        model.compute_dtype = dtype
        if recompute == "selective":
            ids_bt = torch.zeros(1, short, dtype=torch.int64)
            return config.dim * dtype.itemsize + _results(model, ids_bt) / short
        of_block = []
        for length in (short, long):
            ids_bt = torch.zeros(1, length, dtype=torch.int64)
            kept = [_kept(model, n, ids_bt, documents=False) for n in (1, 2)]
            of_block.append(kept[1] - kept[0])
    return (of_block[1] - of_block[0]) / (long - short)  # without the weights in another data type


def _activations(model: Llama, config: LlamaConfig, loop: LoopConfig, ids_bt: Tensor) -> int:
    """Bytes kept of a forward pass through all layers, from those through few."""
    every = loop.recompute_every
    groups, rest = divmod(config.n_layers, every)
    counted = [_kept(model, n, ids_bt) for n in (rest, every, 2 * every)]
    total = counted[0] + groups * (counted[2] - counted[1])
    if loop.recompute == "selective":  # what is kept on purpose is not kept by autograd
        total += -(-config.n_layers // every) * _results(model, ids_bt)
    return total


def _kept(model: Llama, n_layers: int, ids_bt: Tensor, *, documents: bool = True) -> int:
    """Bytes that autograd keeps when the one block of ``model`` runs so many times.

    On a GPU attention is fused, with documents or without, and what it keeps is the same.
    """
    documents = documents and not ids_bt.is_cuda
    block = model.model.layers[0]
    own = {_place(tensor) for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        held[_place(tensor)] = tensor.untyped_storage()
        return tensor

    config = model.config
    model.config = config.model_copy(update={"n_layers": n_layers})
    model.model.layers = nn.ModuleList([block] * n_layers)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.hidden(ids_bt, documents_bt=torch.zeros_like(ids_bt) if documents else None)
    model.model.layers, model.config = nn.ModuleList([block]), config
    held[_place(hidden)] = hidden.untyped_storage()
    return sum(storage.nbytes() for place, storage in held.items() if place not in own)


def _results(model: Llama, ids_bt: Tensor) -> int:
    """Bytes of the results of one block's products and of its attention, where that is fused."""
    config = model.config
    plain = plain_is_faster(ids_bt[..., None].to(model.dtype))
    outputs = 0 if plain else config.n_heads * config.head_dim
    for name, tensor in model.model.layers[0].named_parameters():
        outputs += tensor.shape[0] if tensor.ndim == 2 and not name.endswith("lora_A") else 0
    return outputs * ids_bt.numel() * model.dtype.itemsize


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _split(model: Llama) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers of the block, and of all else."""
    inside = list(_tensors(model.model.layers))
    places = {id(tensor) for tensor in inside}
    return inside, [tensor for tensor in _tensors(model) if id(tensor) not in places]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _bytes(tensors: list[Tensor], *, trained: bool = False) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor.requires_grad or not trained)


def _moments(tensors: list[Tensor], loop: LoopConfig) -> int:
    """Bytes of the optimizer's state; Muon keeps one moment of a block's matrix."""
    total = 0
    for tensor in tensors:
        if not tensor.requires_grad:
            continue
        n = tensor.numel()
        if loop.optimizer == "adamw8bit" and n >= SMALL:
            total += 2 * n + 8 * -(-n // BLOCK)
        else:
            total += 8 * n
    return total


def _logits(head: Tensor, n_tokens: int, dtype: torch.dtype) -> int:
    """A chunk's logits, its gradient and the head in ``dtype``, the states' gradient.

    On CPU logits are in fp32, on a GPU as the product makes them.
    """
    numbers = min(n_tokens, chunk_rows(n_tokens, head)) * head.shape[0]
    chunk = numbers * ((dtype.itemsize if head.is_cuda else 4) + dtype.itemsize)
    copies = 0 if head.dtype == dtype else head.numel() * dtype.itemsize
    states = 2 * n_tokens * head.shape[1] * dtype.itemsize
    return chunk + copies + states
