"""What the options of the cache ask the engine for, in each command that has one."""

from pathlib import Path
from typing import Any

import pytest
from cli_calls import Puna, assert_one_line

import puna.inference
from puna.core.errors import UsageError
from puna.inference import EngineConfig

COMMANDS: dict[str, tuple[object, ...]] = {
    "chat": (),
    "generate": ("--prompt", "It"),
    "serve": ("--port", 0),
    "bench": (),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """The configurations that commands ask for; no engine is made."""
    found: list[EngineConfig] = []

    def load_engine(name: str, config: EngineConfig, **_: Any) -> None:
        found.append(config)
        raise UsageError(f"{name}: enough")

    monkeypatch.setattr(puna.inference, "load_engine", load_engine)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_the_cache_reach_the_engine(
    puna: Puna, model_folder: Path, asked: list[EngineConfig], command: str
) -> None:
    call = (command, model_folder, *COMMANDS[command])
    has_prefixes = command != "bench"  # there no prompt comes twice
    off = ("--no-prefix-cache",) if has_prefixes else ()
    assert_one_line(puna(*call), 2, "enough")
    assert_one_line(puna(*call, "--cache-weights", "int8", *off), 2, "enough")
    assert [(c.cache_weights, c.prefix_cache) for c in asked] == [
        ("auto", has_prefixes),
        ("int8", False),
    ]


def test_a_batch_is_gone_on_with_by_the_same_cache(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "It is"}\n')
    call = ("generate", model_folder, "--batch", source, "--out", out, "--max-new-tokens", 3)
    assert puna(*call).returncode == 0
    assert_one_line(puna(*call, "--cache-weights", "int8"), 2, "cache_weights", "same settings")
    assert puna(*call, "--no-prefix-cache").returncode == 0  # which changes no text
