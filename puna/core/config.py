"""Typed, frozen configuration whose errors name the field, the value and the mend."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from puna.core.errors import UsageError


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], where: str) -> Self:
        """Validate ``mapping``; raises `UsageError` naming ``where``, the key and the mend."""
        try:
            return cls.model_validate(mapping)
        except ValidationError as error:
            raise UsageError(f"{where}: {_first_problem(cls, error)}") from error


def _fields_at(config: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields that the model found at ``location`` accepts."""
    current: Any = config
    for part in location:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue  # a list index, or the tag of a union
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)


def _first_problem(config: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    location = [part for part in problem["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(config, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        mend = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}': {mend}"
    if problem["type"] == "missing":
        return f"the key '{key}' is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict | list) else f" is {problem['input']!r}"
    return f"'{key}'{given}: {message}" if key else message


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises `UsageError` for a missing file or broken YAML."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder: name a YAML file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: name a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UsageError(f"{path}{line}: not valid YAML: {problem}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected 'key: value' lines, found {type(value).__name__}")
    return value


def _unshared(value: Any) -> Any:
    """A deep copy in which what a YAML alias shared is separate: a setting reaches one place."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def apply_overrides(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``mapping`` with ``a.b.c=value`` settings applied; values are read as YAML."""
    settings: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UsageError(f"override '{override}': write it as key=value, e.g. seed=1")
        try:
            settings[path] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"override '{override}': the value is not valid YAML") from error
    return with_settings(mapping, settings)


def with_settings(mapping: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``mapping`` in which the key that a path ``a.b.c`` leads to has its value.

    Raises `UsageError` for a path that leads through a value.
    """
    result: dict[str, Any] = _unshared(mapping)
    for path, value in settings.items():
        *parents, last = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"override '{path}={value}': '{parent}' holds a value, not keys")
        node[last] = value
    return result
