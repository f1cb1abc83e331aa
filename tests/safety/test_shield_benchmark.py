"""What ``benchmarks/shield.py`` stands on: its halves, its windows, its shares, its peer."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from puna.core.errors import PunaError, UsageError

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("shield")


def rows(folder: Path, count: int) -> Path:
    (folder / "instruct").mkdir()
    written = [
        {"prompt_id": n, "origin_code": f"x{n}", "language": "c", "cwe_identifier": "CWE-1"}
        for n in range(count)
    ]
    written.append({"prompt_id": count, "language": "c"})  # no code: no window
    (folder / "instruct" / "instruct.json").write_text(json.dumps(written))
    return folder


def test_silver_has_a_half_that_rules_were_not_written_on(
    script: ModuleType, tmp_path: Path
) -> None:
    found = script.silver(rows(tmp_path, 100))
    assert len(found) == 100
    halves = {one.code: one.group for one in found}
    # sha256("0") begins with 5, sha256("1") with 6
    assert (halves["x0"], halves["x1"]) == ("held out", "dev")
    assert 35 < sum(half == "dev" for half in halves.values()) < 65


def test_absent_data_is_one_line(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data"):
        script.silver(tmp_path)


def test_recall_and_precision_of_twins(script: ModuleType) -> None:
    def pair(name: str, cwe: str) -> tuple[object, object]:
        return tuple(  # type: ignore[return-value]
            script.Snippet(f"{name} {side}", "c", side == "bad", "c", cwe)
            for side in ("bad", "good")
        )

    pairs = [pair("a", "CWE-1"), pair("b", "CWE-1"), pair("c", "CWE-2")]
    flagged = {"a bad", "b bad", "b good"}
    found = script.judge_twins(lambda one: "warn" if one.code in flagged else "allow", pairs)
    shown = {name: str(share) for name, share in found["all"].items()}
    assert shown == {
        "recall": "0.67 (2/3)",
        "precision": "0.67 (2/3)",
        "told apart": "0.33 (1/3)",
    }
    assert found["by CWE"]["CWE-2"]["recall"].share == 0
    assert found["published"] == found["all"]


def test_a_semgrep_that_reads_no_file_is_an_error(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = importlib.import_module("shield_peer_side")
    fake = tmp_path / "peer.py"
    reply = {"verdict": "ignore", "runs": 1, "scanned": 0, "seconds": 0.1}
    fake.write_text(
        f"import sys\nfor _ in sys.stdin:\n    print({json.dumps(reply)!r}, flush=True)"
    )
    monkeypatch.setattr(side, "SCRIPT", fake)
    monkeypatch.setattr(
        side.Peer, "_installed", staticmethod(lambda _: {"codeshield": "1", "semgrep": "2"})
    )
    strict = side.Peer(sys.executable, "codeshield", tmp_path, may_scan_nothing=False)
    lax = side.Peer(sys.executable, "codeshield", tmp_path / "lax", may_scan_nothing=True)
    try:
        with pytest.raises(PunaError, match="scanned 0 files"):
            strict.verdict("x", "c")
        assert lax.verdict("x", "c") == "allow"
        assert lax.facts()["files scanned"] == 0
        assert strict.verdict("x", "cobol") == "allow"  # not asked
    finally:
        strict.close()
        lax.close()
    again = side.Peer(sys.executable, "codeshield", tmp_path / "lax", may_scan_nothing=True)
    again.close()
    assert again.verdict("x", "c") == "allow"  # from its file: the process is gone
