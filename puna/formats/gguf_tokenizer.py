"""The tokenizer in a GGUF file's metadata, written as the files of a Hugging Face folder."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from puna.core.errors import UsageError
from puna.core.files import write_json
from puna.formats.gguf_file import GgufFile
from puna.tokenizer.special import split_pattern

_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType

# The patterns llama.cpp applies for each name of `tokenizer.ggml.pre` (src/llama-vocab.cpp).
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGITS = r"\p{N}"
_DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]
_PATTERNS = {
    "llama-bpe": [split_pattern(3)],
    "llama3": [split_pattern(3)],
    "llama-v3": [split_pattern(3)],
    "smaug-bpe": [split_pattern(3)],
    "smollm": [_DIGITS, _GPT2],
    "starcoder": [_DIGITS, _GPT2],
    "refact": [_DIGITS, _GPT2],
    "command-r": [_DIGITS, _GPT2],
    "gpt-2": [_GPT2],
    "olmo": [_GPT2],
    "default": _DEFAULT,
}
_LLAMA3 = {"llama-bpe", "llama3", "llama-v3"}  # no merging of whole words; BOS unless told not to
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` for the tokenizer ``file`` holds.

    Control tokens are those the token types mark. Raises `UsageError` for a tokenizer that is not
    byte-level BPE, or whose pre-tokenizer is not known.
    """
    kind = str(file.metadata.get("tokenizer.ggml.model"))
    if kind != "gpt2":
        raise UsageError(
            f"{file.name}: its tokenizer is {kind!r}: only byte-level BPE ('gpt2') is supported"
        )
    tokens, types = _vocabulary(file)
    tokenizer = _byte_level_bpe(file, tokens)
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (_CONTROL, _USER_DEFINED):
            special = token_type == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    _open_with_bos(file, tokenizer, tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(file, tokens))


def _vocabulary(file: GgufFile) -> tuple[list[str], list[int]]:
    tokens = _texts(file, "tokens")
    types = file.metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), dtype=np.int32))
    if len(set(tokens)) != len(tokens):
        raise UsageError(f"{file.name}: a token is listed twice: convert the model again")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise UsageError(f"{file.name}: tokens and token types differ in number: convert it again")
    return tokens, types.tolist()


def _texts(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise UsageError(
            f"{file.name}: the list tokenizer.ggml.{key} is missing: convert the model again"
        )
    return value


def _byte_level_bpe(file: GgufFile, tokens: list[str]) -> Tokenizer:
    pre = _pre(file)
    if pre not in _PATTERNS:
        raise UsageError(
            f"{file.name}: the pre-tokenizer {pre!r} is not known: supported are "
            f"{', '.join(sorted(_PATTERNS))}"
        )
    merges = [_pair(merge) for merge in _texts(file, "merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = [pair for pair in merges if any(p not in vocabulary for p in (*pair, "".join(pair)))]
    if unknown:
        raise UsageError(f"{file.name}: the merge {' '.join(unknown[0])!r} is of unknown tokens")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _LLAMA3))
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in _PATTERNS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre(file: GgufFile) -> str:
    return str(file.metadata.get("tokenizer.ggml.pre", "default"))


def _open_with_bos(file: GgufFile, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Open texts with BOS where the file says so, as transformers' ``add_special_tokens`` does."""
    bos = _token(file, "bos", tokens)
    wanted = file.metadata.get("tokenizer.ggml.add_bos_token", _pre(file) in _LLAMA3)
    if bos is not None and wanted is True:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokens.index(bos))],
        )


def _token(file: GgufFile, role: str, tokens: list[str]) -> str | None:
    index = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None


def _pair(merge: str) -> tuple[str, str]:
    first, _, second = merge.partition(" ")  # the byte alphabet writes a space as another sign
    return first, second


def _tokenizer_config(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key, role in _ROLES.items():
        token = _token(file, role, tokens)
        if token is not None:
            config[key] = token
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config
