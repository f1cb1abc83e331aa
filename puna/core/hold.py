"""A folder that one process at a time works in."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from puna.core.errors import UsageError
from puna.core.files import explain_os_errors

HELD = ".held"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if need be.

    The system lets go of it when this process ends, however it ends. File systems without locks,
    and Windows, keep nobody out. Raises `UsageError` while another process holds it.
    """
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / HELD, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        who = os.read(descriptor, 300).decode(errors="replace") or "another process"
        raise UsageError(
            f"{who} works in {folder}: wait for its end, stop it, or give the run another name"
        ) from error
    except OSError:
        return  # no locks here
    with suppress(OSError):  # on a full disk it is not said who
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
