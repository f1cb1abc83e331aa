"""Kernels in C++, compiled once by torch's compiler and kept beside its other code."""

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from puna.core.errors import PunaWarning
from puna.inference.kept_code import keep_library, kept_library

# what the processor says of itself is believed: to try it out takes a third of a first start
VEC_ISA_OK = os.environ.get("TORCHINDUCTOR_VEC_ISA_OK", "1") == "1"
_PREAMBLE = """
#include <Python.h>
#include <torch/csrc/inductor/cpp_prefix.h>
#include <memory>

// While it lives other threads of Python may run; for what takes a millisecond or more.
struct Released {
    explicit Released(bool lengthy) : state(lengthy ? PyEval_SaveThread() : nullptr) {}
    Released(const Released&) = delete;
    ~Released() { if (state != nullptr) PyEval_RestoreThread(state); }
    PyThreadState* state;
};
"""


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch's takes: what CXX names, else the usual one."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    gets_one = bool(os.environ.get("TORCH_INDUCTOR_INSTALL_GXX"))
    return gets_one or shutil.which(os.environ.get("CXX", usual)) is not None


class Kernel:
    """A function in C++.

    Args:
        name: under which it is kept.
        arguments: their types in C++; tensors are pointers.
        text: makes the source, in which the function is ``extern "C"`` and called ``kernel``.
            `Released` is there.
    """

    def __init__(self, name: str, arguments: Sequence[str], text: Callable[[], str]) -> None:
        self.name = name
        self._arguments, self._text = list(arguments), text
        self._found: Callable[..., None] | None = None
        self._failed = False

    def find(self, *, compiles: bool) -> Callable[..., None] | None:
        """The function; None where it was not compiled before, and must not or cannot be now.

        Once it is found it stays so in this process.

        Args:
            compiles: whether it may be compiled, which takes seconds.
        """
        if self._found is None:
            self._found = kept_library(self.name)
        if self._found is None and compiles and not self._failed:
            try:
                library = self._compiled()
            except Exception as error:  # noqa: BLE001  no compiler, or another torch
                self._failed = True
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                warnings.warn(
                    f"products take a slower way: the kernel {self.name} could not be compiled "
                    f"({reason})",
                    PunaWarning,
                    stacklevel=2,
                )
                return None
            keep_library(self.name, Path(str(library.__file__)))
            self._found = library.kernel
        return self._found

    def _compiled(self) -> ModuleType:
        text = _PREAMBLE + self._text()
        from torch._inductor import config
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        # widths of vectors are those of the processor, whatever code of other sizes is tuned for
        with config.patch({"cpp.vec_isa_ok": VEC_ISA_OK, "cpp.simdlen": None}):
            kernel = CppPythonBindingsCodeCache.load_pybinding(self._arguments, text)
        library: ModuleType = kernel.__self__
        return library


_library = torch.library.Library("puna", "DEF")
# strides are kept as they are traced: the kernels read rows that lie one behind the other
_tag = getattr(torch.Tag, "needs_exact_strides", None)


def cpu_operator(schema: str, check: Callable[..., None], write: Callable[..., None]) -> None:
    """Let ``torch.ops.puna`` have an operator, for compiled code calls nothing else.

    It writes into a tensor that it is given, which so can stay where it is from call to call.

    Args:
        schema: in torch's notation; it returns nothing.
        check: raises where its arguments do not fit each other. Called while code is traced.
        write: on CPU.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=() if _tag is None else (_tag,))
    _library.impl(name, write, "CPU")
    _library.impl(name, check, "Meta")
