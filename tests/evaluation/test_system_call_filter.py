"""The filter's program, followed step by step for machines other than this one too."""

import errno
import struct

import pytest

from puna.evaluation.jail import kernel, seccomp

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 77
ALLOWED, KILLED = "allowed", "killed"
CALLS = {  # numbers on each machine, from the kernel's tables
    "read": (0, 63),
    "mmap": (9, 222),
    "openat": (257, 56),
    "futex": (202, 98),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "fcntl": (72, 25),
    "prctl": (157, 167),
    "ptrace": (101, 117),
    "fchmod": (91, 52),
}
THREAD, FORK = 0x3D0F00, 17  # what libc passes to clone


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kernel, "machine", lambda: list(MACHINES).index(request.param))
    return str(request.param)


def decide(machine: str, call: str | int, *arguments: int, looks: bool = False) -> str | int:
    """What the kernel would make of a call: ALLOWED, KILLED, or the error it gives."""
    number = call if isinstance(call, int) else CALLS[call][list(MACHINES).index(machine)]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, MACHINES[machine], 0, *padded)
    return follow(seccomp._program(PID, looks), data)


def follow(program: list[bytes], data: bytes) -> str | int:
    place, held = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack("=HBBI", program[place])
        place += 1
        match code:
            case 0x20:
                held = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                held &= value
            case 0x15:
                place += if_true if held == value else if_false
            case 0x25:
                place += if_true if held > value else if_false
            case 0x06:
                action = value & 0xFFFF0000
                found = {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050000: value & 0xFFFF}
                return found[action]


def test_what_programs_need_is_allowed(machine: str) -> None:
    for call in ("read", "mmap", "openat", "futex", "fcntl", "prctl"):
        assert decide(machine, call) == ALLOWED
    assert decide(machine, "clone", THREAD) == ALLOWED
    assert decide(machine, "socketpair", 1, 1 | 0x80000) == ALLOWED
    assert decide(machine, "prlimit64", 0) == ALLOWED
    assert decide(machine, "kill", PID) == decide(machine, "tgkill", PID) == ALLOWED
    assert decide(machine, "fchmod") == ALLOWED


def test_the_rest_is_refused(machine: str) -> None:
    for call in ("execve", "socket", "ptrace"):
        assert decide(machine, call) == errno.EPERM
    assert decide(machine, "clone", FORK) == errno.EPERM
    assert decide(machine, "socketpair", 1, 2) == decide(machine, "socketpair", 2, 1) == errno.EPERM
    assert decide(machine, "prlimit64", 1) == errno.EPERM
    for target in (0, 1, PID + 1, 2**64 - 1, 2**32 - PID):
        assert decide(machine, "kill", target) == errno.EPERM
    assert decide(machine, "fcntl", 3, 8) == decide(machine, "prctl", 1) == errno.EPERM
    assert decide(machine, "fchmod", looks=True) == errno.EPERM


def test_newer_calls_look_as_if_the_kernel_had_none(machine: str) -> None:
    assert decide(machine, "clone3") == errno.ENOSYS  # libc then takes clone
    for number in (451, 452, 469, 10**6, 0x40000000 | 41):  # the last is socket of x32
        assert decide(machine, number) == errno.ENOSYS


def test_calls_in_the_way_of_another_machine_end_the_process(machine: str) -> None:
    i386 = struct.pack("<IIQ6Q", 102, 0x40000003, 0, *[0] * 6)  # socketcall
    assert follow(seccomp._program(PID, False), i386) == KILLED
