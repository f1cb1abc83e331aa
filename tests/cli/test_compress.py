"""``puna distill`` and ``puna qat``: from a model and a file to a smaller or a rounded one."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Puna, assert_one_line

from puna.formats import load_config, save_model
from puna.model import Llama
from puna.tokenizer import Tokenizer

ROWS = [
    {"conversations": [{"from": "human", "value": f"Is {n} big?"}, {"from": "gpt", "value": "No."}]}
    for n in range(40)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def even_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A model whose widths groups of 32 divide."""
    tokenizer = Tokenizer.from_folder(model_folder)
    model = Llama(load_config(model_folder).model_copy(update={"ffn_dim": 64}))
    model.init_weights(3)
    save_model(tmp_path / "even", model, tokenizer)
    return tmp_path / "even"


def call(puna: Puna, command: str, model: Path, tmp_path: Path, *arguments: object) -> Any:
    fixed = ("--row-length", 90, "--runs", tmp_path / "runs", "--epochs", 1)
    return puna(command, model, *fixed, *arguments)


def test_a_model_teaches_a_student_of_half_its_blocks(
    puna: Puna, model_folder: Path, data: Path, tmp_path: Path
) -> None:
    asked = ("--teacher", model_folder, "--data", data, "--layers", 1, "--divergence", "symmetric")
    done = call(puna, "distill", model_folder, tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "divergence from the teacher" in said
    run = tmp_path / "runs" / "distill-talks"
    assert f"chat {run}/distill/model" in said
    assert json.loads((run / "distill/model/config.json").read_text())["num_hidden_layers"] == 1


def test_what_rounding_costs_and_training_wins_back_is_told(
    puna: Puna, even_folder: Path, data: Path, tmp_path: Path
) -> None:
    asked = ("--data", data, "--compare", "--json")
    done = call(puna, "qat", even_folder, tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["stages"]["qat"]
    assert facts["held_out_loss"] < facts["held_out_loss_before"]
    assert {"held_out_loss_exact", "held_out_loss_without"} <= set(facts)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("distill", ("--teacher", "{model}", "--layers", "2"), "layers is 2, and the student has"),
        ("distill", ("--teacher", "nowhere"), "no model 'nowhere'"),
        ("distill", ("--teacher", "{model}", "--temperature", "0"), "greater than 0"),
        ("distill", (), "--teacher"),
        ("qat", (), "inputs, no multiple of 32"),
    ],
)
def test_wrong_use_is_one_line(
    puna: Puna,
    model_folder: Path,
    data: Path,
    tmp_path: Path,
    command: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    given = [argument.format(model=model_folder) for argument in arguments]
    done = call(puna, command, model_folder, tmp_path, "--data", data, *given)
    assert_one_line(done, 2, message)
