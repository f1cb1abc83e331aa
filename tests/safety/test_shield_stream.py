"""An answer on its way through the shield: nothing insecure leaves, nothing harmless changes."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.safety.shield import Policy, ShieldStream, scan_markdown
from puna.safety.shield import engine as engine_module
from puna.safety.shield.incremental import GrowingCode
from puna.safety.shield.parsing import ScanTimeout

BLOCK = Policy(mode="block")

HARMLESS = [
    "Call `os.system(name)` never, and mind `gets(b)`: it is unsafe.\n",
    '```python\nimport subprocess\n\ndef run(name):\n    subprocess.run(["ls", name])\n```\n',
    "```c\nint main(void) {\n    char b[8];\n    fgets(b, sizeof b, stdin);\n}\n```\n",
    '```\ncursor.execute("SELECT a FROM t WHERE b = %s", (b,))\nprint("done")\n```\n',
    '```python\ntable = {\n    "a": [\n        1,\n    ],\n}\ntext = """\nos.system(x)\n"""\n```\n',
    "```json\n{\"a\": [1, 2\n```\n",
    "Übrigens: naïve façade 🦙, with\r\nodd line ends and a tab\there.\n",
    "```python\nfor n in range(3):\n    print(n)\n```\nand `eval(x)` in prose.\n",
]  # fmt: skip
PLANTED = [
    ("python", 'os.system("rm " + name)'),
    ("python", 'subprocess.run(\n    f"ls {name}",\n    shell=True,\n)'),
    ("python", "value = eval(\n    text\n)"),
    ("python", "cursor.execute(\n    \"SELECT a FROM t WHERE b = '%s'\"\n    % name\n)"),
    ("c", "gets(line);"),
    ("c", "strcpy(\n    target,\n    source\n);"),
    ("cpp", "system(command.c_str());"),
]


def streamed(text: str, cuts: list[int], policy: Policy = BLOCK) -> tuple[str, ShieldStream]:
    stream = ShieldStream(policy)
    places = [0, *sorted(cuts), len(text)]
    out = "".join(stream.push(text[a:b]) for a, b in pairwise(places))
    return out + stream.flush(), stream


def some_cuts(rng: random.Random, length: int) -> list[int]:
    n = rng.choice([0, 1, 5, length // 7, length])
    return [rng.randrange(length + 1) for _ in range(n)]


@given(
    parts=st.lists(st.sampled_from(HARMLESS), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_harmless_answers_arrive_byte_for_byte(parts: list[str], seed: int) -> None:
    text = "".join(parts)
    out, stream = streamed(text, some_cuts(random.Random(seed), len(text)))
    assert stream.verdict.decision == "allow"
    assert out == text


@given(
    before=st.sampled_from(HARMLESS),
    planted=st.sampled_from(PLANTED),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_no_part_of_a_planted_call_is_released(
    before: str, planted: tuple[str, str], seed: int
) -> None:
    language, call = planted
    text = f"{before}Here:\n```{language}\n{call}\n```\nThat is all.\n"
    out, stream = streamed(text, some_cuts(random.Random(seed), len(text)))
    assert stream.verdict.decision == "block"
    assert text.startswith(out)
    assert len(out) <= text.index(call)
    assert stream.push("more") == ""


@given(text=st.text(max_size=400), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_text_passes_unchanged_or_is_cut_short(text: str, seed: int) -> None:
    out, stream = streamed(text, some_cuts(random.Random(seed), len(text)))
    assert text.startswith(out)
    assert out == text or stream.verdict.decision == "block"


@pytest.mark.parametrize(("language", "call"), PLANTED)
def test_a_stream_finds_what_a_scan_finds(language: str, call: str) -> None:
    text = f"Look:\n\n```{language}\n{call}\n```\n"
    found = {(one.rule, one.line) for one in scan_markdown(text).findings}
    assert found
    _, stream = streamed(text, list(range(len(text))), Policy(mode="warn"))
    assert {(one.rule, one.line) for one in stream.findings} == found


def test_under_the_warn_policy_everything_is_released_at_once_and_told() -> None:
    text = "```python\nos.system(name)\n```\n"
    stream = ShieldStream(Policy(mode="warn"))
    assert stream.push(text) == text
    assert stream.flush() == ""
    assert stream.verdict.decision == "warn"
    assert "CWE-78, line 2" in stream.verdict.reason


def test_prose_is_released_letter_by_letter() -> None:
    stream = ShieldStream(BLOCK)
    assert "".join(stream.push(letter) for letter in "Well, this is how it") != ""


def test_what_was_known_before_counts_for_a_later_line() -> None:
    harmless = '```python\ncommand = "ls"\nos.system(command)\n```\n'
    harmful = '```python\ncommand = "ls " + name\nos.system(command)\n```\n'
    assert streamed(harmless, [])[0] == harmless
    out, stream = streamed(harmful, [])
    assert "os.system" not in out
    assert stream.verdict.decision == "block"


def test_code_of_a_named_language_needs_no_fence() -> None:
    stream = ShieldStream(BLOCK, "python")
    assert stream.push("x = 1\n") == "x = 1\n"
    assert stream.push("os.system(x + y)\n") == ""
    assert stream.verdict.decision == "block"


@pytest.mark.parametrize("mode", ["warn", "block"])
@pytest.mark.parametrize("fault", [ScanTimeout(), ValueError("broken")])
def test_a_scanner_that_fails_does_not_let_code_through(
    mode: str, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: GrowingCode) -> None:
        raise fault

    monkeypatch.setattr(GrowingCode, "scan", fail)
    text = "Text.\n```python\nx = 1\n```\n"
    out, stream = streamed(text, [], Policy(mode="block", on_error=mode))
    assert stream.verdict.decision == mode
    assert out == ("Text.\n```python\n" if mode == "block" else text)


@pytest.mark.parametrize(
    "text",
    ["".join(random.Random(0).choices("(){}[];,=+<>ab \n", k=20_000)), "x = 1;\n", "/*" * 2000],
)
def test_a_scan_that_takes_too_long_is_a_fault_and_the_next_line_is_read_again(text: str) -> None:
    code = GrowingCode(engine_module.engine("typescript"), deadline_s=0.0)
    code.feed(text)
    with pytest.raises(ScanTimeout):
        code.scan()
    later = GrowingCode(engine_module.engine("python"), deadline_s=1.0)
    later.feed("x = 1\n")
    later._seconds = 0.0
    with pytest.raises(ScanTimeout):
        later.scan()
    later._seconds = 1.0
    later.feed("os.system(a)\n")
    assert [hit.rule.cwe for hit in later.scan()] == [78]


@pytest.mark.parametrize("mode", ["warn", "block"])
def test_a_statement_without_end_is_judged_by_the_policy(mode: str) -> None:
    text = "```python\nx = (\n" + "    1 +\n" * 30 + "```\n"
    policy = Policy(mode="block", on_unparsable=mode, held_lines=10)
    out, stream = streamed(text, [], policy)
    assert stream.verdict.decision == mode
    assert (out == text) == (mode == "warn")


def test_nothing_is_held_for_ever() -> None:
    text = "```python\nx = [\n" + "    1,\n" * 500
    stream = ShieldStream(BLOCK)
    assert len(stream.push(text)) > len(text) // 2


@pytest.mark.parametrize("mode", ["warn", "block"])
def test_a_line_too_long_to_be_judged_in_time_is_a_fault(mode: str) -> None:
    text = "```python\nx = 1\ny = (" + "1 + " * 10_000 + "1)\nz = 2\n```\n"
    out, stream = streamed(text, [5, 9000, 12000], Policy(mode="block", on_error=mode))
    assert stream.verdict.decision == mode
    assert out == (text if mode == "warn" else "```python\nx = 1\n")


def test_code_of_no_known_language_is_read_in_many() -> None:
    text = "See:\n```\ngets(b);\n```\n"
    out, stream = streamed(text, [])
    assert (out, stream.verdict.decision) == ("See:\n```\n", "block")
    assert [one.line for one in scan_markdown(text).findings] == [3]
    listing = "```\ntotal 12\n-rw-r--r-- 1 a users 10 gets\n```\n"
    assert streamed(listing, [])[0] == listing


def test_what_goes_on_over_lines_is_told_once() -> None:
    text = (
        "```javascript\nel.innerHTML = list.map((a) => {\n  f(a);\n  g(a);\n  return a;\n});\n```\n"
    )
    _, stream = streamed(text, list(range(len(text))), Policy(mode="warn"))
    places = [(one.rule, one.line, one.column) for one in stream.findings]
    assert len(places) == len(set(places)) > 0
