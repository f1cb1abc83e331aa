"""Rules as data: ``rules/<language>.yaml`` read, checked and made ready to match.

``docs/shield.md`` says how to write one.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from puna.core.errors import UsageError
from puna.safety.shield.conditions import Test, condition, regex
from puna.safety.shield.grammars import GRAMMARS
from puna.safety.shield.names import Names
from puna.safety.shield.needles import lower, needles, reach
from puna.safety.shield.values import Knowledge

Severity = Literal["high", "medium"]

_INFO = {"id", "cwe", "severity", "message", "fix", "bad", "good"}
_FACTS = ("call", "set", "built", "string", "text", "query")
_PLACES = (
    "result",
    "not_result",
    "function",
    "not_function",
    "file",
    "not_file",
    "inside",
    "not_inside",
    "statement",
    "not_statement",
)
_MATCH = {
    *_FACTS,
    *_PLACES,
    "args",
    "value",
    "where",
    "statement",
    "not_statement",
    "loop",
    "unused",
    "safe",
    "comments",
}
_FILE = {"language", "inherits", "without", "sources", "clean", "builders", "rules"}


@dataclass(frozen=True)
class Rule:
    """One weakness."""

    id: str
    cwe: int
    severity: Severity
    message: str
    """What is wrong, in a line."""
    fix: str
    """What to write instead."""
    bad: tuple[str, ...] = ()
    good: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pattern:
    """One way in which a weakness shows."""

    rule: Rule
    args: tuple[tuple[str, Test], ...] = ()
    value: Test | None = None
    where: tuple[tuple[str, Test], ...] = ()
    places: tuple[tuple[str, re.Pattern[str]], ...] = ()
    loop: bool | None = None
    unused: bool | None = None
    safe: Names | None = None
    names: Names | None = None
    expression: re.Pattern[str] | None = None
    """Of a name, of a built string's skeleton, or of the text."""
    needles: tuple[str, ...] = ()
    """Of the expression: without one of these in the text it need not be tried."""
    reach: int | None = None
    """Characters that a text rule matches at most; None when there is no limit."""
    query: str = ""
    comments: bool = False
    """Whether a text rule looks into comments too."""

    def fits(self, name: str) -> bool:
        """Whether a rule on a call or an assignment is about this name."""
        if self.names is not None:
            return self.names.match(name)
        if self.expression is None or not _holds_any(lower(name), self.needles):
            return False
        return self.expression.search(name) is not None


def _holds_any(text: str, needles: tuple[str, ...]) -> bool:
    """Whether one of the needles, if there are any, is in a text."""
    for one in needles:  # faster than `any`
        if one in text:
            return True
    return not needles


@dataclass
class RuleSet:
    """The rules of one language, ready to match."""

    language: str
    knowledge: Knowledge
    rules: list[Rule] = field(default_factory=list)
    calls: dict[str, list[Pattern]] = field(default_factory=dict)
    """By the last segment of the name."""
    call_expressions: list[Pattern] = field(default_factory=list)
    sets: dict[str, list[Pattern]] = field(default_factory=dict)
    set_expressions: list[Pattern] = field(default_factory=list)
    built: list[Pattern] = field(default_factory=list)
    strings: list[Pattern] = field(default_factory=list)
    texts: list[Pattern] = field(default_factory=list)
    queries: list[Pattern] = field(default_factory=list)

    def add(self, pattern: Pattern, fact: str) -> None:
        """Index a pattern by its kind of fact."""
        if fact in {"call", "set"}:
            by_name = self.calls if fact == "call" else self.sets
            others = self.call_expressions if fact == "call" else self.set_expressions
            if pattern.names is None:
                others.append(pattern)
            else:
                for last in pattern.names.lasts():
                    by_name.setdefault(last, []).append(pattern)
            return
        {"built": self.built, "string": self.strings, "text": self.texts, "query": self.queries}[
            fact
        ].append(pattern)


@cache
def languages() -> tuple[str, ...]:
    """Languages that have rules."""
    return tuple(name for name in GRAMMARS if _resource(name).is_file())


def _resource(language: str) -> Any:
    return resources.files("puna.safety.shield") / "rules" / f"{language}.yaml"


def _read(language: str) -> dict[str, Any]:
    where = f"rules/{language}.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(_resource(language).read_text(encoding="utf-8"), loader)  # noqa: S506  safe
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: {error}") from None
    if not isinstance(data, dict) or data.keys() - _FILE:
        raise UsageError(f"{where}: its keys may be {', '.join(sorted(_FILE))}")
    return data


def _chain(language: str) -> list[dict[str, Any]]:
    """A language's file, behind those it inherits from."""
    data = _read(language)
    return [*(part for base in data.get("inherits", ()) for part in _chain(base)), data]


@cache
def load(language: str) -> RuleSet:
    """The rules of a language, read once; raises `UsageError` for a file that is wrong."""
    return _compiled(language, examples=False)


def with_examples(language: str) -> list[Rule]:
    """A language's own and inherited rules with their examples, for tests and documentation."""
    return _compiled(language, examples=True).rules


def patterns_of(language: str) -> list[Pattern]:
    """All patterns of a language, with the examples of their rules, for tests."""
    found = _compiled(language, examples=True)
    named = [one for index in (found.calls, found.sets) for many in index.values() for one in many]
    others = [found.call_expressions, found.set_expressions, found.built, found.strings]
    every = [*named, *(one for many in [*others, found.texts, found.queries] for one in many)]
    return list({id(one): one for one in every}.values())


def _compiled(language: str, *, examples: bool) -> RuleSet:
    chain = _chain(language)
    left_out = {name for data in chain for name in data.get("without", ())}

    def names(key: str) -> Names:
        return Names(name for data in chain for name in _names(data.get(key, ())))

    known = Knowledge(names("sources"), names("clean"), names("builders"))
    rules = RuleSet(language, known)
    for data in chain:
        for entry in data.get("rules", ()):
            if entry.get("id") not in left_out:
                _add(rules, entry, language, examples)
    return rules


def _add(rules: RuleSet, entry: dict[str, Any], language: str, examples: bool) -> None:
    where = f"rules/{language}.yaml, rule '{entry.get('id', '?')}'"
    entries = entry.get("match") or [{k: v for k, v in entry.items() if k not in _INFO}]
    unknown = entry.keys() - _INFO - _MATCH - {"match"}
    if unknown or (missing := _INFO - {"bad", "good"} - entry.keys()):
        what = f"unknown key '{min(unknown)}'" if unknown else f"no '{min(missing)}'"
        raise UsageError(f"{where}: {what}")
    if entry["severity"] not in {"high", "medium"}:
        raise UsageError(f"{where}: severity is high (blocks) or medium (warns)")
    texts = {key: tuple(entry.get(key, ())) if examples else () for key in ("bad", "good")}
    rule = Rule(
        entry["id"], entry["cwe"], entry["severity"], entry["message"], entry["fix"], **texts
    )
    rules.rules.append(rule)
    for match in entries:
        try:
            pattern, fact = _pattern(rule, match)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        rules.add(pattern, fact)


def _pattern(rule: Rule, match: dict[str, Any]) -> tuple[Pattern, str]:
    facts = [fact for fact in _FACTS if fact in match]
    if len(facts) != 1 or match.keys() - _MATCH:
        raise UsageError(f"a match has one of {', '.join(_FACTS)}, and keys of {sorted(_MATCH)}")
    fact, what = facts[0], match[facts[0]]
    named = fact in {"call", "set"} and not _is_regex(what)
    expression = None if named or fact == "query" else regex(_unwrapped(what))
    return (
        Pattern(
            rule,
            args=_tests(match.get("args")),
            value=condition(match["value"]) if "value" in match else None,
            where=_tests(match.get("where")),
            places=tuple((p, regex(_unwrapped(match[p]))) for p in _PLACES if p in match),
            loop=match.get("loop"),
            unused=match.get("unused"),
            safe=Names(_names(match["safe"])) if "safe" in match else None,
            names=Names(_names(what)) if named else None,
            expression=expression,
            needles=needles(expression) if expression is not None else (),
            reach=reach(expression) if expression is not None else None,
            query=what if fact == "query" else "",
            comments=match.get("comments", False),
        ),
        fact,
    )


def _is_regex(what: Any) -> bool:
    return isinstance(what, str) and len(what) > 2 and what[0] == what[-1] == "/"


def _names(what: str | list[str]) -> list[str]:
    """Names in a list, or in a line with commas."""
    return [name.strip() for name in what.split(",")] if isinstance(what, str) else what


def _unwrapped(text: str) -> str:
    return text[1:-1] if _is_regex(text) else text


def _tests(specs: dict[Any, Any] | None) -> tuple[tuple[str, Test], ...]:
    return tuple((str(key), condition(spec)) for key, spec in (specs or {}).items())
