"""``puna chat`` through a pipe and in a terminal."""

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from cli_calls import Done, Puna

from puna.cli.talk import Conversation
from puna.inference import Engine, EngineConfig, Sampling, load_engine

SLOW_CHAT = """
import sys, time
from puna.inference import Engine
quick = Engine.step
Engine.step = lambda self: (time.sleep(0.05), quick(self))[1]
from puna.cli.main import main
sys.argv = ["puna", "chat", *sys.argv[1:]]
main()
"""


def test_through_a_pipe_standard_output_holds_answers_only(puna: Puna, model_folder: Path) -> None:
    asked = puna("chat", model_folder, "--max-new-tokens", 4, stdin="What is 4?\n/help\n/quit\n")
    arguments = ("--prompt", "What is 4?", "--chat", "--max-new-tokens", 4)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == puna("generate", model_folder, *arguments).stdout
    assert "4 tokens" in asked.stderr
    assert "/retry" in asked.stderr


def test_a_question_may_go_on_over_lines(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.jsonl"
    puna("chat", model_folder, "--max-new-tokens", 4, stdin=f"2 and\\\n3?\n/save {saved}\n")
    assert json.loads(saved.read_text())["messages"][0] == {"role": "user", "content": "2 and\n3?"}


def test_a_question_that_outgrows_the_context_is_taken_back(puna: Puna, model_folder: Path) -> None:
    long = "4 and 5? " * 60
    done = puna("chat", model_folder, "--max-new-tokens", 4, stdin=f"{long}\n4?\n/quit\n")
    assert done.returncode == 0
    assert "this model's context is 96" in done.stderr
    answers = [line for line in done.stderr.splitlines() if line.startswith("4 tokens,")]
    assert len(answers) == 1


def chat_lines(puna: Puna, model_folder: Path, saved: Path, *lines: str) -> tuple[Done, list[str]]:
    """What a session said, and the contents of the conversation it saved."""
    arguments = ("--max-new-tokens", 4, "--temperature", 1.5)
    done = puna("chat", model_folder, *arguments, stdin="\n".join([*lines, f"/save {saved}"]))
    contents = [m["content"] for m in json.loads(saved.read_text())["messages"]]
    return done, contents


def test_undo_takes_back_a_question_and_its_answer(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    _, contents = chat_lines(puna, model_folder, tmp_path / "a", "One?", "Two?", "/undo")
    assert contents[0] == "One?"
    assert len(contents) == 2


def test_retry_answers_the_same_question_again_in_another_way(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    done, contents = chat_lines(puna, model_folder, tmp_path / "a", "One?", "/retry")
    first, second = done.stdout.splitlines()
    assert first != second
    assert contents == ["One?", second.strip()]


def test_a_system_prompt_starts_over_and_stays_after_new(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    lines = ("One?", "/system Be kind.", "Two?", "/new", "Three?")
    _, contents = chat_lines(puna, model_folder, tmp_path / "a", *lines)
    assert contents[:2] == ["Be kind.", "Three?"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/fly", "no command /fly"),
        ("/undo", "nothing has been said"),
        ("/retry", "nothing has been said"),
        ("/save", "name a file"),
        ("/save x", "nothing has been said"),
        ("/set temprature 1", "did you mean 'temperature'?"),
        ("/set temperature hot", "'temperature' is 'hot'"),
        ("/set temperature [", "'[' cannot be read"),
    ],
)
def test_a_wrong_command_says_so_and_the_chat_goes_on(
    puna: Puna, model_folder: Path, line: str, part: str
) -> None:
    done = puna("chat", model_folder, "--max-new-tokens", 2, stdin=f"{line}\n4?\n")
    assert part in done.stderr
    assert "\n2 tokens," in done.stderr
    assert done.returncode == 0


def test_a_setting_changes_the_answers_from_then_on(puna: Puna, model_folder: Path) -> None:
    done = puna("chat", model_folder, stdin="4?\n/set max_new_tokens 3\n/new\n4?\n")
    assert "\n3 tokens" in done.stderr


def test_save_keeps_what_another_chat_saved(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine")
    done = puna("chat", model_folder, "--max-new-tokens", 2, stdin=f"4?\n/save {kept}\n")
    assert "exists already" in done.stderr
    assert kept.read_text() == "mine"


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Engine:
    return load_engine(str(model_folder), EngineConfig(weights="fp32", max_rows=1))


def test_a_later_turn_reads_only_what_is_new(engine: Engine) -> None:
    conversation = Conversation(engine, "", Sampling(max_new_tokens=4))
    first = conversation.prompt("What is 4?")
    list(conversation.answer(first, lambda: False))
    second = [*first, 5, 6, 7, 8]
    delta = next(iter(conversation.answer(second, lambda: False)))
    assert len(first) - engine.config.page_size <= delta.cached_tokens <= len(first)


def test_a_stopped_answer_frees_the_engine(engine: Engine) -> None:
    conversation = Conversation(engine, "", Sampling(max_new_tokens=50, ignore_stop_tokens=True))
    seen: list[object] = []
    for delta in conversation.answer(conversation.prompt("4?"), lambda: len(seen) == 3):
        seen.append(delta)
    assert len(seen) == 3
    assert engine.idle
    assert engine.stats().pages_used == 0


class Terminal:
    """A chat behind a pseudo-terminal, its engine slowed down."""

    def __init__(self, *arguments: str) -> None:
        self._side, other = pty.openpty()
        command = [sys.executable, "-c", SLOW_CHAT, *arguments]
        environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C becomes a signal
        )
        os.close(other)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._side, keys.encode())

    def wait_for(self, text: str, *, typing: str = "") -> None:
        """Read until ``text`` has been shown; what was shown before it is dropped.

        ``typing`` is typed every second until then: a signal that arrives before Python waits for a
        line is seen with the next key only.
        """
        deadline, typed = time.monotonic() + 60, 0.0
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if typing and time.monotonic() > typed + 1:
                self.type(typing)
                typed = time.monotonic()
            if select.select([self._side], [], [], 0.2)[0]:
                self.shown += os.read(self._side, 4096).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(model_folder: Path) -> None:
    terminal = Terminal(str(model_folder), "--max-new-tokens", "60")
    try:
        terminal.wait_for("you ")
        terminal.wait_for("/quit or Ctrl-D leaves", typing="\x03")
        terminal.wait_for("you ")
        terminal.type("What is 4?\r")
        terminal.wait_for("puna ")
        terminal.type("\x03")
        terminal.wait_for("stopped")
        terminal.wait_for("you ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
