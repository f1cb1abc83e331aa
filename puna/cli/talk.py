"""A conversation in the terminal, streamed."""

import json
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.markup import escape

from puna.core.devices import default_device, fast_bf16
from puna.core.errors import UsageError
from puna.formats import load_model
from puna.inference import Sampling, stream
from puna.model import Llama
from puna.tokenizer import Message, StreamDecoder, Tokenizer

_HELP = "[dim]/new starts over, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer[/]"


def _load(name: str) -> tuple[Llama, Tokenizer]:
    device = default_device()
    dtype = torch.bfloat16 if fast_bf16(device.type) else torch.float32
    return load_model(name, dtype=dtype, device=device)


def _pieces(
    model: Llama, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, seen: list[int]
) -> Iterator[str]:
    """Text as it comes; the tokens go to ``seen``."""
    decoder = StreamDecoder(tokenizer, skip_special=True)
    for token in stream(model, prompt, sampling, tokenizer.stop_ids):
        seen.append(token)
        yield decoder.push(token)
    yield decoder.flush()


def talk(name: str, system: str, sampling: Sampling) -> None:
    """Read questions and stream answers until the user leaves.

    Raises `UsageError` when ``name`` is no model.
    """
    console = Console(highlight=False)
    with console.status(f"loading {name}"):
        model, tokenizer = _load(name)
    console.print(f"[bold]{escape(name)}[/], {model.config.n_params():,} parameters. {_HELP}")
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
            _answer(console, model, tokenizer, messages, sampling)


def _ask(console: Console) -> str | None:
    try:
        question = console.input("[bold green]you[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
    return None if question in ("/quit", "/exit") else question


def _answer(
    console: Console,
    model: Llama,
    tokenizer: Tokenizer,
    messages: list[Message],
    sampling: Sampling,
) -> None:
    """Stream the answer and append it; a question too long for the context is taken back."""
    prompt = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
    text, seen = "", list[int]()
    started = time.perf_counter()
    try:
        for piece in _pieces(model, tokenizer, prompt, sampling, seen):
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
    full = len(prompt) + len(seen) >= model.config.context
    note = " · the context is full: /new starts over" if full else ""
    console.print(f"\n[dim]{len(seen)} tokens, {rate:.0f} tokens/s{note}[/]")
    messages.append(Message("assistant", text))


def write_on(
    name: str, text: str, *, as_chat: bool, system: str, sampling: Sampling, as_json: bool
) -> None:
    """Print what the model writes after a text, as it comes, or as one JSON object."""
    model, tokenizer = _load(name)
    if as_chat:
        opening = [Message("system", system)] if system else []
        messages = [*opening, Message("user", text)]
        prompt = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
    else:
        prompt = tokenizer.encode(text, bos=tokenizer.bos_id is not None)
    seen: list[int] = []
    pieces = _pieces(model, tokenizer, prompt, sampling, seen)
    if as_json:
        written = "".join(pieces)
        limit = min(sampling.max_new_tokens, model.config.context - len(prompt))
        counts = {"prompt_tokens": len(prompt), "new_tokens": len(seen)}
        print(json.dumps({"text": written, "stopped": len(seen) < limit, **counts}))
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    sys.stdout.write("\n")
