"""``puna chat``: a conversation in the terminal, streamed."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from puna.cli.watch import Watched, admitted
from puna.core.errors import PunaError, UsageError
from puna.core.files import write_text
from puna.inference import Delta, Engine, Request, Sampling
from puna.safety import Safeguard, Subject, Verdict
from puna.tokenizer import Message

_HELP = """\
[bold]/new[/]             start over; the system prompt stays
[bold]/system TEXT[/]     set the system prompt and start over; without TEXT take it away
[bold]/undo[/]            take back the last question and its answer
[bold]/retry[/]           answer the last question again, with another seed
[bold]/set NAME VALUE[/]  change a setting, such as temperature 0.7; without NAME show all
[bold]/save FILE[/]       write the conversation as a line of JSON, as puna sft reads it
[bold]/quit[/]            leave, as Ctrl-D does
Ctrl-C stops an answer. A backslash at the end of a line goes on in the next."""


@dataclass
class _Answer:
    """One answer as it comes in."""

    text: str = ""
    n_tokens: int = 0
    n_first: int = 0
    """Tokens that came at once, with the first."""
    n_cached: int = 0
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def add(self, delta: Delta) -> None:
        self.last = time.perf_counter()
        if not self.n_tokens:
            self.first, self.n_first = self.last, len(delta.ids)
        self.n_cached += delta.cached_tokens
        self.n_tokens += len(delta.ids)
        self.text += delta.text

    def figures(self, n_prompt: int) -> str:
        """Speed after the first token, and what came before it."""
        following = self.n_tokens - self.n_first
        rate = following / (self.last - self.first) if following else 0.0
        speed = f", {rate:.0f} tokens/s" if following else ""
        wait = self.first - self.started if self.n_tokens else self.last - self.started
        read = n_prompt - self.n_cached
        return f"{self.n_tokens} tokens{speed}, the first after {wait:.2f} s ({read} tokens read)"


class Conversation:
    """What was said, and the engine that answers: its prefix cache holds the earlier turns.

    Args:
        engine: nothing else may use it.
        system: system prompt; empty is none.
        sampling: settings of the answers.
    """

    def __init__(self, engine: Engine, system: str, sampling: Sampling) -> None:
        self.engine = engine
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []

    def start_over(self) -> None:
        """Forget all but the system prompt."""
        self.messages = []

    def undo(self) -> str:
        """Take back the last question and its answer; the question. Raises `UsageError`."""
        if len(self.messages) < 2:
            raise UsageError("nothing has been said yet")
        question = self.messages[-2].content
        del self.messages[-2:]
        return question

    def transcript(self) -> list[Message]:
        """The system prompt and all that was said."""
        opening = [Message("system", self.system)] if self.system else []
        return [*opening, *self.messages]

    def prompt(self, question: str) -> list[int]:
        """Tokens of all that was said and a question, with the answer opened."""
        tokenizer = self.engine.tokenizer
        messages = [*self.transcript(), Message("user", question)]
        return tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids

    def answer(self, prompt: list[int], stopped: Callable[[], bool]) -> Iterator[Delta]:
        """The answer as it comes, until ``stopped`` says so. Raises `PunaError`."""
        engine = self.engine
        stops = frozenset(engine.tokenizer.stop_ids)
        handle = engine.submit(Request(prompt, self.sampling, stops))
        try:
            while not (engine.idle or stopped()):
                for _, delta in engine.step():
                    if delta.error is not None:
                        raise PunaError(f"generation failed: {delta.error}")
                    yield delta
        finally:
            engine.cancel(handle)


def talk(
    engine: Engine,
    name: str,
    system: str,
    sampling: Sampling,
    safeguard: Safeguard | None = None,
) -> None:
    """Read questions and stream answers until the user leaves.

    In a terminal it speaks to the user; else answers are all there is on standard output. The
    ``safeguard`` watches questions and answers.
    """
    _Terminal(Conversation(engine, system, sampling), name, safeguard).run()


class _Terminal:
    def __init__(self, conversation: Conversation, name: str, safeguard: Safeguard | None) -> None:
        self.conversation = conversation
        self.name, self.safeguard = name, safeguard
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.console = Console(highlight=False)
        self.notes = self.console if self.interactive else Console(stderr=True, highlight=False)
        self.saved: set[Path] = set()

    def run(self) -> None:
        n_params = self.conversation.engine.n_params
        self._note(f"[bold]{escape(self.name)}[/], {n_params:,} parameters. [dim]/help, /quit[/]")
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  arrow keys and history in input()
        while True:
            try:
                line = self._read()
                if line in (None, "/quit", "/exit"):
                    return
                self._take(line)
            except PunaError as error:
                self._note(f"[yellow]{escape(str(error))}[/]")
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self._note("\n[dim]/quit or Ctrl-D leaves[/]")

    def _read(self) -> str | None:
        """The next input, of several lines where they end in a backslash; None at the end."""
        lines: list[str] = []
        while True:
            try:
                line = input(self._label("... " if lines else "you "))
            except EOFError:
                if self.interactive:
                    self.console.print()
                return "\n".join(lines).strip() if lines else None
            if not line.endswith("\\"):
                return "\n".join([*lines, line]).strip()
            lines.append(line[:-1])

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            self._command(*line[1:].split(maxsplit=1))
        elif line:
            self._ask(line)

    def _label(self, text: str) -> str:
        """What stands before an input; readline must know which characters take no room."""
        if not self.interactive:
            return ""
        if self.console.no_color:
            return text
        return f"\001\033[1;32m\002{text}\001\033[0m\002"

    def _note(self, markup: str) -> None:
        self.notes.print(markup, soft_wrap=True)

    def _command(self, name: str = "help", rest: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._note(_HELP),
            "new": lambda _: self._start_over(),
            "system": self._set_system,
            "undo": lambda _: self._undo(),
            "retry": lambda _: self._retry(),
            "set": self._set,
            "save": self._save,
        }
        if name not in commands:
            raise UsageError(f"no command /{name}: /help lists them")
        commands[name](rest)

    def _start_over(self) -> None:
        self.conversation.start_over()
        self._note("[dim]a new conversation[/]")

    def _set_system(self, text: str) -> None:
        self.conversation.system = text
        self._start_over()

    def _undo(self) -> None:
        question = self.conversation.undo()
        self._note(f"[dim]taken back: {escape(question)}[/]")

    def _retry(self) -> None:
        conversation = self.conversation
        before = list(conversation.messages)
        question = conversation.undo()
        sampling = conversation.sampling
        if sampling.temperature == 0:
            self._note("[dim]temperature is 0: the answer stays; /set temperature 0.7 varies it[/]")
        conversation.sampling = sampling.model_copy(update={"seed": sampling.seed + 1})
        try:
            self._ask(question)
        finally:
            if len(conversation.messages) < len(before):  # no new answer: the old one stays
                conversation.messages = before

    def _set(self, text: str) -> None:
        fields = self.conversation.sampling.model_dump()
        if text:
            name, _, value = text.partition(" ")
            setting = {name: _parsed(value)}
            self.conversation.sampling = Sampling.parse(fields | setting, where="/set")
        else:
            shown = ", ".join(f"{name} {value}" for name, value in fields.items())
            self._note(f"[dim]{escape(shown)}[/]")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("name a file: /save chat.jsonl")
        if not self.conversation.messages:
            raise UsageError("nothing has been said yet")
        path = Path(name).expanduser()
        if path.exists() and path not in self.saved:
            raise UsageError(f"{path} exists already: choose another name")
        messages = [{"role": m.role, "content": m.content} for m in self.conversation.transcript()]
        write_text(path, json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        self.saved.add(path)
        self._note(f"[dim]saved in {escape(str(path))}[/]")

    def _ask(self, question: str) -> None:
        """Stream the answer; a question without one is as if it had not been asked."""
        conversation = self.conversation
        prompt = conversation.prompt(question)
        messages = [*conversation.transcript(), Message("user", question)]
        subject = Subject(question, messages, self.name, None)
        refusal = admitted(self.safeguard, subject)
        if refusal.decision == "block":
            raise PunaError(f"the safeguard refuses this question: {refusal.reason}")
        answer = _Answer(started=time.perf_counter())
        try:
            with _interrupt(catch=self.interactive) as stopped:
                if self.interactive:
                    self.console.print("[bold cyan]puna[/] ", end="")
                deltas = conversation.answer(prompt, stopped)
                watched = Watched(deltas, self.safeguard, subject)
                for delta in watched:
                    answer.add(delta)
                    print(delta.text, end="", flush=True)
        finally:
            if answer.text or self.interactive:
                print()
        said = answer.text.strip()
        if said:
            conversation.messages += [Message("user", question), Message("assistant", said)]
        self._note(f"[dim]{answer.figures(len(prompt))}{self._remark(prompt, answer, stopped)}[/]")
        self._tell(watched.verdict)

    def _tell(self, verdict: Verdict) -> None:
        if verdict.decision != "allow":
            what = "the answer ends here" if verdict.decision == "block" else "mind"
            self._note(f"[yellow]{what}: {escape(verdict.reason)}[/]")

    def _remark(self, prompt: list[int], answer: _Answer, stopped: Callable[[], bool]) -> str:
        if stopped():
            return " · stopped"
        if len(prompt) + answer.n_tokens >= self.conversation.engine.context:
            return " · the context is full: /new starts over"
        if answer.n_tokens >= self.conversation.sampling.max_new_tokens:
            return " · cut at max_new_tokens"
        return ""


@contextlib.contextmanager
def _interrupt(*, catch: bool) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a question: the engine is between two steps when it is asked."""
    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        pressed = True

    if not catch:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _parsed(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"/set: '{value}' cannot be read") from error
