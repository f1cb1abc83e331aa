"""The commands as a user calls them: exit codes, one-line errors, nothing lost."""

import atexit
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Puna, assert_one_line
from typer.main import get_command

from puna.cli.main import _TRAINS, app, main
from puna.data.generators import generate_chats
from puna.tokenizer import Tokenizer


def test_the_module_runs_as_a_process() -> None:
    done = subprocess.run([sys.executable, "-m", "puna", "ls"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


@pytest.mark.parametrize(
    ("command", "chosen", "spins"),
    [
        (["run", "no-such-recipe"], {}, "20000"),
        (["run", "no-such-recipe"], {"OMP_WAIT_POLICY": "active"}, None),
        (["sft", "smollm2", "--data", "none"], {"GOMP_SPINCOUNT": "7"}, "7"),
        (["generate", "no-such-model", "--prompt", "x"], {}, None),
    ],
)
def test_waiting_threads_of_a_training_sleep_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, command: list[str], chosen: dict[str, str], spins: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["puna", *command])
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_commands_that_train_are_known_before_torch_is_loaded() -> None:
    known: Any = get_command(app)
    for path in _TRAINS:
        command = known
        for name in path.split():
            command = command.commands[name]
    code = "import puna.cli.main, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_convert_writes_a_folder_and_refuses_one_that_exists(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    assert puna("convert", model_folder, tmp_path / "copy").returncode == 0
    assert (tmp_path / "copy" / "model.safetensors").exists()
    assert_one_line(puna("convert", model_folder, tmp_path / "copy"), 2, "exists already")


def test_show_mask_colours_a_chat(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    line = {"messages": [{"role": "user", "content": "4?"}, {"role": "assistant", "content": "9"}]}
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps(line) + "\n")
    done = puna("tokenizer", "show-mask", model_folder, chats)
    assert done.returncode == 0, done.stderr
    assert "answer, trained" in done.stdout
    assert "assistant: 2 of" in done.stdout


def test_a_tokenizer_is_trained_on_files(puna: Puna, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The llama number {n} eats grass." for n in range(300)))
    out = tmp_path / "tokenizer"
    done = puna("tokenizer", "train", text, "--out", out, "--vocab-size", 540)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.from_folder(out).vocab_size == 540


def test_sft_tunes_on_a_users_own_chats(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    chats = generate_chats(0, 400, ())
    lines = [{"messages": [m.__dict__ for m in chat.messages]} for chat in chats]
    short = [x for x in lines if sum(len(m["content"]) for m in x["messages"]) < 40]
    data = tmp_path / "my.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in short))
    arguments = ["--data", data, "--runs", tmp_path / "runs", "--name", "mine"]
    arguments += ["--row-length", 96, "--epochs", 5, "--learning-rate", 0.003]
    done = puna("sft", model_folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    figures = summary["stages"]["sft"]
    assert figures["held_out_loss"] < figures["held_out_loss_before"] - 0.5
    assert (tmp_path / "runs" / "mine" / "sft" / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("run", "none.yaml"), ("no such recipe: none.yaml", "puna ls")),
        (("run", "quickstart", "stages.sft.loop.stepz=3"), ("'stages.sft.loop.stepz'", "'steps'")),
        (("run", "quickstart", "seed=red"), ("'seed' is 'red'",)),
        (("chat", "no-such-model"), ("no model 'no-such-model'", "smollm2")),
        (("generate", "no-such-model", "--prompt", "x"), ("no model",)),
        (
            ("sft", "smollm2", "--data", "none.jsonl"),
            ("no such file or folder: none.jsonl", '"messages"', '"conversations"', '"output"'),
        ),
        (
            ("dpo", "smollm2", "--data", "no/pairs.jsonl"),
            ("no such file or folder: no/pairs.jsonl: nor is there no;", '"chosen"', "Human:"),
        ),
        (
            ("ppo", "smollm2", "--data", "none.csv", "--reward", "a:b"),
            ("no such file or folder: none.csv", '"question"', '"messages"'),
        ),
        (("sft", "my.jsonl"), ("my.jsonl is data, not a model: write smollm2 --data my.jsonl",)),
        (("report", "no-such-run"), ("no-such-run holds no summary.json",)),
        (("tokenizer", "train", "none.txt", "--out", "x"), ("none.txt",)),
        (("run",), ("RECIPE",)),
        (("eval", "smollm2", "--pairs", "1"), ("--pairs",)),
        (("fly",), ("fly",)),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    puna: Puna, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_one_line(puna(*arguments), 2, *parts)


def test_a_missing_shard_is_named(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    for item in model_folder.iterdir():
        if item.suffix != ".safetensors":
            (tmp_path / item.name).write_bytes(item.read_bytes())
    assert_one_line(puna("chat", tmp_path), 2, "safetensors")


def test_debug_shows_the_traceback(puna: Puna) -> None:
    done = puna("--debug", "run", "none.yaml")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.strip().endswith("puna ls lists those that ship")


def test_shipped_recipes_are_listed_copied_and_valid(puna: Puna, tmp_path: Path) -> None:
    lines = [line for line in puna("ls").stdout.splitlines() if line and line[0] != "#"]
    listed = [line.split()[0] for line in lines]
    assert {"quickstart", "smollm2-sft", "llama3.1-8b-qlora"} <= set(listed)
    for name in listed:
        assert puna("validate", name).returncode == 0
    assert_one_line(puna("run", "llama3.1-qlora"), 2, "did you mean", "llama3.1-8b-qlora")
    copied = tmp_path / "mine.yaml"
    assert puna("cp", "quickstart", copied).returncode == 0
    assert copied.read_text() == puna("cat", "quickstart").stdout
    assert puna("cp", "llama3.3-70b-qlora", tmp_path).returncode == 0
    written = (tmp_path / "llama3.3-70b-qlora.yaml").read_text()
    assert "one GPU of 80 GB" in written.splitlines()[0]
    assert puna("validate", tmp_path / "llama3.3-70b-qlora.yaml").returncode == 0
    assert_one_line(puna("cp", "quickstart", copied), 2, "exists already")
