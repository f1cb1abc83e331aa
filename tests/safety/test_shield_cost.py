"""No rule takes long, whatever a model writes: expressions are tried on texts made to be slow."""

import time

import pytest

from puna.safety.shield import languages
from puna.safety.shield.rules import patterns_of
from puna.safety.shield.values import LOOK_BACK

MOST_S = 0.15  # of processor time; four times the slowest seen, as machines differ


@pytest.mark.parametrize("language", languages())
def test_no_expression_of_a_rule_takes_long_on_its_own_examples_repeated(language: str) -> None:
    slow = []
    for pattern in patterns_of(language):
        expressions = [expression for _, expression in pattern.places]
        if pattern.expression is not None:
            expressions.append(pattern.expression)
        inner = [code[code.find("{") + 1 : code.rfind("}")] for code in pattern.rule.bad]
        texts = [(code * LOOK_BACK)[:LOOK_BACK] for code in [*pattern.rule.bad[:2], *inner] if code]
        for expression in expressions:
            started = time.thread_time()
            for text in texts:
                expression.search(text)
            if time.thread_time() - started > MOST_S * len(texts):
                slow.append(f"{pattern.rule.id}: {expression.pattern}")
    assert slow == []
