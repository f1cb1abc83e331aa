"""The filter of system calls: no sockets, no new processes or programs, no hand on other processes.

Threads may be started, processes not: so there is nothing that could outlive the run, and the limit
of memory, which Linux counts by process, is one of the whole run. Calls that are denied fail with
"Operation not permitted"; calls newer than this list look as if the kernel did not have them.
"""

import ctypes
import errno
import struct

from . import kernel

_NONE = -1  # a call that the machine does not have
_Calls = dict[str, tuple[int, int]]

_SOCKETS: _Calls = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
}
_NEW_PROGRAMS: _Calls = {
    "fork": (57, _NONE),
    "vfork": (58, _NONE),
    "execve": (59, 221),
    "execveat": (322, 281),
}
_OTHER_PROCESSES: _Calls = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}
_WHAT_OUTLIVES_A_PROCESS: _Calls = {
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_MEMORY_THAT_IS_NOT_COUNTED: _Calls = {"memfd_create": (319, 279), "memfd_secret": (447, 447)}
# Little needed and often attacked, or other doors to what is closed above.
_KERNEL_SURFACE: _Calls = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "sync": (162, 81),
    "syncfs": (306, 267),
}
# On files that may only be looked at: Landlock does not see to these.
_FILES: _Calls = {
    "truncate": (76, 45),
    "chmod": (90, _NONE),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, _NONE),
    "fchown": (93, 55),
    "lchown": (94, _NONE),
    "fchownat": (260, 54),
    "utime": (132, _NONE),
    "utimes": (235, _NONE),
    "futimesat": (261, _NONE),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "inotify_init": (253, _NONE),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
}
_DENIED: _Calls = {
    **_SOCKETS,
    **_NEW_PROGRAMS,
    **_OTHER_PROCESSES,
    **_WHAT_OUTLIVES_A_PROCESS,
    **_MEMORY_THAT_IS_NOT_COUNTED,
    **_KERNEL_SURFACE,
}
# Only where the bits of an argument under a mask have this value: (argument, mask, value).
_CLONE, _CLONE_THREAD = (56, 220), 0x10000
_SOCKETPAIR, _AF_UNIX, _SOCK_STREAM = (53, 199), 1, 1  # asyncio wakes itself with one
_PRLIMIT = (302, 261)
_SIGNALS = ((62, 129), (200, 130), (234, 131), (129, 138), (297, 240))  # kill and its kin
# Not with these values of an argument: who is to get a signal for a file or a parent's death.
_FCNTL, _F_SETOWN_SETSIG_SETOWN_EX = (72, 25), (8, 10, 15)
_IOCTL, _FIOSETOWN_SIOCSPGRP_TIOCSTI = (16, 29), (0x8901, 0x8902, 0x5412)
_PRCTL = (157, 167)
_CLONE3 = (435, 435)  # its flags lie in memory; libc then takes clone
_NEWEST = 450

_MACHINES = (0xC000003E, 0xC00000B7)  # AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64
_LOAD, _AND, _IF_EQUAL, _IF_ABOVE, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_NUMBER_AT, _MACHINE_AT = 0, 4


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def restrict(pid: int, *, only_looks_at_files: bool) -> None:
    """Filter the calls of this process, ``pid`` as it sees itself, and of its threads to come.

    Raises `OSError` where the kernel has no such filter, or the machine is another.
    """
    code = b"".join(_program(pid, only_looks_at_files))
    memory = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(memory))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.byref(program))


def _program(pid: int, only_looks_at_files: bool) -> list[bytes]:
    """Classic BPF: the number of the call is held while it is compared with one after another."""
    column = kernel.machine()
    denied = _DENIED | _FILES if only_looks_at_files else _DENIED
    rules = [
        *_only_if(_CLONE[column], (0, _CLONE_THREAD, _CLONE_THREAD)),
        *_only_if(_SOCKETPAIR[column], (0, 0xFFFFFFFF, _AF_UNIX), (1, 0xF, _SOCK_STREAM)),
        *_only_if(_PRLIMIT[column], (0, 0xFFFFFFFF, 0)),
        *_not_if(_FCNTL[column], 1, _F_SETOWN_SETSIG_SETOWN_EX),
        *_not_if(_IOCTL[column], 1, _FIOSETOWN_SIOCSPGRP_TIOCSTI),
        *_not_if(_PRCTL[column], 0, (kernel.PR_SET_PDEATHSIG,)),
    ]
    for numbers in _SIGNALS:
        rules += _only_if(numbers[column], (0, 0xFFFFFFFF, pid))
    for numbers in denied.values():
        if numbers[column] != _NONE:
            rules += _case(numbers[column], [_step(_RETURN, _REFUSE)])
    return [
        _step(_LOAD, _MACHINE_AT),
        _step(_IF_EQUAL, _MACHINES[column], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_IF_ABOVE, _NEWEST, 0, 1),
        _step(_RETURN, _UNKNOWN),
        *_case(_CLONE3[column], [_step(_RETURN, _UNKNOWN)]),
        *rules,
        _step(_RETURN, _ALLOW),
    ]


def _only_if(number: int, *conditions: tuple[int, int, int]) -> list[bytes]:
    body = []
    for argument, mask, value in conditions:
        body += [_load_argument(argument), _step(_AND, mask)]
        body += [_step(_IF_EQUAL, value, 1, 0), _step(_RETURN, _REFUSE)]
    return _case(number, [*body, _step(_RETURN, _ALLOW)])


def _not_if(number: int, argument: int, values: tuple[int, ...]) -> list[bytes]:
    body = [_load_argument(argument)]
    for value in values:
        body += [_step(_IF_EQUAL, value, 0, 1), _step(_RETURN, _REFUSE)]
    return _case(number, [*body, _step(_RETURN, _ALLOW)])


def _case(number: int, body: list[bytes]) -> list[bytes]:
    return [_step(_IF_EQUAL, number, 0, len(body)), *body]


def _load_argument(place: int) -> bytes:
    return _step(_LOAD, 16 + 8 * place)  # its lower half, on these machines the first


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
