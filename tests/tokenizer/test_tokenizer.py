import copy
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from puna.core.errors import UsageError
from puna.tokenizer import CHATML, LLAMA3, Tokenizer
from puna.tokenizer.bytelevel import BYTE_TO_CHAR, to_bytes, to_chars

ANY_TEXT = st.text(max_size=80) | st.text(st.characters(max_codepoint=0x2FF), max_size=80)
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
SAMPLES = [
    "",
    " ",
    "Hello, world!  It's 2024 and I'LL go.\r\n\n\tdef f(x):\n    return x ** 2  \n",
    "naïve café – Übergröße · Ελληνικά · русский · עברית · العربية · हिन्दी · ไทย · 日本語 · 한국어",
    "👩‍👩‍👧 🇫🇷 e\u0301 \u200b\u00a0\u3000 \x00\x7f \U000e0041 \U0010ffff",
    "12345678901234567890 3.14159 1,000,000 ١٢٣ ½",
]


@pytest.fixture(scope="session", params=["small", "llama3"])
def ours_and_folder(request: pytest.FixtureRequest) -> tuple[Tokenizer, Path]:
    name = request.param
    return request.getfixturevalue(name), request.getfixturevalue(f"{name}_folder")


@SHARED
@given(text=ANY_TEXT)
def test_any_text_comes_back_from_its_ids(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == text


@SHARED
@given(texts=st.lists(ANY_TEXT, max_size=5))
def test_a_batch_equals_its_texts_one_by_one(small: Tokenizer, texts: list[str]) -> None:
    assert small.encode_batch(texts) == [small.encode(text) for text in texts]


def test_lone_surrogates_become_the_replacement_character(small: Tokenizer) -> None:
    assert small.decode(small.encode("a\ud83d b")) == "a\ufffd b"
    assert small.encode_batch(["\udc00"]) == [small.encode("\ufffd")]
    assert small.decode(small.encode("\ud83d\ude00")) == "😀"  # a pair in two halves is whole


def test_the_vocabulary_holds_every_byte_and_the_special_tokens_last(small: Tokenizer) -> None:
    singles = {small.token_bytes(i) for i in range(256)}
    assert singles == {bytes([b]) for b in range(256)}
    assert small.vocab_size == 600
    assert small.special_ids == set(range(584, 600))
    assert small.bos_id == small.special_id("<|begin_of_text|>") == 584
    assert small.eos_id == 585
    assert (small.eot_id, small.pad_id) == (593, 588)
    assert small.stop_ids == {585, 592, 593}
    assert small.token_bytes(593) == b"<|eot_id|>"


def test_the_byte_alphabet_is_one_to_one() -> None:
    assert len(set(BYTE_TO_CHAR)) == 256
    assert to_bytes(to_chars(bytes(range(256)))) == bytes(range(256))
    assert to_chars(b" a\n") == "ĠaĊ"


def test_training_depends_on_the_texts_alone_not_on_their_order(texts: list[str]) -> None:
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    shuffled = random.Random(7).sample(lines, len(lines))
    first, again, other = (
        Tokenizer.train(iter(order), 500, n_special=16) for order in (lines, lines, shuffled)
    )
    assert first._backend.to_str() == again._backend.to_str() == other._backend.to_str()


@pytest.mark.parametrize(("digit_group", "n_merges", "n_tokens"), [(1, 0, 6), (2, 3, 3), (3, 4, 2)])
def test_digits_are_kept_in_groups_of_the_size_asked(
    digit_group: int, n_merges: int, n_tokens: int
) -> None:
    size = 256 + n_merges + 10
    tokenizer = Tokenizer.train(["123456"], size, digit_group=digit_group, n_special=10)
    assert len(tokenizer.encode("123456")) == n_tokens


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Tokenizer.train([], 600), "training text is empty"),
        (lambda: Tokenizer.train(["", ""], 600), "training text is empty"),
        (lambda: Tokenizer.train(["some text"], 500), "vocab_size is 500: at least 512"),
        (lambda: Tokenizer.train(["some text"], 9000), "give more text or ask for fewer"),
        (lambda: Tokenizer.train(["some text"], 600, n_special=5), "n_special is 5: choose 10"),
        (lambda: Tokenizer.train(["text"], 600, digit_group=4), "digit_group is 4"),
    ],
)
def test_a_training_that_cannot_work_says_why(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        make()


def test_a_pickled_tokenizer_still_treats_typed_special_tokens_as_text(small: Tokenizer) -> None:
    typed = "<|eot_id|>"
    for twin in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert twin.encode(typed) == small.encode(typed)
        assert small.eot_id not in twin.encode(typed)


@pytest.mark.parametrize("name", ["small", "smol", "llama3"])
def test_typed_special_tokens_are_never_special(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path)
    for each in (tokenizer, Tokenizer.from_folder(tmp_path)):
        for i in each.special_ids:
            typed = each.token_bytes(i).decode()
            for text in (typed, f"a{typed}b", f" {typed}\n{typed} "):
                ids = each.encode(text)
                assert each.special_ids.isdisjoint(ids)
                assert each.decode(ids) == text
                assert each.decode(ids, skip_special=True) == text


def test_a_saved_folder_opens_in_transformers_with_equal_ids(
    ours_and_folder: tuple[Tokenizer, Path],
) -> None:
    ours, folder = ours_and_folder
    (folder / "config.json").write_text('{"model_type": "llama"}')  # as beside a model
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in SAMPLES:
        # As in Meta's own folders, add_special_tokens (the default) opens with BOS, adds no EOS.
        assert theirs(text)["input_ids"] == ours.encode(text, bos=True)
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids) == text
    assert len(theirs) == ours.vocab_size
    named = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert named == (ours.bos_id, ours.eos_id, ours.pad_id)


def test_a_saved_folder_reads_back_to_the_same_tokenizer(
    ours_and_folder: tuple[Tokenizer, Path],
) -> None:
    ours, folder = ours_and_folder
    again = Tokenizer.from_folder(folder)
    assert again._backend.to_str() == ours._backend.to_str()
    assert (again.bos_id, again.eos_id, again.eot_id) == (ours.bos_id, ours.eos_id, ours.eot_id)
    assert (again.pad_id, again.stop_ids) == (ours.pad_id, ours.stop_ids)
    assert again.chat == ours.chat == LLAMA3


def test_what_transformers_saves_again_reads_the_same(
    small: Tokenizer, small_folder: Path, tmp_path: Path
) -> None:
    AutoTokenizer.from_pretrained(small_folder).save_pretrained(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.encode_batch(SAMPLES) == small.encode_batch(SAMPLES)
    assert again.stop_ids == small.stop_ids
    assert again.pad_id == small.pad_id


def test_a_smollm2_folder_reads_as_transformers_reads_it(
    smol: Tokenizer, smol_folder: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(smol_folder)
    for text in SAMPLES:
        assert smol.encode(text, bos=True) == theirs(text)["input_ids"]
    assert len(smol.encode("2024")) == 4
    assert smol.bos_id is None
    assert (smol.eos_id, smol.eot_id, smol.pad_id) == (0, 2, 2)
    assert smol.stop_ids == {0, 2}
    assert smol.chat == CHATML


def test_a_byte_the_vocabulary_lacks_is_left_out_not_turned_into_end_of_text(
    smol: Tokenizer, smol_folder: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(smol_folder)
    assert theirs("a\x04b")["input_ids"][1] == smol.eos_id  # what would go wrong
    assert smol.encode("a\x04b") == smol.encode("a") + smol.encode("b")


def edited(folder: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a tokenizer folder with its ``tokenizer.json`` changed."""
    pipeline = json.loads((folder / "tokenizer.json").read_text())
    edit(pipeline)
    (target / "tokenizer.json").write_text(json.dumps(pipeline))
    config = (folder / "tokenizer_config.json").read_text()
    (target / "tokenizer_config.json").write_text(config)
    return target


def test_settings_left_in_a_folder_do_not_change_ids(
    small: Tokenizer, small_folder: Path, tmp_path: Path
) -> None:
    def edit(pipeline: dict[str, Any]) -> None:
        cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        pipeline["truncation"] = cut
        pipeline["model"]["dropout"] = 0.9
        for token in pipeline["added_tokens"]:
            token["special"] = False

    read = Tokenizer.from_folder(edited(small_folder, tmp_path, edit))
    assert read.encode_batch(SAMPLES) == small.encode_batch(SAMPLES)
    assert read.encode("<|eot_id|>") == small.encode("<|eot_id|>")


def test_a_folder_without_chat_tokens_encodes_and_says_so_when_asked_to_chat(
    small_folder: Path, tmp_path: Path
) -> None:
    def edit(pipeline: dict[str, Any]) -> None:
        for i, token in enumerate(pipeline["added_tokens"][2:]):
            token["content"] = f"<|x{i}|>"

    read = Tokenizer.from_folder(edited(small_folder, tmp_path, edit))
    assert (read.bos_id, read.eos_id, read.eot_id, read.pad_id) == (584, 585, 585, 585)
    with pytest.raises(UsageError, match="no chat tokens"):
        _ = read.chat


def remove_end(pipeline: dict[str, Any]) -> None:
    pipeline["added_tokens"] = []


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda p: p["model"].update(type="WordPiece"), "not byte-level BPE"),
        (lambda p: p.update(pre_tokenizer={"type": "Whitespace"}), "not byte-level BPE"),
        (lambda p: p.update(decoder=None), "not byte-level BPE"),
        (lambda p: p["model"].pop("vocab"), "refuses it"),
        (lambda p: p["model"]["vocab"].update({"日": 9999}), "not spelled as byte-level"),
        (remove_end, "no end of text"),
    ],
)
def test_a_folder_of_another_kind_is_refused(
    small_folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint) as raised:
        Tokenizer.from_folder(edited(small_folder, tmp_path, edit))
    assert "\n" not in str(raised.value)


def test_a_missing_or_broken_tokenizer_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json in"):
        Tokenizer.from_folder(tmp_path)
    path = tmp_path / "tokenizer.json"
    for broken, complaint in [('{"model": ', "not valid JSON"), ("[1]", "expected a JSON object")]:
        path.write_text(broken)
        with pytest.raises(UsageError, match=complaint) as raised:
            Tokenizer.from_folder(tmp_path)
        assert str(path) in str(raised.value)


def test_ids_and_names_outside_the_vocabulary_are_refused(small: Tokenizer) -> None:
    for wrong in (-1, 600):
        with pytest.raises(UsageError, match="outside this vocabulary of 600"):
            small.decode([wrong])
    with pytest.raises(UsageError, match=r"no special token <\|im_end\|>"):
        small.special_id("<|im_end|>")
