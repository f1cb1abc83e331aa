from pathlib import Path

import pytest

from puna.core.errors import UsageError
from puna.safety.guard import Policy
from puna.safety.guard.policy import RuleFields

WHOLE = """
default: {input: warn, output: block}
hazards:
  S6: warn
  S8: {input: allow, output: warn, threshold: 0.9}
custom:
  - {code: S15, name: Betting Tips, description: What to bet on., action: warn}
injection: {input: block, threshold: 0.8}
secrets: block
personal: {output: redact}
kinds:
  EMAIL: allow
"""


def read(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return Policy.read(path)


def test_a_policy_says_what_is_done_by_hazard_and_direction(tmp_path: Path) -> None:
    policy = read(tmp_path, WHOLE)
    assert policy.rule("S1").on("input") == "warn"
    assert policy.rule("S1").on("output") == "block"
    assert policy.rule("S6") == RuleFields(input="warn", output="warn")
    assert policy.rule("S8").threshold == 0.9
    assert policy.rule("S15").on("output") == "warn"
    assert [hazard.code for hazard in policy.all_hazards()][-2:] == ["S14", "S15"]
    assert policy.removal("AWS_ACCESS_KEY", "secrets").on("input") == "block"
    assert policy.removal("PHONE", "personal").on("input") == "allow"
    assert policy.removal("PHONE", "personal").on("output") == "redact"
    assert policy.removal("EMAIL", "personal").on("output") == "allow"


def test_without_a_file_every_hazard_is_blocked_and_nothing_else_is_looked_for() -> None:
    policy = Policy()
    assert {policy.rule(h.code).on(d) for h in policy.all_hazards() for d in ("input", "output")} \
        == {"block"}  # fmt: skip
    assert policy.removal("EMAIL", "personal").on("output") == "allow"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hazard: {}", "unknown key 'hazard': did you mean 'hazards'"),
        ("hazards: {S16: warn}", "unknown hazard 'S16': did you mean 'S"),
        ("hazards: {privacy: warn}", "unknown hazard 'privacy': did you mean 'S7'"),
        ("hazards: {S1: refuse}", "refuse"),
        ("hazards: {S1: {inptu: warn}}", "inptu"),
        ("secrets: redacted", "redacted"),
        ("custom: [{code: S3, name: a, description: b}]", "Llama Guard's own: take S15"),
        ("custom: [{code: X1, name: a, description: b}]", "code"),
        ("threshold: 2", "threshold"),
        (
            "custom: [{code: S15, name: a, description: b}, {code: S15, name: a, description: b}]",
            "same code",
        ),
    ],
)
def test_a_wrong_policy_is_named_with_its_mend(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path, text)
    assert "policy.yaml" in str(error.value)
