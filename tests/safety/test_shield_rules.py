"""Every rule of the shield finds its bad examples and leaves its good ones alone."""

import pytest

from puna.safety.shield import languages, scan
from puna.safety.shield.rules import Rule, with_examples

OWN = [
    (language, rule)
    for language in languages()
    for rule in with_examples(language)
    if rule.id.startswith(f"{language}-")
]


def _name(case: tuple[str, Rule]) -> str:
    return f"{case[0]}:{case[1].id}"


@pytest.mark.parametrize("case", OWN, ids=_name)
def test_a_rule_finds_its_bad_examples_and_leaves_its_good_ones_alone(
    case: tuple[str, Rule],
) -> None:
    language, rule = case
    for code in rule.bad:
        assert rule.id in {found.rule for found in scan(code, language).findings}, code
    for code in rule.good:
        assert rule.id not in {found.rule for found in scan(code, language).findings}, code


@pytest.mark.parametrize("language", languages())
def test_rules_have_a_name_of_their_own_and_say_what_to_do(language: str) -> None:
    rules = with_examples(language)
    assert len({rule.id for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.bad, f"{rule.id} has no bad example"
        assert rule.good, f"{rule.id} has no good example"
        assert len(rule.message) > 15, rule.id
        assert len(rule.fix) > 10, rule.id
        assert not rule.message.endswith("."), rule.id
