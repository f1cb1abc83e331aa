"""The tokenizer files of a Hugging Face folder, read into a pipeline that treats text as text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from puna.core.errors import UsageError

Json = dict[str, Any]


def read_folder(folder: Path) -> tuple[Backend, Json]:
    """The pipeline of ``tokenizer.json`` and the keys of ``tokenizer_config.json`` (may be absent).

    ``chat_template`` comes from ``chat_template.jinja`` when that file exists, as in transformers.
    Raises `UsageError` when a file is missing or broken, or is not byte-level BPE.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"no tokenizer.json in {folder}: name a folder that holds a tokenizer")
    pipeline = _read_json(path)
    _check_byte_level(pipeline, path)
    _plain(pipeline)
    try:
        backend = Backend.from_str(json.dumps(pipeline, ensure_ascii=False))  # plain is faster
    except Exception as error:  # the library raises the base class and no other
        raise UsageError(f"{path}: `tokenizers` refuses it ({error}): save it again") from error
    return backend, _read_config(folder)


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid JSON ({error}): copy or save it again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_config(folder: Path) -> Json:
    config: Json = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config |= _read_json(folder / name)
    template = folder / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    return config


def _steps(step: Json | None) -> Iterator[Json]:
    """A pipeline step and those nested in it."""
    if step is not None:
        yield step
        for key in ("pretokenizers", "decoders"):
            for nested in step.get(key, []):
                yield from _steps(nested)


def _check_byte_level(pipeline: Json, path: Path) -> None:
    model = pipeline.get("model") or {}
    cut = {step.get("type") for step in _steps(pipeline.get("pre_tokenizer"))}
    join = {step.get("type") for step in _steps(pipeline.get("decoder"))}
    if model.get("type") != "BPE" or "ByteLevel" not in cut & join:
        raise UsageError(f"{path}: not byte-level BPE: use a Llama 3 or GPT-2 kind of tokenizer")


def _plain(pipeline: Json) -> None:
    """Switch off what would make a text's ids depend on more than the text, or be special.

    An unknown byte must not become ``unk_token``, which SmolLM2 sets to its end of text: byte-level
    vocabularies trained without the full alphabet (SmolLM2 lacks 21 bytes) drop it instead.
    """
    pipeline["truncation"] = pipeline["padding"] = None
    pipeline["model"]["dropout"] = pipeline["model"]["unk_token"] = None
    for token in pipeline.get("added_tokens", []):
        # Control tokens that some folders forgot to mark would be matched inside a user's text.
        token["special"] = token["special"] or token["content"].startswith("<|")
