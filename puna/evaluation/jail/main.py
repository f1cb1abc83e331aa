"""Runs one job: a keeper, which watches the clock, and a worker, which locks itself in.

The keeper gets the job on standard input, leaves the machine's namespaces, starts the worker, ends
it in time or when Puna ends, and reports. The worker gives up what it can give up and then runs the
code; what it says of itself counts only with a secret before it that is new in each run.
"""

import builtins
import contextlib
import ctypes  # noqa: F401  # loaded while its library can be read
import json
import linecache
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

from . import kernel, landlock, namespaces, seccomp

Say = Callable[[dict[str, Any]], object]

_RESERVE = 1 << 20  # bytes given back when memory has run out, so that this can still be said
_MOST_SAID = 1 << 20  # bytes of what a worker says that the keeper listens to
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def main() -> None:
    """Run the job on standard input; the report goes to the file descriptor in ``sys.argv[1]``."""
    report_to = int(sys.argv[1])
    job = json.load(sys.stdin.buffer)
    os.environ.clear()
    sys.argv[:] = [""]
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != job["parent"]:
        return
    layers = _Layers(job)
    layers.enter_namespaces()
    with os.fdopen(report_to, "w") as report:
        json.dump(_keep(job, layers, nothing, report_to), report)


class _Layers:
    """Which layers hold, and why others do not."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.wanted: list[str] = job["layers"]
        self.folder_bytes: int = job["folder_bytes"]
        self.held: list[str] = []
        self.missing: dict[str, str] = {}
        self.number = os.getpid()
        self.by_root = False

    def enter_namespaces(self) -> None:
        """The keeper's part."""
        self._try("namespaces", self._enter)
        self._try("private root", self._private_root)

    def lock(self) -> None:
        """The worker's part; afterwards nothing can be opened again."""
        if self.by_root:
            namespaces.become_nobody(self.number)
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        own_root = "private root" in self.held
        writable = ["/dev/null", *([namespaces.FOLDER] if own_root else [])]
        self._try("landlock", lambda: landlock.restrict(_readable(), writable))
        self._try(
            "seccomp", lambda: seccomp.restrict(os.getpid(), only_looks_at_files=not own_root)
        )

    def suffice(self) -> bool:
        """Whether files, network and other processes are closed."""
        return "seccomp" in self.held and ("private root" in self.held or "landlock" in self.held)

    def _enter(self) -> None:
        self.by_root = namespaces.enter()

    def _private_root(self) -> None:
        if "namespaces" not in self.held:
            raise OSError("it takes namespaces")
        namespaces.private_root(_readable(), self.folder_bytes)

    def _try(self, name: str, close: Callable[[], None]) -> None:
        try:
            if name not in self.wanted:
                raise OSError("not asked for")
            close()
        except OSError as error:
            self.missing[name] = error.strerror or str(error)
        else:
            self.held.append(name)


def _readable() -> list[str]:
    """What the interpreter needs: its library, the system's shared ones, time zones, devices."""
    wanted = [
        os.path.dirname(os.__file__),  # noqa: PTH120
        f"{sys.base_prefix}/lib",
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"),
        *("/usr/share/zoneinfo", *_DEVICES),
    ]
    return [
        path
        for place, path in enumerate(wanted)
        if os.path.exists(path)  # noqa: PTH110
        and path not in wanted[:place]
    ]


def _keep(job: dict[str, Any], layers: _Layers, nothing: int, report_to: int) -> dict[str, Any]:
    """Start the worker and stay until it has ended; what there is to report."""
    heard_from, said_to = os.pipe()
    secret = os.urandom(16).hex()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGALRM))
    start = time.monotonic()
    worker = os.fork()
    if worker == 0:
        os.close(heard_from)
        os.close(report_to)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _work(
            job,
            layers,
            lambda message: os.write(said_to, f"{secret} {json.dumps(message)}\n".encode()),
        )
    os.close(said_to)
    os.dup2(nothing, 1)  # so that Puna sees the end of the output when the worker ends
    os.dup2(nothing, 2)
    stopped: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGALRM))
    said = _listen(heard_from, secret)
    _, status, usage = os.wait4(worker, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "said": said,
        "timed_out": signal.SIGALRM in stopped,
        "stopped": signal.SIGTERM in stopped,
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "seconds": time.monotonic() - start,
    }


def _listen(pipe: int, secret: str) -> list[dict[str, Any]]:
    heard = b""
    while piece := os.read(pipe, 1 << 16):
        if len(heard) < _MOST_SAID:
            heard += piece
    lines = heard.decode("ascii", "replace").splitlines()
    return [json.loads(line[len(secret) :]) for line in lines if line.startswith(secret)]


def _work(job: dict[str, Any], layers: _Layers, say: Say) -> None:
    """The worker: locks itself in, runs the code and ends the process."""
    reserve = bytearray(_RESERVE)
    try:
        layers.lock()
        _limit(job, layers)
        closed = layers.suffice() or job["unconfined"]
        say({"layers": layers.held, "missing": layers.missing, "refused": not closed})
        if closed:
            _run(job, say)
    except BaseException as error:  # noqa: BLE001  # whatever it is, the code's or ours
        if isinstance(error, MemoryError):
            del reserve
            say({"memory": True})
        _print(error)
    finally:
        os._exit(0)


def _limit(job: dict[str, Any], layers: _Layers) -> None:
    limits = {
        resource.RLIMIT_CPU: int(job["seconds"]) + 1,
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["folder_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if "namespaces" in layers.held:  # elsewhere the user's other threads would count as well
        limits[resource.RLIMIT_NPROC] = job["threads"] + 1  # the keeper
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (most, most))


def _run(job: dict[str, Any], say: Say) -> None:
    """The program, then each check of it; an error of the program goes to the caller."""
    module = ModuleType(job["name"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "jail"]:
        del sys.modules[name]
    sys.modules["__main__"] = sys.modules[job["name"]] = module
    module.__dict__["__builtins__"] = builtins
    _execute(job["program"], "<program>", module)
    for place, check in enumerate(job["checks"]):
        try:
            _execute(check, f"<test {place + 1}>", module)
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001  # SystemExit too is a test not passed
            say({"check": False})
            _print(error)
        else:
            say({"check": True})
    _flush()
    say({"ended": True})


def _execute(source: str, name: str, module: ModuleType) -> None:
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102  # what all of this is for


def _print(error: BaseException) -> None:
    """The traceback, without the frames of this module."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    with contextlib.suppress(Exception):
        traceback.print_exception(type(error), error, trace)
    _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the code may have put anything in their place
            stream.flush()
