"""A conversation in the terminal, streamed."""

import json
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape

from puna.core.errors import UsageError
from puna.inference import Engine, Request, Sampling, load_engine, stream
from puna.tokenizer import Message

_HELP = "[dim]/new starts over, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer[/]"


def _pieces(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, seen: list[int]
) -> Iterator[str]:
    """Text as it comes; the tokens go to ``seen``."""
    request = Request(prompt, sampling, frozenset(engine.tokenizer.stop_ids))
    for delta in stream(engine, request):
        seen.extend(delta.ids)
        yield delta.text


def talk(name: str, system: str, sampling: Sampling) -> None:
    """Read questions and stream answers until the user leaves.

    Raises `UsageError` when ``name`` is no model.
    """
    console = Console(highlight=False)
    with console.status(f"loading {name}"):
        engine = load_engine(name)
    console.print(
        f"[bold]{escape(name)}[/], {engine.model.config.n_params():,} parameters. {_HELP}"
    )
    opening = [Message("system", system)] if system else []
    messages = list(opening)
    while True:
        question = _ask(console)
        if question is None:
            return
        if question == "/new":
            messages = list(opening)
        elif question.startswith("/"):
            console.print(_HELP)
        elif question:
            messages.append(Message("user", question))
            _answer(console, engine, messages, sampling)


def _ask(console: Console) -> str | None:
    try:
        question = console.input("[bold green]you[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
    return None if question in ("/quit", "/exit") else question


def _answer(console: Console, engine: Engine, messages: list[Message], sampling: Sampling) -> None:
    """Stream the answer and append it; a question too long for the context is taken back."""
    tokenizer = engine.tokenizer
    prompt = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
    text, seen = "", list[int]()
    started = time.perf_counter()
    try:
        for piece in _pieces(engine, prompt, sampling, seen):
            if not text:
                console.print("[bold cyan]puna[/] ", end="")
            text += piece
            console.print(piece, end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("[dim] (stopped)[/]", end="")
    except UsageError as error:
        console.print(f"[yellow]{escape(str(error))}: /new starts over[/]")
        messages.pop()
        return
    rate = len(seen) / (time.perf_counter() - started)
    full = len(prompt) + len(seen) >= engine.context
    note = " · the context is full: /new starts over" if full else ""
    console.print(f"\n[dim]{len(seen)} tokens, {rate:.0f} tokens/s{note}[/]")
    messages.append(Message("assistant", text))


def write_on(
    name: str, text: str, *, as_chat: bool, system: str, sampling: Sampling, as_json: bool
) -> None:
    """Print what the model writes after a text, as it comes, or as one JSON object."""
    engine = load_engine(name)
    tokenizer = engine.tokenizer
    if as_chat:
        opening = [Message("system", system)] if system else []
        messages = [*opening, Message("user", text)]
        prompt = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
    else:
        prompt = tokenizer.encode(text, bos=tokenizer.bos_id is not None)
    seen: list[int] = []
    pieces = _pieces(engine, prompt, sampling, seen)
    if as_json:
        written = "".join(pieces)
        limit = min(sampling.max_new_tokens, engine.context - len(prompt))
        counts = {"prompt_tokens": len(prompt), "new_tokens": len(seen)}
        print(json.dumps({"text": written, "stopped": len(seen) < limit, **counts}))
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    sys.stdout.write("\n")
