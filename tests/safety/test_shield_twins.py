"""The pairs of the shield's benchmark: enough of them, of one shape, code that parses; and what the
shield makes of them."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tree_sitter import Node, Parser

from puna.safety.shield.grammars import load
from puna.safety.shield.scanner import known_language

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PUBLISHED = dict.fromkeys(("c", "cpp", "csharp", "java", "javascript", "php", "python", "rust"), 20)
AT_LEAST = {
    **PUBLISHED,
    **dict.fromkeys(("typescript", "go", "kotlin", "swift", "ruby", "bash"), 8),
    **dict.fromkeys(("dockerfile", "yaml", "terraform", "sql", "xml"), 3),
}
SETS = {folder.name: sorted(folder.glob("*.yaml")) for folder in BENCHMARKS.glob("twins*")}
FILES = [path for name in sorted(SETS) for path in SETS[name]]


def pairs_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text())
    return found


def test_every_language_has_its_pairs() -> None:
    for name, files in SETS.items():
        wanted = AT_LEAST if name == "twins" else PUBLISHED
        counts = {path.stem: len(pairs_of(path)) for path in files}
        assert counts.keys() == wanted.keys()
        assert [stem for stem, least in wanted.items() if counts[stem] < least] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_pair_is_one_task_done_twice(path: Path) -> None:
    for pair in pairs_of(path):
        assert pair.keys() - {"language"} == {"cwe", "weakness", "insecure", "secure"}
        assert pair["cwe"].startswith("CWE-")
        assert pair["weakness"].endswith(".")
        sides = [pair[side].splitlines() for side in ("insecure", "secure")]
        assert all(3 < len(side) <= 30 for side in sides), pair["weakness"]
        assert sides[0] != sides[1]
        shared = sum((Counter(sides[0]) & Counter(sides[1])).values())
        # What differs is the weakness: of the shorter side much stands in the other, too. In later
        # sets code of ten lines may change in all but its imports and signature.
        least = 0.25 if path.parent.name == "twins" else 0.15
        assert shared >= least * min(map(len, sides)), pair["weakness"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_both_sides_of_a_pair_parse(path: Path) -> None:
    for pair in pairs_of(path):
        language = known_language(pair.get("language", path.stem))
        for side in ("insecure", "secure"):
            tree = Parser(load(language)).parse(pair[side].encode())
            assert broken(tree.root_node) == [], (pair["weakness"], side)


def broken(node: Node) -> list[str]:
    if not node.has_error:
        return []
    if node.type == "ERROR" or node.is_missing:
        return [f"line {node.start_point.row + 1}"]
    return [found for child in node.children for found in broken(child)] or [node.type]


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_shield_tells_insecure_from_secure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("shield")
    found = script.judge_twins(script.ours, script.twins(BENCHMARKS / name))
    for kind in ("published", "all"):
        assert found[kind]["recall"].share >= 0.85
        assert found[kind]["precision"].share >= 0.97
