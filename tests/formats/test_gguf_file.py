import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.formats.gguf_file import GgufFile

PACKED = sorted(gguf.quants._type_traits, key=lambda kind: kind.value)
SCALARS = {
    GGUFValueType.UINT8: 255,
    GGUFValueType.INT8: -128,
    GGUFValueType.UINT16: 65535,
    GGUFValueType.INT16: -32768,
    GGUFValueType.UINT32: 2**32 - 1,
    GGUFValueType.INT32: -(2**31),
    GGUFValueType.UINT64: 2**64 - 1,
    GGUFValueType.INT64: -(2**63),
    GGUFValueType.FLOAT32: 0.5,
    GGUFValueType.FLOAT64: 0.1,
    GGUFValueType.BOOL: True,
    GGUFValueType.STRING: "Puna, 4000 m: 高原",
}


def written(path: Path, fill: Callable[[gguf.GGUFWriter], Any]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_array("tokens", ["a", "b", "Ġc"])
        writer.add_array("types", [1, 2, 3])
        writer.add_uint32("llama.block_count", 2)
        writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.add_tensor("two", np.ones(40, dtype=np.float16))

    return written(tmp_path_factory.mktemp("gguf") / "small.gguf", fill).read_bytes()


def test_every_kind_of_value_reads_as_it_was_written(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        for kind, value in SCALARS.items():
            writer.add_key_value(kind.name, value, kind)
            writer.add_key_value(f"{kind.name}s", [value] * 3, GGUFValueType.ARRAY, sub_type=kind)

    metadata = GgufFile.open(written(tmp_path / "values.gguf", fill)).metadata
    for kind, value in SCALARS.items():
        assert metadata[kind.name] == value
        assert list(metadata[f"{kind.name}s"]) == [value] * 3


def test_tensors_are_those_the_gguf_package_reads(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(small)
    peer = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    file = GgufFile.open(path)
    assert file.tensors.keys() == peer.keys()
    for name, tensor in peer.items():
        assert np.array_equal(file.array(name), np.asarray(tensor.data, dtype=np.float32))


@pytest.mark.parametrize("kind", PACKED, ids=[kind.name for kind in PACKED])
def test_every_packed_type_reads_as_gguf_unpacks_it(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    random = np.random.default_rng(kind.value)
    weights = random.standard_normal((3, 512), dtype=np.float32)
    try:
        packed = gguf.quants.quantize(weights, kind)
    except NotImplementedError:  # gguf only unpacks this one: any bits are a value of it
        row = gguf.quants.quant_shape_to_byte_shape(weights.shape, kind)
        packed = random.integers(0, 0x3C, row, dtype=np.uint8)  # keeps fp16 scales finite
    path = written(
        tmp_path / "packed.gguf", lambda w: w.add_tensor("weight", packed, raw_dtype=kind)
    )
    unpacked = GgufFile.open(path).array("weight")
    assert unpacked.shape == weights.shape
    assert np.array_equal(unpacked, gguf.quants.dequantize(packed, kind), equal_nan=True)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
def test_unpacked_weights_lie_within_half_a_step_of_the_packed(kind: str, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).uniform(-1, 1, (4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(weights, GGMLQuantizationType[kind])
    path = written(
        tmp_path / "packed.gguf",
        lambda w: w.add_tensor("weight", packed, raw_dtype=GGMLQuantizationType[kind]),
    )
    # Steps of a block spanning [-1, 1]: 2 / 15 and 2 / 31 with a minimum; symmetric ones lose the
    # positive end to the sign, a whole step; fp16 scales add a part in a thousand.
    step = {"Q4_0": 2 / 8, "Q4_1": 1 / 15, "Q5_0": 2 / 16, "Q5_1": 1 / 31, "Q8_0": 1 / 254}
    bound = {"F16": 2**-11, "BF16": 2**-8, "F32": 0.0} | step
    assert np.abs(GgufFile.open(path).array("weight") - weights).max() <= bound[kind] + 2e-3


@given(st.data())
def test_a_file_cut_anywhere_is_called_truncated(small: bytes, data: st.DataObject) -> None:
    padding = 16  # after the last tensor of 80 bytes, to the alignment of 32
    length = data.draw(st.integers(4, len(small) - padding - 1))
    with pytest.raises(UsageError, match=r"^cut\.gguf is truncated at .*fetch the file again$"):
        GgufFile(small[:length], "cut.gguf")


@given(st.data())
def test_damaged_headers_give_one_line_and_no_size_beyond_the_file(
    small: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(small) - 8))
        damaged[start : start + 8] = data.draw(st.binary(min_size=8, max_size=8))
    complaint, stated = "bad.gguf", 0
    try:
        file = GgufFile(bytes(damaged), "bad.gguf")
        stated = max((tensor.n_bytes for tensor in file.tensors.values()), default=0)
    except UsageError as error:
        complaint = str(error)
    assert complaint.startswith("bad.gguf")
    assert complaint.isprintable()
    assert stated <= len(small)


@pytest.mark.parametrize("size", [2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("offset", [8, 16, 24])  # tensors, values, length of the first key
def test_sizes_beyond_the_file_are_refused(small: bytes, offset: int, size: int) -> None:
    hostile = small[:offset] + struct.pack("<Q", size) + small[offset + 8 :]
    with pytest.raises(UsageError, match="is truncated at"):
        GgufFile(hostile, "hostile.gguf")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + bytes(40), "is not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "is version 1 GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "is big-endian GGUF"),
    ],
)
def test_what_is_not_readable_gguf_is_named(content: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        GgufFile(content, "other.gguf")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(UsageError, match=r"empty\.gguf is empty"):
        GgufFile.open(tmp_path / "empty.gguf")


def test_a_type_that_cannot_be_unpacked_is_named(tmp_path: Path) -> None:
    path = written(
        tmp_path / "wide.gguf", lambda w: w.add_tensor("weight", np.ones((2, 8), dtype=np.float64))
    )
    with pytest.raises(UsageError, match="'weight' is stored as F64"):
        GgufFile.open(path).array("weight")


def test_an_odd_alignment_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "odd.gguf", lambda w: w.add_uint32("general.alignment", 33))
    with pytest.raises(UsageError, match="not a power of two"):
        GgufFile.open(path)
