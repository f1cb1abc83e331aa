"""Attacks on the sandbox, each through every set of layers that is enough alone."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import puna.evaluation
from puna.core.errors import PunaError
from puna.evaluation.sandbox import (
    LAYERS,
    UNCONFINED,
    Limits,
    Result,
    Status,
    available,
    refusal,
    run_python,
)

pytestmark = pytest.mark.clock
ENOUGH = (LAYERS, ("namespaces", "private root", "seccomp"), ("landlock", "seccomp"))
ROUTES = [route for route in ENOUGH if set(route) <= set(available().layers)]
BREACH = "BREACH"
SECRET = "a-secret-of-the-parent"

# Each attack ends well, and only then says BREACH, where nothing stops it. PLACE is a folder of the
# user's with a file `diary`, PARENT a process of the user's, PORT where somebody listens.
HARMLESS_ATTACKS = {
    "reads the accounts": "found = open('/etc/passwd').read(); assert 'root' in found",
    "reads a file of the user's": "assert open(f'{PLACE}/diary').read()",
    "lists a folder of the user's": "import os; assert 'diary' in os.listdir(PLACE)",
    "reads the project": "assert open(f'{PROJECT}/pyproject.toml').read()",
    "writes beside the user's files": "open(f'{PLACE}/new', 'w').write('x')",
    "writes over a file": "open(f'{PLACE}/diary', 'a').write('x')",
    "empties a file": "import os; os.truncate(f'{PLACE}/diary', 0)",
    "removes a file": "import os; os.unlink(f'{PLACE}/diary')",
    "moves a file": "import os; os.rename(f'{PLACE}/diary', f'{PLACE}/moved')",
    "changes who may read a file": "import os; os.chmod(f'{PLACE}/diary', 0o777)",
    "changes the time of a file": "import os; os.utime(f'{PLACE}/diary', (1, 1))",
    "makes a folder": "import os; os.mkdir(f'{PLACE}/folder')",
    "makes a link": "import os; os.link(f'{PLACE}/diary', f'{PLACE}/link')",
    "calls a port of this machine": "import socket; socket.create_connection(('127.0.0.1', PORT))",
    "sends a datagram": (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "assert s.sendto(b'x', ('127.0.0.1', PORT))"
    ),
    "calls a service by its file": (
        "import socket; socket.socket(socket.AF_UNIX).connect(f'{PLACE}/service')"
    ),
    "turns a pair of sockets on a service": (
        "import socket; a, b = socket.socketpair(type=socket.SOCK_DGRAM)\n"
        "a.connect(f'{PLACE}/datagrams')"
    ),
    "offers a port": "import socket; socket.socket().bind(('127.0.0.1', 0))",
    "signals the process that started it": "import os; os.kill(PARENT, 0)",
    "signals its parent": "import os; assert os.getppid(); os.kill(os.getppid(), 0)",
    "signals its group": "import os; os.killpg(0, 0)",
    "signals everybody": "import os; os.kill(-1, 0)",
    "limits the process that started it": (
        "import resource as r; r.prlimit(PARENT, r.RLIMIT_CORE, r.prlimit(PARENT, r.RLIMIT_CORE))"
    ),
    "slows the process that started it": (
        "import os; os.setpriority(os.PRIO_PROCESS, PARENT, os.getpriority(0, PARENT))"
    ),
    "reads the memory of the process that started it": (
        "import ctypes; to = ctypes.create_string_buffer(8)\n"
        "P = ctypes.c_size_t * 2; here, there = P(ctypes.addressof(to), 8), P(ADDRESS, 8)\n"
        "assert ctypes.CDLL(None).process_vm_readv(PARENT, here, 1, there, 1, 0) == 8"
    ),
    "reads the environment of the process that started it": (
        "assert SECRET in open(f'/proc/{PARENT}/environ').read()"
    ),
    "reads what processes there are": "import os; assert str(PARENT) in os.listdir('/proc')",
    "traces the process that started it": (
        "import ctypes, signal; trace = ctypes.CDLL(None).ptrace\n"
        "trace.argtypes = [ctypes.c_long] * 4\n"
        "assert trace(0x4206, PARENT, 0, 0) == 0"  # PTRACE_SEIZE: it is not stopped
    ),
    "starts a process": "import os\nif not os.fork(): os._exit(0)",
    "starts a program": "import subprocess; subprocess.run(['true'], check=True)",
    "becomes a program": "import os; os.execv(PYTHON, [PYTHON, '-c', 'print(\"BREACH\")'])",
    "leaves a process that outlives it": (
        "import os, time\nif not os.fork():\n os.setsid()\n"
        " if not os.fork(): time.sleep(0.2)\n os._exit(0)"
    ),
    "stays alive when its keeper dies": "import ctypes; assert ctypes.CDLL(None).prctl(1, 0) == 0",
    "leaves shared memory": (
        "import ctypes; c = ctypes.CDLL(None); at = c.shmget(0, 64, 0o1600)\n"
        "assert at >= 0; c.shmctl(at, 0, None)"
    ),
    "keeps what memory limits do not count": "import os; os.write(os.memfd_create('x'), b'x')",
    "enters a user namespace": "import ctypes; assert ctypes.CDLL(None).unshare(1 << 28) == 0",
    "watches the user's files": (
        "import ctypes; c = ctypes.CDLL(None)\n"
        "assert c.inotify_add_watch(c.inotify_init(), PLACE.encode(), 0xfff) >= 0"
    ),
}

# No more privileged than its attacker, also where root runs the tests.
VICTIM = """
import sys, time; sys.path.insert(0, sys.argv[1])
from jail import kernel; kernel.drop_capabilities()
print(id(time), flush=True); time.sleep(60)
"""


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs an attack in surroundings in which it would succeed, were it not for the sandbox."""
    place = tmp_path / "home"
    place.mkdir()
    (place / "diary").write_text("dear diary")
    victim = subprocess.Popen(
        [sys.executable, "-S", "-c", VICTIM, puna.evaluation.__path__[0]],
        stdout=subprocess.PIPE,
        env={"SECRET": SECRET},
    )
    assert victim.stdout is not None
    address = int(victim.stdout.readline())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as service:
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        service.bind(str(place / "service"))
        service.listen()
        datagrams.bind(str(place / "datagrams"))
        known = {
            "PLACE": str(place),
            "PROJECT": str(Path(__file__).parents[2]),
            "PORT": server.getsockname()[1],
            "PARENT": victim.pid,
            "ADDRESS": address,
            "SECRET": SECRET,
            "PYTHON": sys.executable,
        }
        heading = "\n".join(f"{name} = {value!r}" for name, value in known.items())

        def run(code: str, layers: tuple[str, ...]) -> Result:
            return run_python(f"{heading}\n{code}\nprint('{BREACH}')", layers=layers)

        yield run
        datagrams.close()
    victim.kill()
    victim.wait()


def test_this_machine_can_lock_code_in() -> None:
    assert ROUTES, available()


@pytest.mark.parametrize("layers", ROUTES, ids="+".join)
def test_attacks_fail_and_leave_the_users_files_as_they_were(
    attack: Callable[..., Result], layers: tuple[str, ...], tmp_path: Path
) -> None:
    place = tmp_path / "home"
    before = sorted(place.iterdir()), (place / "diary").stat()
    breaches = [
        (name, result.stdout)
        for name, code in HARMLESS_ATTACKS.items()
        if (result := attack(code, layers)).status != Status.FAILED or BREACH in result.stdout
    ]
    assert breaches == []
    after = sorted(place.iterdir()), (place / "diary").stat()
    assert after[0] == before[0]
    assert after[1].st_ctime_ns == before[1].st_ctime_ns


@pytest.mark.parametrize("name", HARMLESS_ATTACKS)
def test_the_same_attack_succeeds_where_nothing_locks_it_in(
    attack: Callable[..., Result], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UNCONFINED, "1")
    result = attack(HARMLESS_ATTACKS[name], ())
    assert BREACH in result.stdout, result.stderr


HUNGRY = {
    "loops for ever": ("while True: pass", Status.TIMED_OUT),
    "sleeps for ever": ("import time; time.sleep(1000)", Status.TIMED_OUT),
    "holds on to its errors and signals": (
        "import signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, lambda *a: None)\n"
        "def on():\n try:\n  while True: pass\n finally: on()\non()",
        Status.TIMED_OUT,
    ),
    "keeps a thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
        Status.PASSED,
    ),
    "takes all memory": (
        "held = []\nwhile True: held.append(bytearray(1 << 22))",
        Status.OUT_OF_MEMORY,
    ),
    "takes all memory and goes on": (
        "held = []\nwhile True:\n try: held.append(bytearray(1 << 22))\n except MemoryError: pass",
        Status.TIMED_OUT,
    ),
    "prints without end": ("while True: print('x' * 10000)", Status.FAILED),
    "complains without end": (
        "import sys\nwhile True: print('x' * 10000, file=sys.stderr)",
        Status.FAILED,
    ),
    "starts threads without end": (
        "import threading, time\nthreading.stack_size(32768)\nwhile True:\n"
        " threading.Thread(target=time.sleep, args=(1000,)).start()",
        Status.FAILED,
    ),
    "overflows its stack": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n"
        " def __getattr__(self, n): return getattr(self, n)\nA().x",
        Status.FAILED,
    ),
    "opens files without end": (
        "held = []\nwhile True: held.append(open('/dev/null'))",
        Status.FAILED,
    ),
}


@pytest.mark.parametrize("layers", ROUTES, ids="+".join)
def test_what_takes_too_much_is_ended_and_nothing_of_it_is_left(layers: tuple[str, ...]) -> None:
    limits = Limits(seconds=0.5, memory_bytes=96 << 20, output_bytes=1000)
    with ThreadPoolExecutor(4) as pool:
        runs = {
            name: pool.submit(run_python, code, limits=limits, layers=layers)
            for name, (code, _) in HUNGRY.items()
        }
    results = {name: run.result() for name, run in runs.items()}
    expected = {name: status for name, (_, status) in HUNGRY.items()}
    if "namespaces" not in layers:  # there threads are bounded by memory alone
        expected.pop("starts threads without end")
    assert {name: results[name].status for name in expected} == expected
    assert all(len(result.stdout + result.stderr) <= 2000 for result in results.values())
    assert all(result.seconds < 10 for result in results.values())  # 20 times the limit
    assert inhabitants() == []


def inhabitants(process: psutil.Process | None = None) -> list[psutil.Process]:
    """What sandboxes run below a process, by default this one."""
    return [
        child
        for child in (process or psutil.Process()).children(recursive=True)
        if any("jail.main" in part for part in child.cmdline())
    ]


def test_a_working_folder_is_empty_small_and_gone_afterwards(tmp_path: Path) -> None:
    route = next((route for route in ROUTES if "private root" in route), None)
    if route is None:  # then nothing at all may be written
        assert run_python("open('x', 'w')").status == Status.FAILED
        return
    program = (
        "import os, tempfile\nassert os.listdir('.') == []\n"
        "with tempfile.TemporaryDirectory() as t, open(t + '/x', 'w') as f: print('in', file=f)\n"
        "open('left', 'w').write('x')\nprint(os.getcwd())\n"
        "try:\n for n in range(100): open(str(n), 'wb').write(bytes(1 << 16))\n"
        "except OSError as error: print(error.strerror)"
    )
    for _ in range(2):
        result = run_python(program, limits=Limits(folder_bytes=1 << 20), layers=route)
        assert result.status == Status.PASSED, result.stderr
        assert result.stdout.split("\n")[1] == "No space left on device"
    assert not Path(result.stdout.split("\n")[0], "left").exists()


HONEST = """
import asyncio, collections, ctypes, dataclasses, datetime, decimal, fractions, functools, hashlib
import heapq, inspect, itertools, json, logging, math, os, pickle, random, re, sqlite3, statistics
import string, threading, typing, unicodedata, zoneinfo
from concurrent.futures import ThreadPoolExecutor

@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: "int" = 2

async def later(n):
    await asyncio.sleep(0)
    return n + await asyncio.to_thread(lambda: 1)

assert asyncio.run(later(1)) == 2
assert pickle.loads(pickle.dumps(Point(1))) == Point(1, 2)
assert typing.get_type_hints(Point) == {"x": int, "y": int}
with ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(math.factorial, range(8))) == 5914
base = sqlite3.connect(":memory:")
assert base.execute("select 6 * 7").fetchone() == (42,)
assert hashlib.sha256(b"").hexdigest().startswith("e3b0")
assert inspect.getsource(later).startswith("async def later")
assert os.environ == {} and __name__ == "__main__"
try:
    input()
except EOFError:
    print("grüße \\u20ac \\ud800")
"""


@pytest.mark.parametrize("layers", ROUTES, ids="+".join)
def test_an_honest_program_runs_as_anywhere(layers: tuple[str, ...]) -> None:
    result = run_python(HONEST, ("assert Point(1).y == 2", "assert later"), layers=layers)
    assert result.status == Status.PASSED, result.stderr
    assert result.checks == (True, True)
    assert result.stdout == "grüße € \\ud800\n"
    assert result.layers == layers


def test_a_traceback_shows_the_programs_own_lines_only() -> None:
    result = run_python("def f():\n    return 1 / 0\nf()")
    assert result.status == Status.FAILED
    assert result.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "    return 1 / 0" in result.stderr
    assert "jail" not in result.stderr


def test_a_crash_of_the_interpreter_is_a_failure_with_its_name() -> None:
    result = run_python("import ctypes; ctypes.string_at(0)")
    assert (result.status, result.stderr) == (Status.FAILED, "ended by SIGSEGV\n")


def test_every_check_is_run_and_counted_by_itself() -> None:
    checks = ("assert f(2) == 4", "assert f(2) == 5", "import sys; sys.exit(0)", "f(3)", "1 +")
    result = run_python("def f(n): return n * n", checks)
    assert (result.status, result.checks) == (Status.FAILED, (True, False, False, True, False))
    late = run_python("f = abs", ("f(1)", "while True: pass", "f(2)"), Limits(seconds=0.3))
    assert (late.status, late.checks) == (Status.TIMED_OUT, (True,))
    assert run_python("raise SystemExit", ("pass",)).checks == ()


FAKES = {
    "leaves with a good exit code": "import os; os._exit(0)",
    "leaves as if by itself": "import sys; sys.exit(0)",
    "leaves in a test": (
        "class A:\n def __eq__(self, other): import os; os._exit(0)\ndef f(n): return A()"
    ),
    "says on every pipe that it is done": (
        "import os\nfor fd in range(3, 64):\n try: os.write(fd, b'{\"ended\": true}\\n')\n"
        " except OSError: pass\nos._exit(0)"
    ),
}


@pytest.mark.parametrize("code", FAKES.values(), ids=FAKES)
def test_leaving_before_the_checks_is_not_passing(code: str) -> None:
    result = run_python(code, ("assert f(2) == 4",))
    assert (result.status, result.checks) == (Status.FAILED, ())


def test_sets_have_one_order_in_all_runs() -> None:
    program = "print({'one', 'two', 'three', 'four', 'five'}, hash('six'))"
    assert run_python(program).stdout == run_python(program).stdout


def test_runs_side_by_side_do_not_meet() -> None:
    program = "import os, time\nopen('/dev/null')\ntime.sleep(0.05)\nprint({})"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: run_python(program.format(n)).stdout, range(12)))
    assert found == [f"{n}\n" for n in range(12)]


def test_nothing_is_run_where_nothing_locks_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"open({str(tmp_path / 'ran')!r}, 'w'); print('ran')"
    for layers in ((), ("landlock",), ("seccomp",), ("namespaces", "private root")):
        result = run_python(program, layers=layers)
        assert (result.status, result.stdout) == (Status.REFUSED, "")
        assert not (tmp_path / "ran").exists()
    line = refusal(result)
    assert "seccomp: not asked for" in line
    assert UNCONFINED in line
    assert "\n" not in line
    monkeypatch.setenv(UNCONFINED, "1")
    assert run_python(program, layers=()).status == Status.PASSED
    assert (tmp_path / "ran").exists()


# A process in which system calls fail as a container makes them fail; then the sandbox, in it.
CONTAINER = """
import sys
from puna.evaluation.jail import kernel, seccomp
from puna.evaluation.sandbox import run_python
refused = [numbers for name, numbers in {"unshare": (272, 97), "landlock": (444, 444)}.items()
           if name in sys.argv]
seccomp._program = lambda *_: [
    seccomp._step(seccomp._LOAD, 0),
    *[step for numbers in refused for step in seccomp._case(
        numbers[kernel.machine()], [seccomp._step(seccomp._RETURN, seccomp._REFUSE)])],
    seccomp._step(seccomp._RETURN, seccomp._ALLOW),
]
seccomp.restrict(0, only_looks_at_files=False)
print(run_python("print('ran')"))
"""


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (
            ["unshare"],
            "passed, locked in by landlock, seccomp (namespaces: Operation not permitted; "
            "private root: it takes namespaces)",
        ),
        (
            ["unshare", "landlock"],
            "refused, locked in by seccomp (namespaces: Operation not permitted; "
            "private root: it takes namespaces; landlock: Operation not permitted)",
        ),
    ],
)
def test_in_a_container_the_layers_that_are_left_are_used_and_named(
    calls: list[str], said: str
) -> None:
    command = [sys.executable, "-c", CONTAINER, *calls]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == said


def test_when_puna_is_killed_its_sandboxes_end() -> None:
    start = (
        "import json, sys, threading; from puna.evaluation.sandbox import Limits, run_python\n"
        "for layers in json.loads(sys.argv[1]): threading.Thread(target=run_python, "
        "args=('while True: pass', (), Limits(seconds=600)), kwargs={'layers': layers}).start()"
    )
    host = subprocess.Popen([sys.executable, "-c", start, json.dumps(ROUTES)])
    found = wait_for_inhabitants(psutil.Process(host.pid), len(ROUTES))
    host.kill()
    host.wait()
    assert psutil.wait_procs(found, timeout=30)[1] == []


def test_a_worker_ends_with_its_keeper() -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_python, "while True: pass", limits=Limits(seconds=600))
        found = wait_for_inhabitants(psutil.Process(), 1)
        next(process for process in found if process.ppid() == os.getpid()).kill()
        with pytest.raises(PunaError, match="before it could report"):
            run.result(30)
    assert psutil.wait_procs(found, timeout=30)[1] == []


def wait_for_inhabitants(process: psutil.Process, runs: int) -> list[psutil.Process]:
    """A keeper and a worker for each run."""
    for _ in range(600):
        found = inhabitants(process)
        if len(found) == 2 * runs:
            return found
        time.sleep(0.05)
    raise AssertionError(f"after half a minute there are {found}")


def test_no_descriptor_or_thread_is_left_open() -> None:
    run_python("")
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for program in ("", "while True: pass", "import os; os._exit(1)"):
        run_python(program, limits=Limits(seconds=0.1))
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before
