"""The house itself: what every file and every setting must be."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import puna
from puna.core.config import Config

ROOT = Path(puna.__file__).parent
SOURCES = {path: path.read_text() for path in sorted(ROOT.rglob("*.py"))}
MAX_LINES = 500


def all_configs() -> list[type[Config]]:
    for module in pkgutil.walk_packages([str(ROOT)], "puna."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = [], [Config]
    while waiting:
        classes = waiting.pop().__subclasses__()
        found += classes
        waiting += classes
    return [config for config in found if config.__module__.startswith("puna.")]


def test_every_field_of_every_config_is_read_somewhere() -> None:
    text = "\n".join(SOURCES.values())
    configs = all_configs()
    assert len(configs) > 10
    unread = [
        f"{config.__name__}.{field}"
        for config in configs
        for field in config.model_fields
        if not re.search(rf"\.{field}\b|\"{field}\"", text)
    ]
    assert unread == []


def test_every_field_of_every_config_has_its_line_of_documentation() -> None:
    silent = []
    for config in all_configs():
        source = SOURCES[Path(importlib.import_module(config.__module__).__file__ or "")]
        body = source[source.index(f"class {config.__name__}(") :]
        for field in config.model_fields.keys() & inspect.get_annotations(config).keys():
            declared = re.search(rf"^    {field}: .*?\n    (\"\"\"|\w|@|$)", body, re.M | re.S)
            if not declared or declared.group(1) != '"""':
                silent.append(f"{config.__name__}.{field}")
    assert [name for name in silent if not name.startswith("Stages.")] == []


def test_no_file_is_longer_than_one_story() -> None:
    long = {path.name for path, text in SOURCES.items() if text.count("\n") > MAX_LINES}
    assert long == set()


def test_every_module_says_what_it_is() -> None:
    silent = [path for path, text in SOURCES.items() if not text.startswith('"""')]
    assert silent == []


def test_a_base_import_brings_no_extra() -> None:
    extras = ("wandb", "tensorboard", "transformers", "pyarrow", "reasoning_gym")
    for path, text in SOURCES.items():
        for extra in extras:
            assert not re.search(rf"^(from|import) {extra}\b", text, re.M), path
