"""LoRA adapters of a running model: each row of a batch may use one of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.core.errors import UsageError
from puna.formats.peft import LowRank, load_lora
from puna.inference.rotation import Basis
from puna.model import Llama, LlamaConfig

_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class Adapters:
    """The adapters loaded for one model, and which of them the rows of the running pass use.

    Adapters act through hooks on the products they change, so weights and their names stay as
    they are, and a product that no adapter changes costs nothing more.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, dict[str, LowRank]] = {}  # as read, while they may be turned again
        self._basis: Basis | None = None
        self._products: dict[str, _Product] = {}
        self._pass = _Pass()
        self._device = torch.device("cpu")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters that are loaded, in the order of loading."""
        return tuple(self._loaded)

    @property
    def in_use(self) -> bool:
        """Whether a row of the running pass uses an adapter."""
        return bool(self._pass.groups)

    def attach(self, model: Llama) -> None:
        """Act on ``model`` from now on; what is loaded is kept, since the shape is the same."""
        self._device = model.device
        former, self._products = self._products, _products(model, self._pass)
        for name, product in former.items():
            self._products[name].take_over(product)

    def turn(self, model: Llama) -> None:
        """Act on the `rotated` twin of ``model``: adapters are rotated as its weights are."""
        self._basis = Basis(model)
        for name, changes in self._loaded.items():
            self._add(name, changes)

    def load(self, name: str, folder: Path) -> None:
        """Load the PEFT adapter in ``folder`` as ``name``.

        Raises `UsageError` for a name that is taken and for an adapter that does not fit.
        """
        if name in self._loaded:
            raise UsageError(f"an adapter '{name}' is loaded already: unload it first")
        changes = load_lora(folder)
        self._check_shapes(changes, folder)
        self._add(name, changes)

    def unload(self, name: str) -> None:
        """Forget the adapter ``name``; raises `UsageError` when there is none."""
        self.check(name)
        del self._loaded[name]
        for product in self._products.values():
            product.remove(name)

    def check(self, name: str) -> None:
        """Raise `UsageError` unless ``name`` is loaded."""
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise UsageError(f"no adapter '{name}' is loaded: there is {known}")

    @contextmanager
    def used_by_rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Within, row n of every batch uses the adapter ``names[n]``; None is the model itself."""
        wanted = [name for name in dict.fromkeys(names) if name is not None]
        rows_of = {name: [n for n, each in enumerate(names) if each == name] for name in wanted}
        self._pass.n_rows = len(names)
        self._pass.groups = [
            (name, None if len(rows) == len(names) else self._index(rows))
            for name, rows in rows_of.items()
        ]
        try:
            yield
        finally:
            self._pass.groups = []

    def _add(self, name: str, changes: dict[str, LowRank]) -> None:
        basis, own = self._basis, changes
        if basis is not None:
            own = {
                part: LowRank(basis.inputs(part, each.down_ri), basis.outputs(part, each.up_or))
                for part, each in changes.items()
            }
        for product in self._products.values():
            product.add(name, own)
        self._loaded[name] = {} if basis is None else changes

    def _index(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, device=self._device)

    def _check_shapes(self, changes: dict[str, LowRank], folder: Path) -> None:
        shapes = {
            part: (outputs, product.n_inputs)
            for product in self._products.values()
            for part, outputs in product.parts.items()
        }
        for part, change in changes.items():
            found = (change.up_or.shape[0], change.down_ri.shape[1])
            if part not in shapes:
                raise UsageError(f"{folder}: the model has no {part}: load an adapter made for it")
            if found != shapes[part]:
                raise UsageError(
                    f"{folder}: {part} is changed from {found[1]} inputs to {found[0]} outputs, "
                    f"the model has {shapes[part][1]} and {shapes[part][0]}: load an adapter "
                    "made for it"
                )


class _Pass:
    """What the products ask during a pass.

    Attributes:
        n_rows: of the batch.
        groups: each adapter in use with the rows that use it; None is all of them.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self.groups: list[tuple[str, Tensor | None]] = []


class _Product:
    """One product of the model, of one projection or of several joined, and its changes.

    Args:
        module: computes the product; its weights may have any format.
        parts: the projections it computes, with the number of outputs of each, in order.
        n_inputs: its inputs.
        like: has the device and data type of the activations.
        running: tells the rows of the running pass.
    """

    def __init__(
        self,
        module: nn.Module,
        parts: dict[str, int],
        n_inputs: int,
        like: Tensor,
        running: _Pass,
    ) -> None:
        self.parts = parts
        self.n_inputs = n_inputs
        self._module = module
        self._like = like
        self._running = running
        self._changes: dict[str, tuple[Tensor, Tensor]] = {}
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def add(self, name: str, changes: dict[str, LowRank]) -> None:
        """Make the changes of the adapter ``name`` to these parts, if any, one pair of matrices.

        That of several parts has all their ranks: blocks of zeros keep the parts apart.
        """
        own = [changes[part] for part in self.parts if part in changes]
        if not own:
            return
        down = torch.cat([change.down_ri for change in own])
        up = torch.zeros(sum(self.parts.values()), len(down))
        row = column = 0
        for part, outputs in self.parts.items():
            if part in changes:
                block = changes[part].up_or
                up[row : row + outputs, column : column + block.shape[1]] = block
                column += block.shape[1]
            row += outputs
        self._changes[name] = (down.to(self._like), up.to(self._like))
        self._set_hook()

    def remove(self, name: str) -> None:
        """Forget the change of the adapter ``name``, if there is one."""
        self._changes.pop(name, None)
        self._set_hook()

    def take_over(self, former: "_Product") -> None:
        """Make the changes of ``former``, the same product of other weights."""
        self._changes = former._changes
        self._set_hook()

    def _set_hook(self) -> None:
        if self._changes and self._hook is None:
            self._hook = self._module.register_forward_hook(self._change)
        elif not self._changes and self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _change(self, module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:  # noqa: ARG002
        if torch.compiler.is_compiling():  # compiled code runs for rows without adapters only
            return y
        (x,) = args
        for name, rows in self._running.groups:
            if name not in self._changes:
                continue
            down, up = self._changes[name]
            if rows is None:
                y += F.linear(F.linear(x, down), up)
            else:
                # rows and positions may come flattened
                x_rti, y_rto = (t.view(self._running.n_rows, -1, t.shape[-1]) for t in (x, y))
                y_rto.index_add_(0, rows, F.linear(F.linear(x_rti[rows], down), up))
        return y


def _products(model: Llama, running: _Pass) -> dict[str, _Product]:
    """The products of the model's blocks by name."""
    shapes = _shapes(model.config)
    like = torch.empty(0, dtype=model.dtype, device=model.device)
    found = {}
    for name, module in model.named_modules():
        stem, _, last = name.rpartition(".")
        projections = _JOINED.get(last, (last,))
        if projections[0] in shapes:
            parts = {f"{stem}.{each}": shapes[each][0] for each in projections}
            found[name] = _Product(module, parts, shapes[projections[0]][1], like, running)
    return found


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each projection of a block."""
    dim, ffn = config.dim, config.ffn_dim
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    attention = {"q": (queries, dim), "k": (keys, dim), "v": (keys, dim), "o": (dim, queries)}
    mlp = {"gate": (ffn, dim), "up": (ffn, dim), "down": (dim, ffn)}
    return {f"{name}_proj": shape for name, shape in (attention | mlp).items()}
