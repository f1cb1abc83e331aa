"""The GGUF container: metadata and tensor table, read without trust in the sizes it states.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package dequantises;
its own reader makes an array per vocabulary entry and takes seconds where this one takes a tenth.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from puna.core.errors import UsageError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 has 32-bit sizes and was never published widely
_MAX_DIMS = 4  # GGML_MAX_DIMS
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies and how it is packed; ``shape`` is row-major, as torch counts."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


class GgufFile:
    """A GGUF file's metadata and tensors.

    Args:
        content: the file's bytes, or a map of them.
        name: what error messages call it.

    Attributes:
        metadata: every key and its value; arrays of numbers are numpy arrays, of strings lists.
        tensors: the tensor table by name.

    Raises `UsageError` for a file that is truncated, damaged or not GGUF.
    """

    def __init__(self, content: bytes | mmap.mmap, name: str) -> None:
        self.name = name
        self._cursor = cursor = _Cursor(memoryview(content), name)
        if cursor.data[:4] != _MAGIC:
            raise UsageError(f"{name} is not a GGUF file: name a .gguf file or a model folder")
        cursor.position = 4
        version = cursor.number("I")
        if version not in _VERSIONS:
            kind = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise UsageError(f"{name} is {kind} GGUF: convert it to little-endian version 3")
        n_tensors, n_values = cursor.count(minimum_bytes=32), cursor.count(minimum_bytes=13)
        self.metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.number("I"))
        self.tensors = {t.name: t for t in [self._tensor() for _ in range(n_tensors)]}
        if len(self.tensors) != n_tensors:
            raise UsageError(f"{name} lists a tensor twice: fetch the file again")
        self._check_extent()

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Map the file at ``path`` into memory and read its header."""
        with path.open("rb") as handle:
            if path.stat().st_size == 0:
                raise UsageError(f"{path} is empty: fetch the file again")
            return cls(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), str(path))

    def array(self, name: str) -> np.ndarray:
        """The tensor ``name`` in fp32, dequantised when it is packed."""
        tensor = self.tensors[name]
        start = self._data_start + tensor.offset
        raw = np.frombuffer(self._cursor.data[start : start + tensor.n_bytes], dtype=np.uint8)
        try:
            wide = dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.type)
        except NotImplementedError as error:
            raise UsageError(
                f"{self.name}: {name!r} is stored as {tensor.type.name}, which cannot be unpacked: "
                "use another quantisation of this model"
            ) from error
        return wide.reshape(tensor.shape)

    @cached_property
    def _data_start(self) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise UsageError(f"{self.name}: general.alignment is {alignment}: not a power of two")
        return -(-self._cursor.position // alignment) * alignment

    def _tensor(self) -> GgufTensor:
        cursor = self._cursor
        name = cursor.string()
        n_dims = cursor.number("I")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise UsageError(f"{self.name}: {name!r} has {n_dims} dimensions: fetch the file again")
        shape = tuple(cursor.number("Q") for _ in range(n_dims))[::-1]
        code, offset = cursor.number("I"), cursor.number("Q")
        if code not in GGML_QUANT_SIZES:
            raise UsageError(
                f"{self.name}: {name!r} has the unknown type {code}: use another quantisation"
            )
        kind = GGMLQuantizationType(code)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block or 0 in shape:
            raise UsageError(
                f"{self.name}: {name!r} of shape {shape} cannot hold {kind.name} blocks"
            )
        return GgufTensor(name, kind, shape, offset, math.prod(shape) // block * block_bytes)

    def _check_extent(self) -> None:
        room = len(self._cursor.data) - self._data_start
        for tensor in self.tensors.values():
            if tensor.offset + tensor.n_bytes > room:
                raise self._cursor.truncated(f"the tensor {tensor.name!r}")


class _Cursor:
    """A position in the file's bytes; every read is checked against their end."""

    def __init__(self, data: memoryview, name: str) -> None:
        self.data, self.name, self.position = data, name, 0

    def truncated(self, what: str) -> UsageError:
        return UsageError(f"{self.name} is truncated at {what}: fetch the file again")

    def take(self, n_bytes: int) -> memoryview:
        start, self.position = self.position, self.position + n_bytes
        if self.position > len(self.data):
            raise self.truncated(f"byte {len(self.data)}, inside its header")
        return self.data[start : self.position]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, minimum_bytes: int) -> int:
        """A count of items, each at least ``minimum_bytes`` long: more than fit is an error."""
        count: int = self.number("Q")
        if count * minimum_bytes > len(self.data) - self.position:
            raise self.truncated(f"a list of {count} items")
        return count

    def string(self) -> str:
        raw = self.take(self.count(1))
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self.name} holds text that is not UTF-8: fetch the file again"
            ) from error

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self._array(self.number("I"))
        return self.number(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise UsageError(f"{self.name} has a value of unknown type {kind}: fetch it again")
        return _SCALARS[GGUFValueType(kind)]

    def _array(self, kind: int) -> list[str] | np.ndarray:
        if kind == GGUFValueType.STRING:
            return [self.string() for _ in range(self.count(8))]
        dtype = np.dtype(self._code(kind)).newbyteorder("<")
        raw = self.take(self.count(dtype.itemsize) * dtype.itemsize)
        return np.frombuffer(raw, dtype=dtype)
