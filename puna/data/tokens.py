"""Token files: token ids on disk, memory-mapped, so that a corpus may exceed memory.

A folder holds ``tokens.bin`` (uint16 or uint32 ids, item after item), ``offsets.npy`` (where each
item begins, and the end), ``meta.json`` and, when some item has a mask, ``trained.bin`` (bytes).
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from puna.core.errors import PunaError, UsageError
from puna.core.files import new_folder, write_json

Item = tuple[Sequence[int], Sequence[bool] | None]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def write_tokens(folder: Path, items: Iterable[Item], vocab_size: int) -> "TokenFile":
    """Write items to a new ``folder``, which appears only when whole; returns it opened.

    Args:
        folder: replaced if it exists.
        items: token ids with a mask of those trained on, or ``None`` where all are.
        vocab_size: ids must be below it.

    Raises:
        UsageError: there is no item, or an item is empty or holds an id out of range.
    """
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    lengths: list[int] = []
    masked = False
    with new_folder(folder) as building:
        with (
            (building / "tokens.bin").open("wb") as ids,
            (building / "trained.bin").open("wb") as trained,
        ):
            for number, (item_ids, item_trained) in enumerate(items):
                array = _checked(number, item_ids, vocab_size)
                ids.write(array.astype(dtype).tobytes())
                trained.write(_mask(number, item_trained, len(array)).tobytes())
                masked = masked or item_trained is not None
                lengths.append(len(array))
        if not lengths:
            raise UsageError(f"nothing to write to {folder}: there is no document")
        if not masked:
            (building / "trained.bin").unlink()
        np.save(building / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        meta = {"dtype": dtype.name, "vocab_size": vocab_size, "masked": masked}
        write_json(building / "meta.json", meta)
    return TokenFile(folder)


def _checked(number: int, item: Sequence[int], vocab_size: int) -> Ints:
    array = np.asarray(item, dtype=np.int64)
    if not len(array):
        raise UsageError(f"item {number} has no token: leave it out")
    if array.min() < 0 or array.max() >= vocab_size:
        raise UsageError(f"item {number} holds ids outside the vocabulary of {vocab_size}")
    return array


def _mask(number: int, trained: Sequence[bool] | None, length: int) -> Bools:
    if trained is None:
        return np.ones(length, dtype=np.bool_)
    if len(trained) != length:
        raise UsageError(f"item {number} has {length} ids but a mask of {len(trained)}")
    return np.asarray(trained, dtype=np.bool_)


class TokenFile:
    """The items of a folder that `write_tokens` made; safe to read from several threads.

    Pickled it is its folder's name: another process maps the same file.

    Attributes:
        tokens: ids of all items, end to end (uint16 or uint32, memory-mapped).
        trained: which of them are trained on; ``None`` when all are.
        offsets: (n_items + 1,) where each item begins in ``tokens``.
        vocab_size: ids are below it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            meta = json.loads((folder / "meta.json").read_text())
            self.offsets: Ints = np.load(folder / "offsets.npy")
            self.tokens = np.memmap(folder / "tokens.bin", np.dtype(meta["dtype"]), "r")
            self.trained = (
                np.memmap(folder / "trained.bin", np.bool_, "r") if meta["masked"] else None
            )
        except FileNotFoundError as error:
            raise PunaError(
                f"{folder} is not a folder of tokens: it has no {error.filename}"
            ) from error
        self.vocab_size: int = meta["vocab_size"]
        if self.offsets[-1] != len(self.tokens):
            raise PunaError(f"{folder}/tokens.bin is cut short: write it again")

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path]]:
        return type(self), (self._folder,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """(n_items,) tokens in each item."""
        return np.diff(self.offsets)

    def item(self, index: int) -> tuple[npt.NDArray[np.unsignedinteger], Bools | None]:
        """Ids of an item, and which are trained on (``None``: all)."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], None if self.trained is None else self.trained[span]
