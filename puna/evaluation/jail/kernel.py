"""Linux calls that Python has no functions for: through libc, an error is an `OSError`."""

import ctypes
import os
import sys

_MACHINES = ("x86_64", "aarch64")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38

_CAPABILITY_VERSION_3 = 0x20080522


def machine() -> int:
    """The column of this machine in tables of system calls: 0 for x86-64, 1 for 64-bit ARM.

    Raises `OSError` on another one.
    """
    name = os.uname().machine
    if name not in _MACHINES or sys.maxsize < 2**32:
        raise OSError(f"the system calls of {name} are not known here")
    return _MACHINES.index(name)


def syscall(numbers: tuple[int, int], *arguments: object) -> int:
    """The system call with these numbers, one for each machine."""
    return _checked(_libc.syscall(ctypes.c_long(numbers[machine()]), *map(_native, arguments)))


def prctl(option: int, *arguments: object) -> None:
    """Change a property of this process; arguments left out are 0."""
    four = [*arguments, 0, 0, 0, 0][:4]
    _checked(_libc.prctl(ctypes.c_int(option), *map(_native, four)))


def mount(
    source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str = ""
) -> None:
    """mount(2)."""
    texts = (text and text.encode() for text in (source, target, kind))
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), options.encode()))


def unmount(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(target.encode(), ctypes.c_int(flags)))


def unshare(flags: int) -> None:
    """unshare(2); `os.unshare` is there from Python 3.12 only."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def drop_capabilities() -> None:
    """Give up root's privileges, those of a namespace included."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, none))


def _native(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
