import sys
import zipfile
from pathlib import Path

import pytest

from puna.core import wheels
from puna.core.errors import PunaError
from puna.core.files import sha256_file
from puna.core.wheels import Wheel, WheelUnavailable, fetch, list_members, read_member


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path))
    made = tmp_path / "made.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("thing/data.txt", "hello")
    wheel = Wheel("thing", "1.0", sha256_file(made))
    (tmp_path / "wheels").mkdir()
    made.rename(tmp_path / "wheels" / f"thing-1.0-{wheel.sha256[:16]}.whl")
    return wheel


def test_a_cached_wheel_is_read_without_the_network(
    cached: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert list_members(cached) == ["thing/data.txt"]
    assert read_member(cached, "thing/data.txt") == b"hello"


def test_a_missing_member_is_named(cached: Wheel) -> None:
    with pytest.raises(PunaError, match=r"thing==1\.0 holds no thing/other"):
        read_member(cached, "thing/other")


def test_a_member_beyond_the_bound_is_refused(
    cached: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "MAX_MEMBER_BYTES", 4)
    with pytest.raises(PunaError, match="larger than 4 bytes"):
        read_member(cached, "thing/data.txt")


def test_a_damaged_cached_wheel_is_not_trusted(
    cached: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = fetch(cached)
    kept.write_bytes(kept.read_bytes() + b"x")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(WheelUnavailable, match=r"cannot fetch thing==1\.0"):
        fetch(cached)
