"""Namespaces: no network but a dead loopback, no other process in sight, a root of one's own.

The private root is a file system in memory on which the interpreter's own files lie, read-only. Its
one writable place is `FOLDER`, in memory too and of limited size, so nothing reaches a disk.
"""

import os
from collections.abc import Sequence

from . import kernel

FOLDER = "/tmp"  # noqa: S108  # of the private root, not of the machine

_NEW_ROOT = "/proc"  # a folder that every Linux has and that nothing needs once we are inside
_CLONE_NEWUSER = 0x10000000
# Mounts, processes, network, IPC and the machine's name.
_CLONE_OTHERS = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_READ_ONLY_NOSUID = 1 | 2
_MOUNT_SETATTR, _PIVOT_ROOT = (442, 442), (155, 41)
_FIRST_FREE_ID = 0x70000000  # above the ranges that containers and systemd give out


def enter() -> bool:
    """Leave the machine's namespaces; children are in a process namespace of their own.

    Returns:
        Whether root did so. Then the worker must become a user that nobody is (`become_nobody`);
        otherwise it stays the user it is, in a user namespace without privileges.

    Raises `OSError` where that is not allowed, as in most containers.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        try:
            kernel.unshare(_CLONE_OTHERS)
            return True
        except PermissionError:
            pass  # root of a container, without the privilege
    kernel.unshare(_CLONE_NEWUSER | _CLONE_OTHERS)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    return False


def become_nobody(number: int) -> None:
    """Change from root to the user and group of this number, which own no file and no process.

    A number for each run, since the kernel counts processes by user and does not count root's.
    """
    os.setgroups([])
    os.setresgid(*[_FIRST_FREE_ID + number] * 3)
    os.setresuid(*[_FIRST_FREE_ID + number] * 3)


def private_root(readable: Sequence[str], folder_bytes: int) -> None:
    """Make a root of ``readable`` files and folders and an empty `FOLDER`, and go there.

    Raises `OSError` where mounting is not allowed, and before Linux 5.12.
    """
    kernel.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    kernel.mount("tmpfs", _NEW_ROOT, "tmpfs", _MS_NOSUID, "size=1m,mode=755")
    for path in readable:
        _show(path, _NEW_ROOT + path)
    folder = _NEW_ROOT + FOLDER
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    attributes = (_MOUNT_ATTR_READ_ONLY_NOSUID).to_bytes(8, "little") + bytes(24)
    kernel.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, _NEW_ROOT.encode(), _AT_RECURSIVE, attributes, len(attributes)
    )
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    kernel.mount("tmpfs", folder, "tmpfs", flags, f"size={folder_bytes},nr_inodes=1k,mode=1777")
    os.chdir(_NEW_ROOT)
    kernel.syscall(_PIVOT_ROOT, b".", b".")  # the old root now lies over the new one
    kernel.unmount(".", _MNT_DETACH)
    os.chdir(FOLDER)


def _show(path: str, place: str) -> None:
    if os.path.isdir(path):  # noqa: PTH112
        os.makedirs(place, exist_ok=True)  # noqa: PTH103
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
    kernel.mount(path, place, None, _MS_BIND | _MS_REC)


def _write(path: str, text: str) -> None:
    with open(path, "w") as handle:
        handle.write(text)
