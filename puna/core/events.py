"""Everything that happens is an event: one JSON line in ``events.jsonl``.

Progress bars, W&B, TensorBoard and the report are readers of these lines; nothing else reports.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Reader = Callable[[Event], None]


class EventLog:
    """Appends events to a file and hands each to the readers.

    Args:
        path: the ``events.jsonl`` to append to; ``None`` keeps events in readers only.
        readers: called with every event, in order, in this process.
    """

    def __init__(self, path: Path | None = None, readers: tuple[Reader, ...] = ()) -> None:
        self.readers = readers
        self._handle = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and _ends_inside_a_line(path)
            self._handle = path.open("ab", buffering=0)
            if torn:  # a process died inside a line: end that line, so ours starts fresh
                self._handle.write(b"\n")

    def emit(self, kind: str, **fields: Any) -> None:
        """Record an event of ``kind``; ``time`` (seconds since the epoch) is added."""
        event: Event = {"time": round(time.time(), 3), "kind": kind, **fields}
        if self._handle is not None:
            # One write call per line: concurrent writers and a kill leave whole lines behind.
            self._handle.write((json.dumps(event, ensure_ascii=False) + "\n").encode())
        for reader in self.readers:
            reader(event)

    def within(self, place: str) -> "EventLog":
        """This log for a part of the run: names of stages in its events begin with ``place/``."""

        def forward(event: Event) -> None:
            fields = {key: value for key, value in event.items() if key not in ("time", "kind")}
            if "stage" in fields:
                fields["stage"] = f"{place}/{fields['stage']}"
            self.emit(event["kind"], **fields)

        return EventLog(readers=(forward,))

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()


def _ends_inside_a_line(path: Path) -> bool:
    with path.open("rb") as handle:
        if handle.seek(0, os.SEEK_END) == 0:
            return False
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) != b"\n"


def read_events(path: Path) -> Iterator[Event]:
    """The whole events of a file, oldest first; a torn line (the writer was killed) is left out."""
    if not path.exists():
        return
    with path.open("rb") as handle:
        for line in handle:
            try:
                yield json.loads(line)
            except ValueError:  # not whole: broken JSON, or half a character
                continue
