"""Parity with the pre-tokenizers that the models' own tokenizer.json files declare."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from puna.core.errors import UsageError
from puna.formats.gguf_tokenizer import write_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "2 0", "20 2", "202 4", "Ġ Ġ", ". .", "' t"]


class Header:
    """As much of a `GgufFile` as a tokenizer needs."""

    name = "tiny.gguf"

    def __init__(self, pre: str, **changes: Any) -> None:
        tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET]
        tokens += [merge.replace(" ", "") for merge in MERGES]
        tokens.append("<tool>")
        types = np.ones(len(tokens), dtype=np.int32)
        types[:3], types[-1] = 3, 4
        values = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types}
        values |= {"merges": MERGES, "bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 2}
        self.metadata = {f"tokenizer.ggml.{key}": v for key, v in (values | changes).items()}


def converted(folder: Path, pre: str) -> tokenizers.Tokenizer:
    write_tokenizer(Header(pre), folder)  # type: ignore[arg-type]
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def byte_level(use_regex: bool) -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DECLARED = {  # in tokenizer.json of SmolLM2, GPT-2 and Llama 3
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)]
    ),
    "gpt-2": byte_level(use_regex=True),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
            byte_level(use_regex=False),
        ]
    ),
}
texts = st.text(
    st.one_of(
        st.sampled_from(list("ab '\n\t\r12٣½²_.-!éÅß高 \u3000stdmrevl")),
        st.characters(codec="utf-8"),
    ),
    max_size=40,
)


@pytest.mark.parametrize("pre", DECLARED)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(text=texts)
def test_words_are_split_as_the_models_own_file_declares(
    pre: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    if not path.exists():
        converted(tmp_path, pre)
    ours = tokenizers.Tokenizer.from_file(str(path)).pre_tokenizer
    assert ours is not None
    assert ours.pre_tokenize_str(text) == DECLARED[pre].pre_tokenize_str(text)


def test_smollm_splits_a_year_in_four_and_gpt2_does_not(tmp_path: Path) -> None:
    assert converted(tmp_path, "smollm").encode("2024").tokens == ["2", "0", "2", "4"]
    assert converted(tmp_path, "gpt-2").encode("2024").tokens == ["2024"]
    llama3 = converted(tmp_path, "llama-bpe").encode("2024", add_special_tokens=False)
    assert llama3.tokens == ["202", "4"]


def test_the_default_of_llama_cpp_parts_signs_words_and_every_third_digit(tmp_path: Path) -> None:
    pre = converted(tmp_path, "default").pre_tokenizer
    assert pre is not None
    words = [word for word, _ in pre.pre_tokenize_str("hello... 2024=x")]
    assert words == ["hello", "...", "Ġ", "202", "4", "=", "x"]


def test_control_tokens_are_those_of_the_token_types(tmp_path: Path) -> None:
    added = converted(tmp_path, "smollm").get_added_tokens_decoder()
    marked = {index: (token.content, token.special) for index, token in added.items()}
    last = len(Header("smollm").metadata["tokenizer.ggml.tokens"]) - 1
    assert marked == {
        0: ("<|endoftext|>", True),
        1: ("<|im_start|>", True),
        2: ("<|im_end|>", True),
        last: ("<tool>", False),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "llama"}, "its tokenizer is 'llama': only byte-level BPE"),
        ({"pre": "tekken"}, "the pre-tokenizer 'tekken' is not known: supported are command-r"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": ["h q"]}, "the merge 'h q' is of unknown tokens"),
        ({"merges": ["hello"]}, "the merge 'hello ' is of unknown tokens"),
        ({"tokens": ["a", "a"]}, "a token is listed twice"),
        ({"token_type": np.ones(3, dtype=np.int32)}, "differ in number"),
    ],
)
def test_another_tokenizer_is_refused_in_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    header = Header(**({"pre": "smollm"} | changes))
    with pytest.raises(UsageError, match=r"^tiny\.gguf") as caught:
        write_tokenizer(header, tmp_path)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
