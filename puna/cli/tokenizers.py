"""Commands on tokenizers: train, show-mask."""

from pathlib import Path
from typing import Annotated

import typer

from puna.core.errors import UsageError

app = typer.Typer(help="Train tokenizers; see what of a chat is trained.", no_args_is_help=True)


@app.command()
def train(
    files: Annotated[list[Path], typer.Argument(help=".txt, .md or .jsonl files, or folders.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json; must not exist.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens in all.")] = 16_384,
    digit_group: Annotated[int, typer.Option(min=1, max=3, help="Digits in one token.")] = 3,
) -> None:
    """Train a byte-level BPE with Llama 3's split pattern and special tokens."""
    from puna.data.files import read_files
    from puna.tokenizer import Tokenizer

    if out.exists():
        raise UsageError(f"{out} exists already: name a new folder")
    documents = [document for path in files for document in read_files(path, "files")]
    texts = (document.text for document in documents)
    tokenizer = Tokenizer.train(texts, vocab_size, digit_group=digit_group)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.vocab_size:,} tokens from {len(documents):,} documents")


@app.command("show-mask")
def show_mask(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Any MODEL; its tokenizer is used.")
    ],
    chats: Annotated[Path, typer.Argument(help="JSONL, JSON, Parquet or a dataset's folder.")],
    limit: Annotated[int, typer.Option(min=1, help="Chats to show.")] = 3,
) -> None:
    """Show which tokens of a chat a model is trained on."""
    from itertools import islice

    from rich.console import Console

    from puna.data import read_chats
    from puna.formats import load_tokenizer
    from puna.tokenizer.mask_view import show_mask as view

    tokenizer = load_tokenizer(model)
    console = Console()
    for chat in islice(read_chats(chats), limit):
        tokens = tokenizer.chat.encode(
            tokenizer, chat.messages, tools=chat.tools, builtin_tools=chat.builtin_tools
        )
        shown = view(tokenizer, tokens)
        console.rule(chat.name)
        console.print(shown.text)
        console.print(shown.legend)
        for count in shown.counts:
            console.print(f"{count.role}: {count.trained} of {count.tokens} tokens trained")
