"""``puna shield --rules``: what is looked for, as a table."""

import json
from pathlib import Path

from typer.testing import CliRunner

from puna.cli.main import app
from puna.safety.shield import languages
from puna.safety.shield.catalogue import catalogue

runner = CliRunner()


def test_every_language_has_rules_and_each_rule_stands_once() -> None:
    rows = catalogue()
    assert {name for row in rows for name in row["languages"]} == set(languages())
    assert len({row["rule"] for row in rows}) == len(rows)
    assert all(row["message"] and row["fix"] for row in rows)


def test_rules_of_one_language_hold_what_it_takes_from_others() -> None:
    rows = {row["rule"] for row in catalogue("tsx")}
    assert {"javascript-xss", "common-private-key"} <= rows
    assert not any(name.startswith("java-") for name in rows)


def test_the_command_prints_the_table_as_text_and_as_json() -> None:
    text = runner.invoke(app, ["shield", "--rules", "--language", "rs"])
    assert text.exit_code == 0
    rows = [line.split()[:3] for line in text.stdout.splitlines()]
    assert ["rust-unsafe", "CWE-676", "medium"] in rows
    as_json = runner.invoke(app, ["shield", "--rules", "--json"])
    assert json.loads(as_json.stdout)["rules"] == catalogue()


def test_the_scripts_of_a_page_are_scanned_with_its_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>eval(x) in words</p>\n<script>\nvar x = eval(location.hash);\n</script>\n")
    done = runner.invoke(app, ["shield", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{page}:3:" in done.stdout
    assert "page.html:1:" not in done.stdout
