"""``puna shield`` as a person, a hook and a code host use it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from puna.cli.main import app
from puna.core.errors import UsageError

runner = CliRunner()
BAD = "import os\nos.system('ls ' + name)\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "good.py").write_text("print('hello')\n")
    (tmp_path / "notes.md").write_text("Use `eval(x)` never.\n\n```python\nx = eval(y)\n```\n")
    (tmp_path / "picture.c").write_bytes(b"\x00\x01gets(b);")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hook.py").write_text(BAD)
    return tmp_path


def test_findings_are_lines_with_a_place_a_weakness_and_a_mend(folder: Path) -> None:
    done = runner.invoke(app, ["shield", str(folder / "bad.py")])
    assert done.exit_code == 1
    assert f"{folder / 'bad.py'}:2:1: high: " in done.stdout
    assert "CWE-78" in done.stdout
    assert "instead: " in done.stdout


def test_clean_files_are_silent_and_end_with_zero(folder: Path) -> None:
    done = runner.invoke(app, ["shield", str(folder / "good.py")])
    assert (done.exit_code, done.stdout) == (0, "")


def test_a_folder_is_searched_for_code_and_markdown(folder: Path) -> None:
    done = runner.invoke(app, ["shield", "--json", str(folder)])
    report = json.loads(done.stdout)
    found = {Path(file["path"]).name: file["verdict"] for file in report["files"]}
    assert found == {"bad.py": "block", "good.py": "allow", "notes.md": "block"}
    assert report["verdict"] == "block"
    assert report["findings"] == 2
    (skipped,) = report["skipped"]
    assert skipped["reason"] == "a binary file"
    (inside,) = [file for file in report["files"] if file["path"].endswith("notes.md")]
    assert inside["findings"][0]["line"] == 4
    assert inside["findings"][0]["cwe"] == "CWE-94"


def test_sarif_has_what_code_hosts_read(folder: Path) -> None:
    done = runner.invoke(app, ["shield", "--format", "sarif", str(folder / "bad.py")])
    assert done.exit_code == 1
    log = json.loads(done.stdout)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    (result,) = run["results"]
    rule = driver["rules"][result["ruleIndex"]]
    assert rule["id"] == result["ruleId"]
    assert "external/cwe/cwe-78" in rule["properties"]["tags"]
    assert result["level"] == "error"
    place = result["locations"][0]["physicalLocation"]
    assert place["region"]["startLine"] == 2
    assert place["artifactLocation"]["uri"].endswith("bad.py")
    assert result["message"]["text"]


def test_standard_input_is_markdown_or_a_named_language() -> None:
    answer = f"Look:\n```python\n{BAD}```\n"
    assert runner.invoke(app, ["shield", "-"], input=answer).exit_code == 1
    assert runner.invoke(app, ["shield", "-"], input="Never call os.system(x).\n").exit_code == 0
    named = runner.invoke(app, ["shield", "--language", "python", "-"], input=BAD)
    assert named.exit_code == 1
    assert "<stdin>:2:1" in named.stdout


def test_columns_count_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("ä = 'ö'; os.system(x)\n", encoding="utf-8")
    done = runner.invoke(app, ["shield", "--json", str(path)])
    (found,) = json.loads(done.stdout)["files"][0]["findings"]
    assert (found["column"], found["end_column"]) == (10, 22)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "no such file"),
        (["-", "a.py"], "goes alone"),
        (["--language", "klingon", "-"], "no language"),
        (["--json", "--format", "sarif", "-"], "exclude each other"),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments: list[str], message: str) -> None:
    done = runner.invoke(app, ["shield", *arguments], input="")
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
