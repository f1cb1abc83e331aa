"""Secrets are found in every language that takes these rules, however it writes a string."""

import re

import pytest
import yaml

from puna.safety.shield import languages, rules, scan

FORMS = {
    "python": '{name} = "{value}"',
    "c": 'char *{name} = "{value}";',
    "cpp": 'std::string {name} = "{value}";',
    "javascript": 'const {name} = "{value}";',
    "typescript": 'const {name}: string = "{value}";',
    "tsx": 'const {name} = "{value}";',
    "java": 'String {name} = "{value}";',
    "csharp": 'var {name} = "{value}";',
    "php": '${name} = "{value}";',
    "rust": 'let {name} = "{value}";',
    "go": '{name} := "{value}"',
    "kotlin": 'val {name} = "{value}"',
    "swift": 'let {name} = "{value}"',
    "ruby": '{name} = "{value}"',
    "bash": '{name}="{value}"',
    "yaml": '{name}: "{value}"',
    "terraform": '{name} = "{value}"',
    "json": '{{"{name}": "{value}"}}',
}
COMMON = yaml.safe_load(rules._resource("common").read_text(encoding="utf-8"))["rules"]
TAKE_THEM = [
    name for name in languages() if any(r.id.startswith("common-") for r in rules.load(name).rules)
]


def written(example: str, language: str) -> str:
    name, value = re.fullmatch(r'(\w+) = "(.*)"', example, re.S).groups()  # type: ignore[union-attr]
    return FORMS[language].format(name=name, value=value)


def found(code: str, language: str) -> set[str]:
    return {finding.rule for finding in scan(code, language).findings}


@pytest.mark.parametrize("language", [name for name in TAKE_THEM if name in FORMS])
def test_secrets_are_found_and_what_looks_like_them_is_left_alone(language: str) -> None:
    for rule in COMMON:
        for example in rule["bad"]:
            code = written(example, language)
            assert rule["id"] in found(code, language), code
        for example in rule["good"]:
            code = written(example, language)
            assert rule["id"] not in found(code, language), code


def test_most_languages_take_the_common_rules() -> None:
    assert len(TAKE_THEM) >= 15


def test_a_secret_read_at_run_time_is_left_alone() -> None:
    harmless = {
        "python": 'password = os.environ["DB_PASSWORD"]',
        "javascript": "const apiKey = process.env.API_KEY;",
        "java": 'String password = System.getenv("DB_PASSWORD");',
        "php": '$password = getenv("DB_PASSWORD");',
        "go": 'password := os.Getenv("DB_PASSWORD")',
        "bash": 'PASSWORD="$(cat /run/secrets/db)"',
        "yaml": "password: ${DB_PASSWORD}",
        "terraform": "password = var.db_password",
    }
    assert {language: found(code, language) for language, code in harmless.items()} == {
        language: set() for language in harmless
    }
