import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.alignment import each_by, load_scorer
from puna.alignment.rejection import expected_best
from puna.alignment.rollouts import Answer, Task
from puna.core.errors import PunaError, UsageError
from puna.evaluation import sandbox
from puna.evaluation.code import (
    UnitTests,
    checks_of,
    explain,
    extract_code,
    pass_at_k,
    program_of,
    share_of_tests,
    unit_tests,
)
from puna.evaluation.sandbox import Limits, Status

DOUBLE = {"tests": "assert double(2) == 4\nassert double(0) == 0\nassert double(-1) == -2"}
HUMAN_EVAL = {
    "task_id": "Test/0",
    "prompt": 'from math import gcd\n\ndef common(a: int, b: int) -> int:\n    """gcd."""\n',
    "canonical_solution": "    return gcd(a, b)\n",
    "entry_point": "common",
    "test": "def check(candidate):\n  assert candidate(4, 6) == 2\n  assert candidate(3, 7) == 1",
}
RIGHT = "Sure.\n```python\ndef double(n):\n    return n + n\n```\nIt adds the number to itself."
HALF_RIGHT = "```python\ndef double(n):\n    return n * n\n```"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("~~~ py3\nx = 1\n~~~", "x = 1\n"),
        ("```PYTHON title=a.py\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),  # cut off
        ("1. First:\n   ```python\n   if x:\n       y()\n   ```\n", "if x:\n    y()\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```sh\npip install x\n```\n```python\nx = 1\n```\n```text\n1\n```", "x = 1\n"),
        ("```text\nonly words\n```", ""),
        ("    return 1\n", "    return 1\n"),
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\ndef f(): pass\n```\nUse it:\n```python\nf()\n```", "def f(): pass\n"),
        ("```py\ndef f(): 1\n```\nNo:\n```py\nasync def f(): 2\n```", "async def f(): 2\n"),
    ],
)
def test_the_code_is_the_last_block_that_defines_what_is_tested(text: str, code: str) -> None:
    assert extract_code(text, "f").rstrip("\n") == code.rstrip("\n")


def test_a_prompt_that_is_code_is_gone_on_with_and_one_in_words_is_not() -> None:
    body = HUMAN_EVAL["canonical_solution"]
    assert program_of(body, HUMAN_EVAL) == HUMAN_EVAL["prompt"] + body
    in_words = {"prompt": "Write a function common for the gcd.", "entry_point": "common"}
    assert program_of("x = 1", in_words) == "x = 1"


def test_right_answers_score_one_and_others_less() -> None:
    texts = [RIGHT, HALF_RIGHT, "I do not know.", "```python\ndef double(n):\n  return 1 +\n```"]
    assert [unit_tests(text, DOUBLE) for text in texts] == [1.0, 0.0, 0.0, 0.0]
    assert [share_of_tests(text, DOUBLE) for text in texts] == [1.0, 2 / 3, 0.0, 0.0]


@pytest.mark.parametrize(
    "text", ["    return gcd(a, b)\n", "```python\nfrom math import *\n{}\n```"]
)
def test_rows_of_human_eval_are_taken_as_they_are(text: str) -> None:
    whole = HUMAN_EVAL["prompt"] + HUMAN_EVAL["canonical_solution"]
    assert unit_tests(text.replace("{}", whole), HUMAN_EVAL) == 1.0
    assert share_of_tests("    return min(a, b)\n", HUMAN_EVAL) == 0.0


def test_rows_of_mbpp_are_taken_as_they_are() -> None:
    row = {
        "prompt": "Write double.",
        "test_list": ["assert double(1) == 2", "assert double(2) > 3"],
    }
    assert unit_tests(RIGHT, row) == 1.0
    assert checks_of(row) == tuple(row["test_list"])


def test_what_is_between_asserts_goes_with_the_next() -> None:
    tests = "import math\nx = 4; assert f(x) == math.sqrt(x)\nfor n in range(3):\n    assert f(n)\n"
    assert checks_of({"tests": tests}) == (
        "import math\nx = 4\nassert f(x) == math.sqrt(x)",
        "for n in range(3):\n    assert f(n)",
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"answer": "4"}, "this one has answer"),
        ({"tests": ""}, "needs a row with Python"),
        ({"tests": [1]}, "needs a row with Python"),
        ({"tests": "assert double("}, "no Python"),
        ({"tests": ["assert double("]}, "no Python"),
        ({"test": "def check(candidate): pass"}, "entry_point"),
    ],
)
def test_a_row_that_cannot_be_tested_is_a_clear_error(record: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        unit_tests(RIGHT, record)


CHEATS = {
    "leaves": "import sys\ndef double(n): sys.exit(0)",
    "leaves at once": "import os; os._exit(0)",
    "raises what tests catch": "raise SystemExit(0)",
    "never ends": "while True: pass",
    "takes all memory": "x = [0] * 10**12",
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
def test_cheap_tricks_score_nothing(code: str) -> None:
    scorer = UnitTests(share=True, limits=Limits(seconds=0.5))
    assert scorer(code, DOUBLE | {"tests": "assert double(2) == 4"}) == 0.0


def test_demonstrations_below_main_are_not_run() -> None:
    text = f"{RIGHT[: RIGHT.rindex('```')]}if __name__ == '__main__':\n    double(input())\n```"
    assert unit_tests(text, DOUBLE) == 1.0


@pytest.mark.clock
def test_a_reward_is_found_by_name_and_scores_side_by_side() -> None:
    scorer = load_scorer("puna.evaluation.code:unit_tests")
    task, waits = Task([1], DOUBLE), "import time; time.sleep(0.5)\ndef double(n): return 2 * n"
    answers = [Answer(task, [2], text, True) for text in (RIGHT, HALF_RIGHT, waits)]
    assert scorer(answers) == [1.0, 0.0, 1.0]
    many, start = each_by(UnitTests(workers=8)), time.perf_counter()
    assert many([answers[2]] * 8) == [1.0] * 8
    assert time.perf_counter() - start < 8 * 0.5  # what they would sleep one after another


def test_code_is_not_scored_where_it_cannot_be_locked_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "somewhere")
    with pytest.raises(PunaError, match=f"only on Linux.*{sandbox.UNCONFINED}=1"):
        unit_tests(RIGHT, DOUBLE)


def test_a_score_can_be_explained() -> None:
    result = explain(HALF_RIGHT.replace("return", "print(n); return"), DOUBLE)
    assert (result.status, result.checks) == (Status.FAILED, (True, True, False))
    assert result.stdout == "2\n0\n-1\n"
    assert "assert double(-1) == -2" in result.stderr


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_pass_at_k_is_the_best_of_k_scores_of_one_and_zero(
    counts: tuple[int, int], data: st.DataObject
) -> None:
    n, passed = counts
    k = data.draw(st.integers(1, n))
    by_order = expected_best([1.0] * passed + [0.0] * (n - passed), k)
    assert pass_at_k(n, passed, k) == pytest.approx(by_order, abs=1e-12)
    assert pass_at_k(n, passed, 1) == pytest.approx(passed / n, abs=1e-12)


def test_pass_at_k_of_too_few_answers_is_an_error() -> None:
    with pytest.raises(UsageError, match="there are 3"):
        pass_at_k(3, 1, 5)
