"""A recipe for one's own chats, made from a few settings."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from puna.alignment import encode_chat
from puna.data import ChatForm, NamedChat, read_chats
from puna.formats import load_tokenizer
from puna.tokenizer import FORMATS, Tokenizer
from puna.workflow.recipe import Recipe
from puna.workflow.single import Tuning, single_stage
from puna.workflow.stages.chats import DataFile

_ROW_FILL = 0.98  # of a packed row, as best-fit packing reaches
_MEASURED = 200  # chats whose tokens are counted, to tell tokens from characters
_MOST_TOKENS = 2**31  # of a measured chat: whether it fits a row is not asked here


def data_file(text: str, form: ChatForm) -> DataFile:
    """The file of ``PATH`` or ``PATH:WEIGHT``; raises `UsageError` for a weight that is none."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return DataFile(path=Path(text), form=form)
    try:
        share = float(weight)
    except ValueError:
        return DataFile(path=Path(text), form=form)  # a colon of its name
    return DataFile.parse({"path": path, "weight": share, "form": form}, where=f"--data {text}")


def chat_recipe(
    stage: str, model: str, files: Sequence[DataFile], tuning: Tuning, **settings: Any
) -> Recipe:
    """A recipe with one stage that learns from chats, for about ``epochs`` passes.

    Args:
        stage: ``sft``, ``distill`` or ``qat``.
        settings: further ones of the stage.
    """
    rows = max(1.0, _n_tokens(model, files, tuning) / (tuning.row_length * _ROW_FILL))
    shared = {
        **tuning.shared(model),
        "files": [file.model_dump(mode="json") for file in files],
        "loop": tuning.loop_for(rows),
    }
    return single_stage(stage, tuning.name, shared | settings, tuning.seed)


def _n_tokens(model: str, files: Sequence[DataFile], tuning: Tuning) -> float:
    """About how many tokens the chats have: characters of all, tokens of the first of each file."""
    for file in files:  # before the model is looked for: a mistyped name is the likelier mistake
        next(read_chats(file.path, file.form))
    tokenizer = load_tokenizer(model)
    if tuning.chat_format in FORMATS:
        tokenizer = tokenizer.with_chat(FORMATS[tuning.chat_format])
    return sum(_tokens_of(file, tokenizer) for file in files)


def _tokens_of(file: DataFile, tokenizer: Tokenizer) -> float:
    chats = read_chats(file.path, file.form)
    first = list(islice(chats, _MEASURED))
    encoded = [encode_chat(tokenizer, chat, _MOST_TOKENS) for chat in first]
    tokens = sum(len(item[0]) for item in encoded if item is not None)
    chars = sum(map(_n_chars, first))
    return tokens * (1 + sum(map(_n_chars, chats)) / max(1, chars))


def _n_chars(chat: NamedChat) -> int:
    return sum(len(message.content) for message in chat.messages)
