"""``puna generate``: one prompt streamed, or a file of prompts with a progress bar."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Bar
from rich.text import Text

from puna.core.errors import PunaError, UsageError
from puna.inference import Engine, Sampling, generate, stream
from puna.inference.batch import Batch, Line, Record
from puna.inference.results import Results
from puna.inference.task import Task, answer_record


def task_of(
    sampling: Sampling,
    as_chat: bool,
    system: str,
    n: int,
    schema: Path | None,
    regex: str | None,
) -> Task:
    """What the options ask for; raises `UsageError` for options that do not go together."""
    fields = {
        "sampling": sampling,
        "as_chat": as_chat,
        "system": system,
        "n": n,
        "json_schema": None if schema is None else _read_schema(schema),
        "regex": regex,
    }
    return Task.parse(fields, where="generate")


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt's text; of a file or standard input without its last line break."""
    if prompt is not None and prompt != "-":
        return prompt
    text = sys.stdin.read() if file is None else _read_text(file)
    return text.removesuffix("\n").removesuffix("\r")


def write_on(engine: Engine, text: str, task: Task, *, as_json: bool) -> None:
    """Print what the model writes after a prompt: as it comes, or as one JSON object."""
    ids = task.prompt_ids(engine.tokenizer, text)
    requests = task.requests(engine, ids, task.sampling)
    if task.n == 1 and not as_json:
        for delta in stream(engine, requests[0]):
            print(delta.text, end="", flush=True)
        print()
        return
    answers = generate(engine, requests)
    if as_json:
        print(json.dumps(answer_record(len(ids), answers), ensure_ascii=False))
        return
    for number, answer in enumerate(answers, start=1):
        print(f"--- {number} of {task.n}\n{answer.text}")


def write_batch(
    engine: Engine,
    source: Path,
    out: Path,
    task: Task,
    settings: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Answer every line of ``source`` into ``out`` that ``out`` does not answer yet.

    Raises `PunaError` in the end when a line failed.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(f"--out {out} is the input itself: name another file")
    settings = {**settings, **_flat(task)}
    console = Console(stderr=True)
    tally = _Tally(engine)
    with _open(source) as file, Results(out, settings) as results:
        total = _count_lines(file) if console.is_terminal and file.seekable() else None
        with _progress(console, tally) as progress:
            bar = progress.add_task("", total=total, completed=results.n_done)
            for record in Batch(engine, task).run(results.missing(_lines(file))):
                results.append(record)
                tally.add(record)
                progress.update(bar, advance=1)
        _report(tally, results.n_done, out, as_json=as_json)


class _Tally:
    """What this call has done so far."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens_before = engine.stats().generated_tokens
        self._started = time.perf_counter()
        self.answered = 0
        self.failed = 0
        self.first_failure = ""

    def add(self, record: Record) -> None:
        if "error" in record:
            self.failed += 1
            self.first_failure = self.first_failure or f"line {record['line']}: {record['error']}"
        else:
            self.answered += 1

    @property
    def new_tokens(self) -> int:
        return self._engine.stats().generated_tokens - self._tokens_before

    @property
    def tokens_per_s(self) -> float:
        return self.new_tokens / (time.perf_counter() - self._started)

    def note(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.tokens_per_s:,.0f} tokens/s{failed}"


def _report(tally: _Tally, skipped: int, out: Path, *, as_json: bool) -> None:
    if as_json:
        counts = {"answered": tally.answered, "failed": tally.failed, "skipped": skipped}
        speed = {"new_tokens": tally.new_tokens, "tokens_per_s": round(tally.tokens_per_s, 1)}
        print(json.dumps({"out": str(out), **counts, **speed}))
    else:
        before = f", {skipped} were there before" if skipped else ""
        print(f"{out}: {tally.answered} answered{before}; {tally.note()}")
    if tally.failed:
        raise PunaError(
            f"{tally.failed} failed, the first: {tally.first_failure} "
            "(mended lines are tried again by the same call)"
        )


class _Note(ProgressColumn):
    """Speed and failures, also while no line is done."""

    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self._tally = tally

    def render(self, task: Bar) -> Text:  # noqa: ARG002
        return Text(self._tally.note())


def _progress(console: Console, tally: _Tally) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        _Note(tally),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _lines(file: BinaryIO) -> Iterator[Line]:
    numbered = enumerate(file, start=1)
    return (Line(number, content) for number, content in numbered if content.strip())


def _count_lines(file: BinaryIO) -> int:
    n = sum(1 for _ in _lines(file))
    file.seek(0)
    return n


def _flat(task: Task) -> dict[str, Any]:
    """The task's settings in one level, so that a change can be named."""
    fields = task.model_dump(mode="json")
    return {**fields.pop("sampling"), **fields}


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder: name a file") from error


def _read_text(path: Path) -> str:
    with _open(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): convert it") from error


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{path}: a JSON schema is an object")
    return schema
