import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.safety.guard.sensitive import MAX_HELD, Finder, Found, Redactor, Removal, cleaned

pytest.importorskip("datafog")
FINDER = Finder()
AWS = "AKIA" + "QWERTYUIOPASDFGH"
GITHUB = "ghp_" + "a1B2" * 9
KEY = "\n".join(
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        *(["MIIEpAIBAAKCAQEA" * 4] * 12),
        "-----END RSA PRIVATE KEY-----",
    ]
)
PLANTED = {
    "jane.doe@example.com": "EMAIL",
    "(555) 123-4567": "PHONE",
    "4111 1111 1111 1111": "CREDIT_CARD",
    "123-45-6789": "SSN",
    AWS: "AWS_ACCESS_KEY",
    GITHUB: "GITHUB_TOKEN",
    KEY: "PRIVATE_KEY",
}
HARMLESS = [
    "The llama grazes on the high grassland, 4,000 metres above the sea.",
    "for i in range(10):\n    total += prices[i] * 1.19  # tax",
    "Version 2.11.3 of 2024-05-01 has 1,284 lines; see chapter 3.2.",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
]


def redact(_: Found) -> Removal:
    return "redact"


def streamed(text: str, cuts: list[int], redactor: Redactor) -> str:
    """What comes out of ``text`` cut at these places."""
    places = sorted({min(cut, len(text)) for cut in cuts})
    out = ""
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        out += redactor.push(text[start:end])
        if redactor.verdict.decision == "block":
            return out
    return out + redactor.flush()


@pytest.mark.parametrize(("secret", "kind"), PLANTED.items())
def test_each_kind_is_found_and_leaves_its_name(secret: str, kind: str) -> None:
    text, verdict = cleaned(FINDER, f"Note this: {secret}\nand go on.", redact)
    assert text == f"Note this: [{kind}]\nand go on." or (kind, text) == (
        "PRIVATE_KEY",
        "[PRIVATE_KEY]\nand go on.",
    )
    assert verdict.decision == "warn"


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_passes_unchanged(text: str) -> None:
    assert cleaned(FINDER, text, redact)[0] == text
    assert FINDER.find(text) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([*HARMLESS, *PLANTED]), min_size=1, max_size=12),
    st.lists(st.integers(0, 2500), max_size=40),
)
def test_no_secret_leaves_however_the_text_is_cut(parts: list[str], cuts: list[int]) -> None:
    text = "\n".join(parts)
    out = streamed(text, cuts, Redactor(FINDER, redact))
    for part in parts:
        assert (part in out) == (part in HARMLESS)
    assert "MIIEpAIBAAKCAQEA" not in out
    if all(part in HARMLESS for part in parts):
        assert out == text


@given(st.lists(st.integers(0, 400), max_size=20))
@settings(deadline=None, max_examples=30)
def test_a_block_ends_the_text_before_the_secret(cuts: list[int]) -> None:
    before = "Once upon a time there was a server. Its key was "
    redactor = Redactor(FINDER, lambda _: "block")
    out = streamed(f"{before}{AWS} and that was all. " * 3, cuts, redactor)
    assert before.startswith(out.rstrip()) or out == before
    assert redactor.verdict.decision == "block"
    assert "AWS_ACCESS_KEY" in redactor.verdict.reason


def test_a_warning_lets_the_text_pass() -> None:
    text = "Write to jane.doe@example.com"
    redactor = Redactor(FINDER, lambda _: "warn")
    assert streamed(text, [7, 20], redactor) == text
    assert redactor.verdict.decision == "warn"


def test_what_is_held_is_bounded() -> None:
    redactor = Redactor(FINDER, redact)
    out = "".join(redactor.push("x" * 512) for _ in range(2 * MAX_HELD // 512))
    assert len(out) >= MAX_HELD
    assert out + redactor.flush() == "x" * 2 * MAX_HELD


def test_two_finds_never_overlap() -> None:
    text = f"https://user:{GITHUB}@example.com/ jane@example.com"
    found = FINDER.find(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert not re.search(GITHUB, cleaned(FINDER, text, redact)[0])
