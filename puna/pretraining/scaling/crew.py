"""Independent pieces of work, shared by processes of this machine."""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any, TypeVar

import torch

from puna.core.errors import PunaError
from puna.parallel.team import end_with
from puna.training.interrupt import Interrupted, deferred_interrupt

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
_LOOK_S = 0.5


def shared_out(
    work: Callable[[Item], Outcome], items: Sequence[Item], processes: int
) -> Generator[tuple[Item, Outcome], None, None]:
    """Each item with ``work`` of it, as they are done; they begin in the order given.

    Processes have equal shares of this one's threads. When this one is asked to stop, or the
    iterator is closed, they are asked to and waited for; asked again, they are killed. When it is
    killed they end too. Raises what ``work`` raises, `Interrupted`, and `PunaError` when a process
    ends in the middle of its work.

    Args:
        work: can be pickled.
        items: can be pickled.
        processes: how many work at once, at most.
    """
    context, count = get_context("spawn"), min(processes, len(items))
    todo, done = context.Queue(), context.Queue()
    for number in [*range(len(items)), *[None] * count]:
        todo.put(number)
    threads = torch.get_num_threads() // max(1, count)
    given = (work, items, max(1, threads), os.getpid(), todo, done)
    members = [context.Process(target=_member, args=given) for _ in range(count)]
    try:
        with deferred_interrupt() as stop:
            for member in members:
                member.start()
            for _ in items:
                number, outcome, error = _next(done, members, lambda: stop.made)
                if error is not None:
                    raise error
                yield items[number], outcome
    except BaseException:
        for member in members:
            if member.pid is not None and member.is_alive():
                os.kill(member.pid, signal.SIGINT)
        raise
    finally:
        _join([member for member in members if member.pid is not None])


def _next(done: Any, members: Sequence[BaseProcess], is_stopped: Callable[[], bool]) -> Any:
    while not is_stopped():
        all_ended = not any(member.is_alive() for member in members)  # nothing comes after that
        try:
            return done.get(timeout=_LOOK_S)
        except Empty:
            if all_ended or any(member.exitcode for member in members):
                raise PunaError(
                    "one of the processes ended in the middle of its work (out of memory?): run "
                    "the same command again, with fewer of them"
                ) from None
    raise Interrupted("stopped: run the same command to go on")


def _join(members: Sequence[BaseProcess]) -> None:
    try:
        for member in members:
            member.join()
    except BaseException:  # asked to stop once more
        for member in members:
            member.kill()
        raise


def _member(
    work: Callable[[Item], Outcome],
    items: Sequence[Item],
    threads: int,
    leader: int,
    todo: Any,
    done: Any,
) -> None:
    os.setsid()  # Ctrl-C is for the leader, who tells the members
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background ignores it
    end_with(leader)
    torch.set_num_threads(threads)
    try:
        while (number := todo.get()) is not None:
            done.put((number, work(items[number]), None))
    except (KeyboardInterrupt, Interrupted):
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  it is raised in the leader
        done.put((None, None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """``error`` with where it was raised, or what it says when it cannot be pickled."""
    where = "".join(traceback.format_exception(error))
    try:
        sent = pickle.loads(pickle.dumps(error))  # noqa: S301  what this process has just made
    except (pickle.PickleError, TypeError, AttributeError):
        sent = PunaError(f"{type(error).__name__}: {error}")
    sent.add_note(where)
    return sent
