"""The commands as a user calls them: exit codes, one-line errors, nothing lost."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from puna.cli.main import main
from puna.data.generators import generate_chats
from puna.formats import save_model
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer

Puna = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def puna(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Puna:
    """Calls the command line in this process, as the installed script does."""

    def call(*arguments: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["puna", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Done(code, *capsys.readouterr())

    return call


def assert_one_line(done: Done, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("puna: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_the_module_runs_as_a_process() -> None:
    done = subprocess.run([sys.executable, "-m", "puna", "ls"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [m.content for chat in generate_chats(0, 50, ()) for m in chat.messages]
    tokenizer = Tokenizer.train(texts, 300, n_special=16)
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    config = fields | {"vocab_size": tokenizer.vocab_size, "context": 96}
    model = Llama(LlamaConfig.parse(config, where="test"))
    model.init_weights(seed=2)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, model, tokenizer)
    return folder


def test_generate_prints_one_json_object_and_nothing_else(puna: Puna, model_folder: Path) -> None:
    done = puna("generate", model_folder, "--prompt", "What", "--max-new-tokens", 5, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"text", "stopped", "prompt_tokens", "new_tokens"}
    assert found["new_tokens"] <= 5


def test_generate_streams_the_same_text(puna: Puna, model_folder: Path) -> None:
    arguments = ("generate", model_folder, "--prompt", "-", "--max-new-tokens", 8)
    whole = json.loads(puna(*arguments, "--json", stdin="It is").stdout)["text"]
    assert puna(*arguments, stdin="It is").stdout == whole + "\n"


def test_chat_answers_and_leaves(puna: Puna, model_folder: Path) -> None:
    done = puna(
        "chat", model_folder, "--max-new-tokens", 4, stdin="What is 4?\n/new\n/help\n/quit\n"
    )
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    assert "/quit" in done.stdout


def test_chat_says_when_a_conversation_outgrows_the_context(puna: Puna, model_folder: Path) -> None:
    done = puna("chat", model_folder, stdin="4 and 5? " * 60 + "\n4?\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert "this model's context is 96" in " ".join(done.stdout.split())
    assert done.stdout.count("tokens/s") == 1  # the conversation went on without that message


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
        (("run", "none.yaml"), ("no such recipe: none.yaml", "quickstart")),
        (("run", "quickstart", "stages.sft.loop.stepz=3"), ("'stages.sft.loop.stepz'", "'steps'")),
        (("run", "quickstart", "seed=red"), ("'seed' is 'red'",)),
        (("chat", "no-such-model"), ("no model 'no-such-model'", "smollm2")),
        (("generate", "no-such-model", "--prompt", "x"), ("no model",)),
        (("sft", "smollm2", "--data", "none.jsonl"), ("no such file: none.jsonl",)),
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


def test_a_prompt_longer_than_the_context_says_both_lengths(puna: Puna, model_folder: Path) -> None:
    done = puna("generate", model_folder, "--prompt", "4 " * 200)
    assert_one_line(done, 2, "this model's context is 96")


def test_a_missing_shard_is_named(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    for item in model_folder.iterdir():
        if item.suffix != ".safetensors":
            (tmp_path / item.name).write_bytes(item.read_bytes())
    assert_one_line(puna("chat", tmp_path), 2, "safetensors")


def test_debug_shows_the_traceback(puna: Puna) -> None:
    done = puna("--debug", "run", "none.yaml")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.strip().endswith("quickstart")


def test_shipped_recipes_are_listed_copied_and_valid(puna: Puna, tmp_path: Path) -> None:
    listed = [line.split()[0] for line in puna("ls").stdout.splitlines()]
    assert "quickstart" in listed
    for name in listed:
        assert puna("validate", name).returncode == 0
    copied = tmp_path / "mine.yaml"
    assert puna("cp", "quickstart", copied).returncode == 0
    assert copied.read_text() == puna("cat", "quickstart").stdout
    assert_one_line(puna("cp", "quickstart", copied), 2, "exists already")
