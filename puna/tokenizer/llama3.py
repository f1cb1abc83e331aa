"""Llama 3's tokenizer as a `tokenizers` pipeline: empty, to be trained, or from Meta's file."""

import base64
import binascii
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from puna.core.errors import UsageError
from puna.tokenizer.bytelevel import to_chars
from puna.tokenizer.special import special_tokens, split_pattern

BEGIN, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"


def new_backend(model: models.BPE, digit_group: int = 3) -> Backend:
    """A pipeline around ``model`` that cuts text as Llama 3 does; no special tokens yet."""
    backend = Backend(model)
    cut = pre_tokenizers.Split(Regex(split_pattern(digit_group)), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    backend.decoder = decoders.ByteLevel()
    return backend


def add_special_tokens(backend: Backend, n_special: int) -> None:
    """Give the special tokens the ids after the vocabulary's, and open every text with BOS.

    The opening is what transformers adds under ``add_special_tokens=True``, as Meta's own folders.
    """
    names = special_tokens(n_special)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
        special_tokens=[(BEGIN, backend.token_to_id(BEGIN))],
    )


def hf_config() -> dict[str, Any]:
    """What ``tokenizer_config.json`` says of a Llama 3 tokenizer, less its chat template."""
    return {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}


def backend_from_tiktoken(path: Path) -> Backend:
    """Meta's ``tokenizer.model`` as a `tokenizers` pipeline with equal ids.

    tiktoken first looks a whole piece up in its vocabulary: ``ignore_merges`` does the same.
    """
    ranks = read_ranks(path)
    model = models.BPE(
        vocab={to_chars(token): rank for token, rank in ranks.items()},
        merges=[(to_chars(left), to_chars(right)) for left, right in merges_from_ranks(ranks)],
        ignore_merges=True,
    )
    backend = new_backend(model)
    add_special_tokens(backend, len(special_tokens()))
    return backend


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes to rank from a tiktoken file: ``base64 rank`` lines, ranks 0, 1, 2...

    Raises `UsageError` for a file that is missing, of another kind, or lacks tokens.
    """
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"no such file: {path}: give Llama 3's tokenizer.model") from error
    ranks = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            token, rank = _parse_line(line, f"{path}, line {number}")
            ranks[token] = rank
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UsageError(f"{path}: ranks do not run from 0 without gaps: fetch the file again")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise UsageError(f"{path}: not every byte has a token: fetch the file again")
    return ranks


def _parse_line(line: bytes, where: str) -> tuple[bytes, int]:
    try:
        token, rank = line.split()
        return base64.b64decode(token, validate=True), int(rank)
    except (ValueError, binascii.Error) as error:
        raise UsageError(
            f"{where}: not 'base64 rank': give a tiktoken file such as Llama 3's tokenizer.model"
        ) from error


def merges_from_ranks(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that forms each token, in the order of ranks.

    tiktoken merges the adjacent pair whose joint bytes have the lowest rank. What happens inside
    a stretch that ends as one token does not depend on its surroundings, so merging the token's own
    bytes until two parts are left finds the only pair that can ever form it. A token that gets
    stuck with more parts (588 of Llama 3's) is met only as a whole piece and has no merge.
    """
    found = (_last_two(token, ranks) for token in sorted(ranks, key=lambda token: ranks[token]))
    return [pair for pair in found if pair is not None]


def _last_two(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right) for left, right in pairwise(parts)]
        known = [rank for rank in joined if rank is not None]
        if not known:
            return None
        at = joined.index(min(known))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
