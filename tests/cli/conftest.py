"""The command line in this process, and a tiny model for it."""

import io
import sys
from pathlib import Path

import pytest
from cli_calls import Done, Puna

from puna.cli.main import main
from puna.data.generators import generate_chats
from puna.formats import save_model
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer


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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of 34,720 random weights with a context of 96."""
    texts = [m.content for chat in generate_chats(0, 50, ()) for m in chat.messages]
    tokenizer = Tokenizer.train(texts, 300, n_special=16)
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    config = fields | {"vocab_size": tokenizer.vocab_size, "context": 96}
    model = Llama(LlamaConfig.parse(config, where="test"))
    model.init_weights(seed=2)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, model, tokenizer)
    return folder
