"""A folder that one process at a time works in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puna.core.errors import UsageError
from puna.core.files import explain_os_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HELD = ".held"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if need be.

    The system lets go of it when this process ends, however it ends. File systems without locks
    keep nobody out. Raises `UsageError` while another process holds it.
    """
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / HELD).open("a+", encoding="ascii")
    with file:
        if fcntl is not None and _locked(file.fileno()):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        elif fcntl is not None:
            file.seek(0)
            raise UsageError(
                f"process {file.read(20) or '?'} works in {folder}: wait for its end, stop it, or "
                "give the run another name"
            )
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True
