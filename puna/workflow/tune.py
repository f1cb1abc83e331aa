"""A recipe for one's own chats, made from a few settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from puna.alignment import encode_chat
from puna.core.errors import UsageError
from puna.data import ChatForm, NamedChat, read_chats
from puna.formats import load_tokenizer
from puna.tokenizer import FORMATS, Tokenizer
from puna.workflow.recipe import Recipe
from puna.workflow.stage import origin_of
from puna.workflow.stages.sft import DataFile

_ROW_FILL = 0.98  # of a packed row, as best-fit packing reaches
_MEASURED = 200  # chats whose tokens are counted, to tell tokens from characters
_MOST_TOKENS = 2**31  # of a measured chat: whether it fits a row is not asked here
_CHECKPOINTS = 5
_ROWS_AT_ONCE = 2  # bounds the memory of activations


@dataclass(frozen=True)
class Tuning:
    """What ``puna sft`` was asked for, beside model and data."""

    name: str
    epochs: float
    learning_rate: float
    batch_rows: int
    row_length: int
    seed: int | None
    chat_format: str = "auto"
    too_long: str = "error"
    samples: int = 2
    lora: dict[str, Any] | None = None
    loop: dict[str, Any] | None = None
    """Further settings of the loop, e.g. those that save memory."""


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


def sft_recipe(model: str, files: Sequence[DataFile], tuning: Tuning) -> Recipe:
    """A recipe with the one stage ``sft``, as many steps as about ``epochs`` passes take."""
    if tuning.epochs <= 0:
        raise UsageError(f"--epochs {tuning.epochs}: give a number above 0")
    rows = max(1.0, _n_tokens(model, files, tuning) / (tuning.row_length * _ROW_FILL))
    batch_rows = min(tuning.batch_rows, math.ceil(rows))  # a few chats make a few small steps
    steps = max(1, math.ceil(tuning.epochs * rows / batch_rows))
    loop = {
        "steps": steps,
        "batch_rows": batch_rows,
        "micro_rows": math.gcd(batch_rows, _ROWS_AT_ONCE),
        "learning_rate": tuning.learning_rate,
        "warmup_steps": min(steps // 10, 100),
        "checkpoint_every": max(1, steps // _CHECKPOINTS),
        "log_every": 1,
        "weight_decay": 0.0,
    }
    sft = {
        "base": model,
        "files": [file.model_dump(mode="json") for file in files],
        "row_length": tuning.row_length,
        "chat_format": tuning.chat_format,
        "too_long": tuning.too_long,
        "samples": tuning.samples,
        "lora": tuning.lora,
        "loop": loop | (tuning.loop or {}),
    }
    recipe: dict[str, Any] = {"name": tuning.name, "stages": {"sft": sft}}
    if origin := origin_of(model):  # so that what was held out of the base stays held out
        recipe |= {"seed": origin.seed, "kinds": origin.kinds}
    if tuning.seed is not None:
        recipe["seed"] = tuning.seed
    return Recipe.parse(recipe, where="puna sft")


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
