"""Answers that are programs: the code in them is run in the sandbox against the tests of their row.

As a reward in a recipe: ``puna.evaluation.code:unit_tests`` or ``:share_of_tests``.
"""

import ast
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt

from puna.core.errors import PunaError, UsageError
from puna.evaluation.sandbox import Limits, Result, Status, refusal, run_python

_TEST_FIELDS = ("tests", "test", "test_list")  # ours, HumanEval's, MBPP's
_MOST_WORKERS = 16  # where there are more processors, a container often may not use them all
_PYTHON_TAGS = ("python", "python3", "py", "py3")


@dataclass(frozen=True)
class UnitTests:
    """A scoring function: 1 for code that passes the tests of its row, else 0.

    The row has ``tests``: Python with asserts, a list of such texts, or a function
    ``check(candidate)`` beside the name of the candidate, ``entry_point``. Where its ``prompt`` is
    code that defines ``entry_point``, the answer goes on from there. So rows of HumanEval and MBPP
    are taken as they are.
    """

    share: bool = False
    """Score the share of tests passed instead, a test being one assert, one text of a list, or all
    of ``check``."""
    limits: Limits = field(default_factory=Limits)
    """For each answer, all of its tests together."""
    workers: int = min(os.cpu_count() or 1, _MOST_WORKERS)
    """Answers tested at once in `score_all`."""

    def __call__(self, text: str, record: Mapping[str, Any]) -> float:
        """The score of one answer.

        Raises `UsageError` for a row without tests that are Python, `PunaError` where the machine
        cannot lock the code in.
        """
        result = explain(text, record, self.limits)
        if result.status == Status.REFUSED:
            raise PunaError(refusal(result))
        passed = sum(result.checks) / len(checks_of(record))
        return passed if self.share else float(passed == 1)

    def score_all(self, texts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[float]:
        """Scores of many answers, ``workers`` at a time."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self, texts, records))


unit_tests = UnitTests()
"""1 where all tests pass, else 0."""
share_of_tests = UnitTests(share=True)
"""The share of tests passed."""


def explain(text: str, record: Mapping[str, Any], limits: Limits | None = None) -> Result:
    """What became of the answer's tests, with output and tracebacks, for looking at a score."""
    return run_python(
        program_of(text, record), checks_of(record), limits or Limits(), name="answer"
    )


def extract_code(text: str, entry_point: str = "") -> str:
    """The Python in an answer: a fenced block in Markdown, or the whole text where there is none.

    Of several blocks the last one counts that defines ``entry_point``, else the last one: models
    correct themselves further down. Blocks without a tag count where none is tagged as Python.
    """
    fences = [token for token in MarkdownIt("commonmark").parse(text) if token.type == "fence"]
    tags = [(token.info.lower().split() or [""])[0] for token in fences]
    blocks = [fence.content for fence, tag in zip(fences, tags, strict=True) if tag in _PYTHON_TAGS]
    blocks = blocks or [f.content for f, tag in zip(fences, tags, strict=True) if not tag]
    if not blocks:
        return "" if fences else text
    return next((b for b in reversed(blocks) if _defines(b, entry_point)), blocks[-1])


def program_of(text: str, record: Mapping[str, Any]) -> str:
    """The program to test: the code of an answer, after that of its prompt where there is some."""
    entry_point = str(record.get("entry_point", ""))
    code = extract_code(text, entry_point)
    prompt = record.get("prompt")
    if isinstance(prompt, str) and _defines(prompt, entry_point):
        return f"{prompt}{code}" if prompt.endswith("\n") else f"{prompt}\n{code}"
    return code


def checks_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The tests of a row, one text each. Raises `UsageError` where there are none."""
    tests = next((record[name] for name in _TEST_FIELDS if record.get(name)), None)
    if isinstance(tests, str):
        return _split(tests, str(record.get("entry_point", "")))
    if isinstance(tests, Sequence) and all(isinstance(test, str) for test in tests):
        for test in tests:
            _parse(test)
        return tuple(tests)
    raise UsageError(
        'unit_tests needs a row with Python in "tests": a text with asserts, a list of such texts, '
        f'or check(candidate) beside "entry_point"; this one has {", ".join(record) or "nothing"}'
    )


def pass_at_k(n: int, n_passed: int, k: int) -> float:
    """The chance that of ``k`` answers at least one passes, by ``n`` answers of which ``n_passed``
    did, without bias (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1).
    """
    if not 1 <= k <= n:
        raise UsageError(f"pass@{k} takes at least {k} answers and k from 1: there are {n}")
    return 1 - math.comb(n - n_passed, k) / math.comb(n, k)


def _split(tests: str, entry_point: str) -> tuple[str, ...]:
    """A text of tests, cut after each assert that stands by itself; what is between goes along."""
    body = _parse(tests).body
    if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in body):
        if not entry_point:
            raise UsageError('a row with check(candidate) needs the name in "entry_point"')
        return (f"{tests}\n\ncheck({entry_point})\n",)
    parts: list[list[ast.stmt]] = [[]]
    for node in body:
        parts[-1].append(node)
        if isinstance(node, ast.Assert):
            parts.append([])
    return tuple(ast.unparse(ast.Module(part, [])) for part in parts if part)


def _parse(tests: str) -> ast.Module:
    try:
        return ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the tests of a row are no Python ({error}): {tests[:60]!r}") from error


def _defines(code: str, name: str) -> bool:
    """Whether a function or class of this name begins somewhere; the code may be a fragment."""
    return bool(name) and bool(
        re.search(rf"^\s*(?:async\s+def|def|class)\s+{re.escape(name)}\b", code, re.M)
    )
