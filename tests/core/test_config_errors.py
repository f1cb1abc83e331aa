from pathlib import Path

import pytest
from pydantic import Field

from puna.core.config import Config, apply_overrides, load_yaml
from puna.core.errors import UsageError


class Inner(Config):
    steps: int = Field(default=1, ge=1)


class Outer(Config):
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "a", "iner": {}}, "unknown key 'iner': did you mean 'inner'?"),
        ({"name": "a", "inner": {"step": 2}}, "unknown key 'inner.step': did you mean 'steps'?"),
        ({"name": "a", "maybe": {"stesp": 2}}, "unknown key 'maybe.stesp': did you mean 'steps'?"),
        ({"name": "a", "zzz": 1}, "unknown key 'zzz': known keys: name, inner, maybe"),
        ({}, "the key 'name' is missing: add it"),
        ({"name": "a", "inner": {"steps": "many"}}, "'inner.steps' is 'many'"),
        ({"name": "a", "inner": {"steps": 0}}, "'inner.steps' is 0"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_mend(
    mapping: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        Outer.parse(mapping, where="my.yaml")
    assert str(error.value).startswith("my.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_reach_into_a_copy() -> None:
    mapping = {"a": {"b": 1}, "c": [1]}
    changed = apply_overrides(mapping, ["a.b=2.5", "a.new.deep=[x, y]", "c=text"])
    assert changed == {"a": {"b": 2.5, "new": {"deep": ["x", "y"]}}, "c": "text"}
    assert mapping == {"a": {"b": 1}, "c": [1]}


def test_an_override_reaches_one_place_of_what_an_alias_shares(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &shared {steps: 1}\nb: *shared\n")
    assert apply_overrides(load_yaml(path), ["a.steps=2"]) == {"a": {"steps": 2}, "b": {"steps": 1}}


@pytest.mark.parametrize("override", ["novalue", "=3", "a.b.c=1", "a=[1"])
def test_a_broken_override_is_named(override: str) -> None:
    with pytest.raises(UsageError, match="override"):
        apply_overrides({"a": {"b": 1}}, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\nb: 2", "line 2: not valid YAML"),
        (b"- 1\n- 2\n", "expected 'key: value' lines, found list"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe\.yaml") as error:
        load_yaml(path)
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file: .*none\.yaml"):
        load_yaml(tmp_path / "none.yaml")
