"""Compiled functions kept on disk in a form that needs neither Dynamo nor Inductor to run.

torch keeps Inductor's results too, but to reach them it traces the function again, which takes a
second each (docs/log.md). What a `Shortcut` calls in the end is a page of Python that allocates
memory and calls kernels, each a shared library: both are copied here, with the rule by which the
arguments become that code's inputs. It is found again by everything that shaped it.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from puna.core.devices import cpu_flags
from puna.core.errors import PunaError, UsageError
from puna.core.files import new_folder, sha256_value, write_bytes, write_json, write_text
from puna.core.wheels import cache_folder

_CODE, _RULE = "code.py", "rule.json"
_KERNEL = re.compile(r"^(\w+) = async_compile\.cpp_pybinding\(\[.*?\], r'''.*?'''\)$", re.M | re.S)
_OF_INDUCTOR = re.compile(
    r"^from torch\._inductor.*\n|^async_compile.*\n|^del async_compile\n", re.M
)
# what only Inductor brings: code that uses it is not kept
_NEEDS_INDUCTOR = re.compile(
    r"\bextern_kernels\.|\balign\(|\bmaybe_profile\(|\bAsyncCompile\b|_tensor_constant|\binductor_ops\.|\balloc_from_pool\(|\btorch\.ops\.quantized\."
)
_UNUSED_S = 30 * 24 * 3600  # after which what other versions left is removed
Code = Callable[[list[Any]], Sequence[Any]]


class Kept(NamedTuple):
    """What a function was compiled to."""

    code: Code
    """Inductor's: takes the list of its inputs, which it empties, and returns its outputs."""
    rule: Any
    """JSON value: how arguments become inputs and outputs the result."""


class CodeShelf:
    """The place of one compiled function.

    Args:
        name: of the function.
        facts: what shapes its code beside its arguments and Puna's and torch's versions.
        args: of a call; tensors count by data type and shape.
        varying: sizes that any call may change, by the argument's number.
    """

    def __init__(
        self,
        name: str,
        facts: str,
        args: Sequence[Any],
        varying: Mapping[int, Sequence[int]],
    ) -> None:
        kinds = [_kind(arg, varying.get(number, ())) for number, arg in enumerate(args)]
        self.folder = _shelves() / f"{name}-{sha256_value([facts, kinds])[:24]}"

    def load(self) -> Kept | None:
        """What `save` left; None where there is nothing that can be used."""
        try:
            rule = json.loads((self.folder / _RULE).read_text())
            text = (self.folder / _CODE).read_text()
            libraries = [path for path in self.folder.iterdir() if path.suffix == ".so"]
            scope: dict[str, Any] = {path.stem: _kernel(path) for path in libraries}
            exec(compile(text, str(self.folder / _CODE), "exec"), scope)  # noqa: S102  our own
            return Kept(scope["call"], rule)
        except Exception:  # noqa: BLE001  whatever is wrong with it, it can be compiled anew
            return None

    def save(self, source: str, code: Code, rule: Any) -> None:
        """Keep ``code``, made from the text ``source``, where it can do without Inductor."""
        scope = getattr(getattr(code, "__func__", None), "__globals__", {})
        kernels = {name: scope.get(name) for name in _KERNEL.findall(source)}
        libraries = {name: getattr(kernel, "__self__", None) for name, kernel in kernels.items()}
        text = _OF_INDUCTOR.sub("", _KERNEL.sub("", source))
        if not kernels or _NEEDS_INDUCTOR.search(text):
            return
        with suppress(OSError, PunaError), new_folder(self.folder) as building:
            for name, library in libraries.items():
                if not isinstance(library, ModuleType):
                    raise UsageError(f"{name} is no kernel that could be copied")
                shutil.copyfile(str(library.__file__), building / f"{name}.so")
            write_text(building / _CODE, text)
            write_json(building / _RULE, rule)


def kept_library(name: str) -> Callable[..., Any] | None:
    """The function of a shared library that `keep_library` kept here before, if it still loads."""
    path = _shelves() / f"{name}.so"
    try:
        return _kernel(path) if path.exists() else None
    except Exception:  # noqa: BLE001  as for a `CodeShelf`
        return None


def keep_library(name: str, library: Path) -> None:
    """Keep a copy of a library that Inductor made, where there is a place for it."""
    with suppress(OSError, PunaError):
        write_bytes(_shelves() / f"{name}.so", library.read_bytes())


def _kind(arg: Any, varying: Sequence[int]) -> Any:
    """What compiled code takes for granted of an argument."""
    if not isinstance(arg, Tensor):
        return repr(arg)
    shape = [None if place in varying else size for place, size in enumerate(arg.shape)]
    strides = arg.is_contiguous() if varying else arg.stride()
    return [str(arg.dtype), str(arg.device), shape, strides]


def _kernel(path: Path) -> Callable[..., Any]:
    """The function of a shared library that Inductor made."""
    guards: Any = torch._C._dynamo.guards
    pointer = guards._torchinductor_pyobject_tensor_data_ptr
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(pointer)  # it looks there
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{path.stem}.kernel", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel: Callable[..., Any] = module.kernel
    return kernel


@cache
def _shelves() -> Path:
    """The folder for this code, this torch and this machine; long unused ones are removed."""
    digest = hashlib.sha256()
    rooms = Path(__file__).parents[1]
    for path in sorted([*(rooms / "inference").glob("*.py"), *(rooms / "model").glob("*.py")]):
        digest.update(path.read_bytes())
    facts = (
        torch.__version__,
        sys.version,
        platform.machine(),
        sorted(cpu_flags()),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
    )
    digest.update(repr(facts).encode())
    shelves = cache_folder() / "compiled"
    folder = shelves / digest.hexdigest()[:24]
    with suppress(OSError):  # a cache that cannot be written is done without
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        for other in shelves.iterdir():
            if other.is_dir() and other.stat().st_mtime < time.time() - _UNUSED_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder
