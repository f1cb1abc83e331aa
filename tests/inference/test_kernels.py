"""Kernels in C++: compiled once, kept, found again, and done without."""

import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puna.core.errors import PunaWarning, UsageError
from puna.inference import EngineConfig, kept_code, kernels
from puna.inference.kernels import Kernel

TEXT = """
extern "C" void kernel(const float* x, float* out, int64_t n) {
    Released released(true);
    for (int64_t at = 0; at < n; at++) out[at] = 2 * x[at];
}
"""
ARGUMENTS = ["const float*", "float*", "int64_t"]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    monkeypatch.setattr(kept_code, "_shelves", lambda: folder)
    return folder


def doubling() -> Kernel:
    return Kernel("doubling", ARGUMENTS, lambda: TEXT)


def doubles(kernel: Kernel, *, compiles: bool) -> bool:
    function = kernel.find(compiles=compiles)
    assert function is not None
    x, out = torch.arange(5.0), torch.empty(5)
    function(x, out, 5)
    return torch.equal(out, 2 * x)


def fail(*_: object) -> None:
    raise FileNotFoundError("g++: not found\nmore of it")


def test_a_kernel_is_compiled_once_kept_and_found_again(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = doubling()
    assert first.find(compiles=False) is None
    assert doubles(first, compiles=True)
    assert [path.name for path in shelf.iterdir()] == ["doubling.so"]
    other = tmp_path / "other"
    shutil.copytree(shelf, other)  # Python loads no library twice from the same place
    shutil.rmtree(shelf)
    assert doubles(first, compiles=False)  # what was found stays
    monkeypatch.setattr(kept_code, "_shelves", lambda: other)
    monkeypatch.setattr(Kernel, "_compiled", fail)
    assert doubles(doubling(), compiles=False)


def test_a_kernel_found_late_is_found_by_those_who_may_not_compile(shelf: Path) -> None:
    kernel = doubling()
    assert kernel.find(compiles=False) is None
    assert kernel.find(compiles=True) is kernel.find(compiles=False)
    assert kernel.find(compiles=False) is not None


def test_a_damaged_kernel_is_made_anew(shelf: Path) -> None:
    shelf.mkdir()
    path = shelf / "doubling.so"
    path.write_bytes(b"(")
    assert doubling().find(compiles=False) is None
    assert doubles(doubling(), compiles=True)
    assert path.stat().st_size > 1


@pytest.mark.parametrize("error", [OSError("full"), UsageError("read-only")])
def test_where_nothing_can_be_kept_the_kernel_runs(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(kept_code, "write_bytes", refuse)
    assert doubles(doubling(), compiles=True)
    assert not shelf.exists()


def test_a_cache_that_is_a_file_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(kept_code, "_shelves", lambda: blocked / "kept")
    assert doubles(doubling(), compiles=True)


def test_without_a_compiler_one_line_says_so_once(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernel, "_compiled", fail)
    kernel = doubling()
    with pytest.warns(PunaWarning, match=r"doubling could not be compiled \(g\+\+: not found\)"):
        assert kernel.find(compiles=True) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel.find(compiles=True) is None


def test_a_text_that_is_wrong_counts_as_no_compiler(shelf: Path) -> None:
    with pytest.warns(PunaWarning, match="broken could not be compiled"):
        assert Kernel("broken", ARGUMENTS, lambda: "this is no C++").find(compiles=True) is None


def test_an_operator_is_called_by_compiled_code_in_memory_it_is_given() -> None:
    seen: list[str] = []

    def check(x: Tensor, out: Tensor) -> None:
        seen.append("check")
        if x.shape != out.shape:
            raise ValueError("shapes differ")

    def write(x: Tensor, out: Tensor) -> None:
        seen.append("write")
        assert x.is_contiguous()
        out.copy_(x + 1)

    kernels.cpu_operator("test_add_one(Tensor x, Tensor(a!) out) -> ()", check, write)

    def add_one(x: Tensor) -> Tensor:
        out = torch.empty(4, 3)
        torch.ops.puna.test_add_one(x.T.contiguous(), out)
        return out * 2

    x = torch.arange(12.0).view(3, 4)
    assert torch.equal(torch.compile(add_one, fullgraph=True)(x), (x.T + 1) * 2)
    assert set(seen) == {"check", "write"}
    with pytest.raises(ValueError, match="shapes differ"):
        torch.ops.puna.test_add_one(x.to("meta"), torch.empty(4, 3, device="meta"))


@pytest.mark.parametrize("cxx", ["", "/nowhere/g++", f"{sys.executable} g++", " "])
def test_without_any_compiler_engines_do_not_compile_and_say_so(
    monkeypatch: pytest.MonkeyPatch, cxx: str
) -> None:
    config = EngineConfig(compile=True)
    assert config.on("cpu") is config
    monkeypatch.delenv("TORCH_INDUCTOR_INSTALL_GXX", raising=False)
    monkeypatch.setenv("CXX", cxx)  # torch takes it as the name of one program
    with pytest.warns(PunaWarning, match="install one, as Debian's g"):
        assert not config.on("cpu").compile
    assert config.on("cuda") is config  # there is nothing in C++ to compile
    quiet = EngineConfig()
    assert quiet.on("cpu") is quiet
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.warns(PunaWarning, match="no C"):
        assert not config.on("cpu").compile
