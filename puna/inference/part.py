"""Tensor parallelism: a process's part of a model, its heads and its share of each product.

The blocks' norms and the table of embeddings are in every process; a block's two products into
the stream are summed over all, and of the head each has some rows (Shoeybi et al. 2019,
"Megatron-LM", section 3). The engine runs in the leader; `lead` makes the others follow it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from puna.core.devices import default_device, keep_freed_memory
from puna.core.errors import PunaError, UsageError
from puna.formats import load_model
from puna.formats.hf_config import load_config
from puna.formats.huggingface import FolderWeights
from puna.formats.resolve import model_folder
from puna.formats.weights import build_model, check_tensors, check_vocabulary
from puna.inference.runner import Runner
from puna.inference.weights import Weights, check_int4
from puna.model import Llama, LlamaConfig
from puna.parallel.build import whole_weights
from puna.parallel.team import Team
from puna.tokenizer import Tokenizer

_BY_ROWS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
_BY_COLUMNS = ("o_proj.weight", "down_proj.weight")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
Read = Callable[[str, int | None, int, int], Tensor]
"""A tensor's part by name: the dimension to cut, None for all of it, the first place, the last."""


class PartRunner(Runner):
    """A `Runner` of one process's part.

    Args:
        model: the part.
        head: its rows of the head (rows, dim).
        team: all processes.
        vocabulary: rows of the whole head.
    """

    def __init__(
        self,
        model: Llama,
        head: Tensor,
        team: Team,
        weights: Weights,
        n_pages: int,
        page_size: int,
        *,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        self._team = team
        super().__init__(model, weights, n_pages, page_size, cache_dtype=cache_dtype, head=head)

    def load(self, model: Llama) -> None:
        """As `Runner.load`."""
        super().load(model)
        for block in self.model.model.layers:
            part: Any = block
            part.self_attn.o_proj = _Summed(part.self_attn.o_proj, self._team)
            part.mlp.down_proj = _Summed(part.mlp.down_proj, self._team)

    @torch.inference_mode()
    def logits(self, hidden_nd: Tensor) -> Tensor:
        """As `Runner.logits`, of the leader's hidden states, whatever a member gives."""
        shared = self._team.share(hidden_nd.contiguous())
        vocabulary = self.model.config.vocab_size
        return self._team.joined(super().logits(shared))[:, :vocabulary]

    def obey(self, what: str, *given: Any) -> None:
        """Do, as a member, what the leader does."""
        if what == "logits":
            dim = self.model.config.dim
            self.logits(torch.empty(given[0], dim, dtype=self.dtype, device=self.model.device))
        elif what == "features":
            self.features(*given)
        else:
            self.hidden(*given)


class LeadingRunner(PartRunner):
    """The leader's: whatever it runs the members run too."""

    def hidden(
        self,
        tokens: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> Tensor:
        """As `Runner.hidden`."""
        with self._team.order("hidden", tokens, pages, starts):
            return super().hidden(tokens, pages, starts)

    def features(self, prompt: Sequence[int]) -> Tensor:
        """As `Runner.features`."""
        with self._team.order("features", list(prompt)):
            return super().features(prompt)

    def logits(self, hidden_nd: Tensor) -> Tensor:
        """As `Runner.logits`."""
        with self._team.order("logits", len(hidden_nd)):
            return super().logits(hidden_nd)


@dataclass(frozen=True)
class Shared:
    """What the leader's engine needs beside its part of the model."""

    team: Team
    head: Tensor
    """Its rows of the head."""
    n_params: int
    """Of the whole model."""

    def runner(
        self, model: Llama, weights: Weights, n_pages: int, page_size: int, *, int8_cache: bool
    ) -> LeadingRunner:
        """The leader's runner; the members make theirs."""
        sizes = {"weights": weights, "n_pages": n_pages, "page_size": page_size}
        cache_dtype = torch.int8 if int8_cache else None
        with self.team.order({**sizes, "int8_cache": int8_cache}):
            return LeadingRunner(
                model, self.head, self.team, weights, n_pages, page_size, cache_dtype=cache_dtype
            )


class _Summed(nn.Module):
    """A product of which each process has some columns."""

    def __init__(self, product: nn.Module, team: Team) -> None:
        super().__init__()
        self.product = product
        self._team = team

    def forward(self, x: Tensor) -> Tensor:
        return self._team.sum(self.product(x))


def load_part(
    name: str, place: int, size: int, *, dtype: torch.dtype, device: torch.device
) -> tuple[Llama, Tensor, Tokenizer, int]:
    """What process ``place`` of ``size`` holds of the model called ``name``: its part, its rows of
    the head, filled up to equal numbers, the tokenizer, and the parameters of the whole.

    Of a folder nothing else is read. Raises `UsageError` as `puna.formats.load_model`, and where
    the model cannot be cut so.
    """
    folder = model_folder(name)
    if folder is None:
        model, tokenizer = load_model(name)
        config, read = model.config, _reader(model.state_dict().__getitem__)
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    else:
        config, held = load_config(folder), FolderWeights(folder)
        shapes, read = held.model_shapes(config), _reader(held.slices)
        tokenizer = Tokenizer.from_folder(folder)
        check_vocabulary(tokenizer, config.vocab_size, str(folder))
    check_cut(config, size)
    whole = {key: tuple(tensor.shape) for key, tensor in whole_weights(config).items()}
    check_tensors(whole, shapes, name)
    part = _part_config(config, size)

    def of_part(key: str) -> Tensor:
        cut = 0 if key.endswith(_BY_ROWS) else 1 if key.endswith(_BY_COLUMNS) else None
        length = 0 if cut is None else whole[key][cut] // size
        return read(key, cut, place * length, (place + 1) * length)

    own = {key: tuple(tensor.shape) for key, tensor in whole_weights(part).items()}
    model = build_model(Llama, part, own, of_part, dtype=dtype, device=device, where=name)
    rows = -(-config.vocab_size // size)
    first, last = (min(config.vocab_size, n * rows) for n in (place, place + 1))
    head_key = _EMBEDDING if config.tie_embeddings else _HEAD
    head = torch.zeros(rows, config.dim, dtype=dtype, device=device)
    head[: last - first] = read(head_key, 0, first, last).to(device=device, dtype=dtype)
    return model, head, tokenizer, config.n_params()


def check_cut(config: LlamaConfig, size: int) -> None:
    """Raise `UsageError` where ``size`` processes cannot share a model's heads and widths."""
    numbers = {"key and value heads": config.n_kv_heads, "feed-forward width": config.ffn_dim}
    for what, number in numbers.items():
        if number % size:
            fitting = [n for n in range(1, number + 1) if not number % n and n <= 2 * size]
            raise UsageError(
                f"{size} processes cannot share the model's {number} {what}: give "
                f"--tensor-parallel {' or '.join(map(str, fitting))}"
            )


def _part_config(config: LlamaConfig, size: int) -> LlamaConfig:
    """The shape of a part; its head stands apart, so it asks for none."""
    smaller = {key: getattr(config, key) // size for key in ("n_heads", "n_kv_heads", "ffn_dim")}
    return config.model_copy(update={**smaller, "tie_embeddings": True})


def _reader(tensor_of: Callable[[str], Any]) -> Read:
    def read(key: str, cut: int | None, first: int, last: int) -> Tensor:
        whole = tensor_of(key)
        part: Tensor = whole[:] if cut is None else (
            whole[first:last] if cut == 0 else whole[:, first:last]
        )  # fmt: skip
        return part

    return read


def lead(
    name: str, size: int, weights: Weights, dtype: torch.dtype, device: torch.device
) -> tuple[Llama, Tokenizer, Shared]:
    """Start ``size - 1`` members and load the model with them: the leader's part of it.

    Raises `UsageError` where the model cannot be cut or these weights cannot.
    """
    if weights == "w8a8":
        raise UsageError("w8a8 weights run in one process: use int8 with --tensor-parallel")
    folder = model_folder(name)
    if folder is not None:
        check_cut(load_config(folder), size)
    given = {"name": name, "dtype": str(dtype).removeprefix("torch.")}
    team = Team.start(size, "puna.inference.part", [json.dumps(given)])
    try:
        model, head, tokenizer, n_params = load_part(name, 0, size, dtype=dtype, device=device)
        if weights == "int4":
            check_int4(model.config, device)
        team.until_all("loaded")
        team.listens()
    except BaseException:
        team.close()
        raise
    return model, tokenizer, Shared(team, head, n_params)


def follow(place: int, size: int, port: int, given: dict[str, Any]) -> None:
    """Be a member until the leader ends."""
    team = Team.join(place, size, port)
    device, dtype = default_device(), getattr(torch, given["dtype"])
    if device.type == "cpu":
        keep_freed_memory()
    model, head, *_ = load_part(given["name"], place, size, dtype=dtype, device=device)
    team.report("loaded")
    order = team.hear()
    if order is None:
        return
    sizes: Any = order[0]
    int8_cache = torch.int8 if sizes.pop("int8_cache") else None
    runner = PartRunner(model, head, team, cache_dtype=int8_cache, **sizes)
    while (order := team.hear()) is not None:
        what, *arguments = order
        runner.obey(str(what), *arguments)


def main() -> int:
    """``python -m puna.inference.part PLACE SIZE PORT GIVEN``, as `lead` starts it."""
    place, size, port = map(int, sys.argv[1:4])
    try:
        follow(place, size, port, json.loads(sys.argv[4]))
    except PunaError as error:
        print(f"process {place}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
