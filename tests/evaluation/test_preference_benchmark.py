"""What ``benchmarks/preferences.py`` stands on: its split, its verdicts, its table."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from puna.alignment import encode_pair
from puna.alignment.reference import text_logprobs
from puna.data import NamedPair
from puna.data.generators import PreferencePair
from puna.data.human_scores import scored_pairs
from puna.evaluation import pair_logprobs
from puna.model import Llama
from puna.tokenizer import Message, Tokenizer

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("preferences")


def test_no_prompt_of_scored_answers_stands_on_both_sides(script: ModuleType) -> None:
    pairs = scored_pairs()
    train, judged = script.split_by_prompt(pairs, 0.4, 1)
    prompts = [{pair.prompt for pair in side} for side in (train, judged)]
    assert not prompts[0] & prompts[1]
    assert len(train) + len(judged) == len(pairs)
    # "about": of whole prompts
    assert len(prompts[1]) == pytest.approx(0.4 * len({pair.prompt for pair in pairs}), abs=1)


def test_the_split_is_a_function_of_the_seed(script: ModuleType) -> None:
    pairs = scored_pairs()
    sides = [{p.prompt for p in script.split_by_prompt(pairs, 0.4, seed)[1]} for seed in (1, 1, 2)]
    assert sides[0] == sides[1] != sides[2]


def test_verdicts_are_the_comparisons_written_out(script: ModuleType) -> None:
    logprobs = np.array([[-4.0, -6.0], [-9.0, -6.0], [-3.0, -3.0]])
    lengths = np.array([[1, 3], [6, 2], [1, 1]])
    reference = np.array([[-4.0, -8.0], [-9.5, -6.0], [-3.0, -4.0]])
    found = script.verdicts(logprobs, lengths, reference)
    assert found["sum"].tolist() == [1, 0, 0.5]
    assert found["per token"].tolist() == [0, 1, 0.5]  # -4 < -2; -1.5 > -3
    assert found["implicit reward"].tolist() == [0, 1, 0]  # 0 < 2; 0.5 > 0; 0 < 1


def test_accuracy_is_the_evaluation_rooms(
    script: ModuleType, model: Llama, tokenizer: Tokenizer
) -> None:
    texts = [("4", "5 or 6"), ("a b c", "d"), ("yes", "no no"), ("one two", "three")]
    prompt = (Message("user", "2 + 2"),)
    pairs = [NamedPair("t", prompt, *both) for both in texts]
    tokens = [encode_pair(tokenizer, p.prompt, p.chosen, p.rejected, 48, "t") for p in pairs]
    same = [PreferencePair("truth", "t", "t", p.prompt, p.chosen, p.rejected) for p in pairs]
    judged = pair_logprobs(model, tokenizer, same)
    sums = text_logprobs(model, tokens)
    for row, other in zip(sums.tolist(), judged, strict=True):
        assert row == pytest.approx([other.chosen, other.rejected], rel=1e-4)  # fp32, other rows
    right = script.verdicts(sums, script.text_lengths(tokens))["sum"]
    assert right.tolist() == [float(other.margin > 0) for other in judged]
    lengths = [[len(tokenizer.encode(text)) for text in both] for both in texts]
    assert script.text_lengths(tokens).tolist() == lengths


def test_an_absent_file_is_one_line(script: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "preferences.py"), "hh"]
    command += ["--file", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        f"error: no HH-RLHF pairs at {tmp_path / 'none'}: name their file with --file"
    ]
