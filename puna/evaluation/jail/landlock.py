"""Landlock: a process gives up, for good, all files but those it names. No privilege is needed.

It says nothing of files' owners, modes and times, nor of sockets other than TCP; the system call
filter (`seccomp`) closes these. https://docs.kernel.org/userspace-api/landlock.html
"""

import os
import struct
from collections.abc import Sequence

from . import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = (444, 444), (445, 445), (446, 446)
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # bits in use, by Landlock's version
_TCP_BIND_AND_CONNECT, _TCP_SINCE = 0b11, 4
_ABSTRACT_SOCKETS_AND_SIGNALS, _SCOPES_SINCE = 0b11, 6


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Give up all files but those at or below ``readable`` and ``writable``.

    Where the kernel knows how: TCP, and signals to processes that were not so restricted, too.
    Raises `OSError` where the kernel has no Landlock or it is switched off.
    """
    version = kernel.syscall(_CREATE_RULESET, None, 0, _VERSION)
    every = (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1
    tcp = _TCP_BIND_AND_CONNECT if version >= _TCP_SINCE else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0
    # An older kernel takes the longer structure as long as what it does not know is 0.
    attributes = struct.pack("=QQQ", every, tcp, scopes)
    rules = kernel.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(rules, path, _READ_FILE | _READ_DIR)
        for path in writable:
            _allow(rules, path, every)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.syscall(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):  # noqa: PTH112
        rights &= _READ_FILE | _WRITE_FILE  # the kernel refuses rights that a file cannot have
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kernel.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)
