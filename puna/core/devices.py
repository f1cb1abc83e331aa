"""What this machine is: its device, its data types, its measured speed."""

import ctypes
import os
import platform
import re
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

_KEEP = {-8: 1, -4: 0, -1: 2**31 - 1}  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h


def default_device() -> torch.device:
    """The first CUDA device when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def fast_bf16(device_type: str) -> bool:
    """Whether bf16 matrix products have hardware of their own here."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags or platform.machine() == "arm64"


def fast_dtype(device_type: str) -> torch.dtype:
    """The data type of the fastest matrix products here: bf16 where it has hardware, else fp32."""
    return torch.bfloat16 if fast_bf16(device_type) else torch.float32


@cache
def fast_int8() -> bool:
    """Whether the CPU sums products of 8-bit integers in hardware (VNNI)."""
    return not cpu_flags().isdisjoint(("avx512_vnni", "avx_vnni"))


def keep_freed_memory() -> None:
    """Let the C library keep what it frees for later use, for the whole process.

    Activations come and go with every step. By default glibc gives large blocks back to the system
    and gets them as fresh pages, which costs more than the arithmetic on them (docs/log.md). Memory
    stays at its peak. Elsewhere than on glibc it does nothing.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in _KEEP.items():
            library.mallopt(option, value)


def in_own_thread(function: Callable[[], Result]) -> Result:
    """The result of ``function``, or its exception, from a thread that ends with it.

    OpenMP keeps helpers for every thread that ever ran a parallel loop. When helpers outnumber the
    processors, GNU's sleep at each barrier instead of waiting actively, and small loops take twice
    the time, in all threads (docs/log.md). So a process that computes in one thread prepares in
    another that leaves no helpers behind.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001  raised for the caller
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="puna-prepare", daemon=True)
    thread.start()
    result = outcome.result()  # Ctrl-C ends the waiting; the thread ends with the process
    thread.join()
    return result


@cache
def cpu_flags() -> frozenset[str]:
    """Instructions that the processor says it has, as Linux names them; none elsewhere."""
    try:
        with open("/proc/cpuinfo") as handle:
            line = next((line for line in handle if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(line.split())


def avx512(extension: str) -> bool:
    """Whether torch uses AVX512 here and the processor has this extension of it."""
    return extension in cpu_flags() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def peak_memory(device_type: str) -> int:
    """Most bytes held at once so far: by torch on a GPU, else by this process."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there begins with what the parent process held
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, str | int | float]:
    """The facts a figure needs beside it: processor, cores, memory, Python, torch."""
    facts: dict[str, str | int | float] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gib"] = round(total / 1024**3, 1)
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpus"] = torch.cuda.device_count()
    return facts


@cache
def peak_flops(device_type: str, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a square matrix product here: the denominator of MFU.

    Median of 5 products of 8192 squares on a GPU, in float8 scaled ones; on a CPU of 2048 in bf16,
    of 1024 in fp32, and of 256 in bf16 where it has no fast product of it. Under half a second.
    """
    if device_type == "cuda":
        size = 8192
    elif dtype == torch.float32:
        size = 1024
    else:
        size = 2048 if fast_bf16("cpu") else 256  # there one of 2048 takes twenty seconds
    left = torch.randn(size, size, device=device_type).to(dtype)
    right = torch.randn(size, size, device=device_type).to(dtype)
    one = torch.ones((), device=device_type)

    def multiply() -> None:
        if dtype.itemsize == 1:
            torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)
        else:
            left @ right

    times = []
    for _ in range(7):
        start = time.perf_counter()
        multiply()
        if device_type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[2:])


@cache
def memory_bandwidth(device_type: str) -> float:
    """Measured bytes/s of reading memory here: the limit of decoding a single text.

    The fastest of 9 sums, by all threads, over 512 MiB (CPU, more than its caches hold) or 4 GiB
    (GPU). The fastest, since it stands for a limit; about a second.
    """
    n_bytes = 2**32 if device_type == "cuda" else 2**29
    numbers = torch.ones(n_bytes // 8, dtype=torch.int64, device=device_type)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        numbers.sum()
        if device_type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return n_bytes / min(times)
