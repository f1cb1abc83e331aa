"""Runs Python code that nobody has read: an own interpreter, locked in by the kernel, with limits.

Which layers there are, what each closes and what is left: docs/evaluation.md, "Running generated
code". What happens inside: `puna.evaluation.jail`.
"""

import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from puna.core.config import Config
from puna.core.errors import PunaError

LAYERS = ("namespaces", "private root", "landlock", "seccomp")
"""All that the kernel may offer, in the order in which they are put on."""
UNCONFINED = "PUNA_RUN_UNCONFINED"
"""Set to 1 in the environment, code also runs where the machine cannot lock it in."""

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[2]); from jail.main import main; "
    "del sys.path[0]; main()"
)
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # sets have one order, so a score is the same again
    "PYTHONIOENCODING": "utf-8:backslashreplace",
    "MALLOC_ARENA_MAX": "1",  # else every thread takes 64 MB of the address space
}
_STARTS_IN_S = 30.0  # an interpreter on a busy machine
_FLOOD = 1 << 24  # bytes of output after which nobody will read on
_PIECE = 1 << 16


class Limits(Config):
    """How much a run may take."""

    seconds: float = Field(default=5.0, gt=0)
    """Of time on the clock."""
    memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    """Address space, the interpreter's own 20 MB included."""
    folder_bytes: int = Field(default=16 << 20, ge=1 << 16)
    """Size of the working folder, which lies in memory."""
    output_bytes: int = Field(default=64 << 10, ge=0)
    """Kept of standard output, and as much of standard error; the rest is dropped."""
    threads: int = Field(default=32, ge=1)
    """Threads at once, the first included, where namespaces are allowed."""


class Status(StrEnum):
    """How a run ended."""

    PASSED = "passed"
    """The program came to its end, and all checks passed."""
    FAILED = "failed"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    REFUSED = "refused"
    """Nothing was run, as the machine cannot lock it in."""


@dataclass(frozen=True)
class Result:
    """What became of a run."""

    status: Status
    checks: tuple[bool, ...] = ()
    """Whether each check passed, as far as they were reached."""
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    layers: tuple[str, ...] = ()
    """Those of `LAYERS` that held."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why each other one did not."""

    def __str__(self) -> str:
        held = ", ".join(self.layers) or "nothing"
        lacking = "; ".join(f"{name}: {why}" for name, why in self.missing.items())
        return f"{self.status}, locked in by {held}" + (f" ({lacking})" if lacking else "")


def run_python(
    program: str,
    checks: tuple[str, ...] = (),
    limits: Limits = Limits(),  # noqa: B008  # frozen
    *,
    name: str = "__main__",
    layers: tuple[str, ...] = LAYERS,
) -> Result:
    """Run a program, then each check in the same module; all of it is untrusted.

    The interpreter is that of this process, without its packages: Python's own library is all there
    is. Its environment is empty, its input closed, its hash seed 0. It may start threads but no
    processes. Nothing of the run is left when this returns. Many may run at once, in threads.

    Args:
        program: source text.
        checks: source texts; one that raises, `SystemExit` too, has not passed, and the next is
            run. None is run if the program itself raised.
        limits: how much the run may take.
        name: the program's ``__name__``.
        layers: those to try.

    Raises `PunaError` when the interpreter could not be started at all.
    """
    if sys.platform != "linux":
        return Result(Status.REFUSED, missing=dict.fromkeys(LAYERS, "only on Linux"))
    job = {
        **limits.model_dump(),
        "program": program,
        "checks": checks,
        "name": name,
        "layers": layers,
        "parent": os.getpid(),
        "unconfined": os.environ.get(UNCONFINED) == "1",
    }
    outputs, report = _start(json.dumps(job), limits)
    try:
        found = json.loads(report)
    except ValueError:
        raise PunaError(
            f"the sandbox's interpreter {sys.executable} ended or hung before it could report: "
            f"{outputs[1][-500:].strip() or 'it said nothing'}"
        ) from None
    return _result(found, limits, *outputs)


@functools.cache
def available() -> Result:
    """What locks code in on this machine, found out by running an empty program."""
    return run_python("")


def refusal(result: Result) -> str:
    """One line for the user on why nothing was run, and what to do."""
    why = "; ".join(f"{name}: {reason}" for name, reason in result.missing.items())
    return (
        f"generated code was not run: this machine cannot lock it in ({why}). It takes Linux with "
        f"seccomp, and Landlock or user namespaces; {UNCONFINED}=1 runs it with your rights"
    )


def _start(job: str, limits: Limits) -> tuple[tuple[str, str], bytes]:
    """Standard output and error, and the keeper's report."""
    read_end, write_end = os.pipe()
    folder = str(Path(__file__).parent)
    # Not -I, which would leave the hash seed, and with it the order of sets, to chance.
    command = [sys.executable, "-s", "-S", "-P", "-X", "utf8", "-c", _BOOT, str(write_end), folder]
    with os.fdopen(read_end, "rb") as report:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                pass_fds=(write_end,),
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        try:
            stdout, stderr, said = _converse(process, job, report, limits)
        finally:
            _end(process)
    texts = (bytes(kept).decode("utf-8", "replace") for kept in (stdout, stderr))
    return (next(texts), next(texts)), bytes(said)


def _converse(
    process: subprocess.Popen[bytes], job: str, report: IO[bytes], limits: Limits
) -> list[bytearray]:
    """Give the job, then read until all is said, too much is said, or it is high time."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(job.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it did not start; its standard error says why
    deadline = time.monotonic() + limits.seconds + _STARTS_IN_S
    streams = (process.stdout, process.stderr, report)
    kept = [bytearray() for _ in streams]
    room = [limits.output_bytes, limits.output_bytes, _FLOOD]
    read, asked_to_stop = 0, False
    with selectors.DefaultSelector() as waiting:
        for place, stream in enumerate(streams):
            waiting.register(stream, selectors.EVENT_READ, place)
        while waiting.get_map():
            for key, _ in waiting.select(max(0.0, deadline - time.monotonic())):
                piece = os.read(key.fd, _PIECE)
                if not piece:
                    waiting.unregister(key.fileobj)
                read += len(piece)
                kept[key.data] += piece[: max(0, room[key.data] - len(kept[key.data]))]
            if read > _FLOOD and not asked_to_stop:
                process.terminate()
                asked_to_stop = True
            if time.monotonic() > deadline:
                break
    return kept


def _end(process: subprocess.Popen[bytes]) -> None:
    """See to it that keeper and worker are gone, whatever has happened."""
    try:
        process.terminate()  # the keeper ends the worker first; mostly both have ended
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _result(found: dict[str, Any], limits: Limits, stdout: str, stderr: str) -> Result:
    said: dict[str, Any] = {}
    checks = []
    for message in found["said"]:
        said |= message
        if "check" in message:
            checks.append(message["check"])
    killed = found["exit"] == -signal.SIGKILL and not found["stopped"]
    if said.get("refused", False):
        status = Status.REFUSED
    elif said.get("ended", False):
        status = Status.PASSED if all(checks) else Status.FAILED
    elif found["timed_out"] or (killed and found["cpu_seconds"] > limits.seconds):
        status = Status.TIMED_OUT
    elif said.get("memory", False) or killed:  # killed by the kernel, for want of memory
        status = Status.OUT_OF_MEMORY
    else:
        status = Status.FAILED
        if found["exit"] < 0:
            stderr += f"ended by {signal.Signals(-found['exit']).name}\n"
    return Result(
        status,
        tuple(checks),
        stdout,
        stderr,
        found["seconds"],
        tuple(said.get("layers", ())),
        said.get("missing", {}),
    )
