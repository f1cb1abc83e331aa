"""Scans a whole piece of code."""

from puna.core.errors import UsageError
from puna.safety.shield import rules
from puna.safety.shield.blocks import find_blocks
from puna.safety.shield.engine import engine
from puna.safety.shield.matching import Hit, Scan
from puna.safety.shield.parsing import Deadline, ScanTimeout, check_shape, parse
from puna.safety.shield.pieces import Piece
from puna.safety.shield.result import Finding, Result
from puna.safety.shield.tags import language_of_tag
from puna.safety.shield.tree import Reader

_LIKELY = (
    "python",
    "javascript",
    "c",
    "cpp",
    "java",
    "csharp",
    "php",
    "go",
    "rust",
    "ruby",
    "bash",
)


def known_language(name: str) -> str:
    """The language of a name, tag or suffix; raises `UsageError` with those known."""
    language = language_of_tag(name)
    if language not in rules.languages():
        raise UsageError(f"'{name}' is no language of the shield: {', '.join(rules.languages())}")
    return language


def scan(code: str, language: str, seconds: float = 10.0) -> Result:
    """Findings in a whole piece of code; raises `UsageError` for an unknown language.

    Args:
        code: a file, a function or a part of one; what does not parse is read as well as it can be.
        language: its name, tag or suffix.
        seconds: longest time to take; code that takes longer has the result's ``fault``.
    """
    own = engine(known_language(language))
    opening, deadline = own.opening(code), Deadline(seconds)
    data = opening + code.encode("utf-8", "replace")
    try:
        tree = parse(own.parser(), data, deadline)
        check_shape(tree, deadline)
        hits = Scan(own, Reader(own.grammar), tree, data, deadline=deadline).hits()
    except ScanTimeout as error:
        why = f": {error}" if error.args else ""
        return Result(fault=f"the code takes too long to judge{why}")
    return Result(tuple(finding(hit, own.language, shift=len(opening)) for hit in hits))


def scan_unknown(code: str, seconds: float = 10.0) -> Result:
    """High findings in code whose language nobody knows.

    It is read in one language after the other; the first in which it parses without an error and
    has a high finding counts. What parses in none is not judged. ``seconds`` is the longest time
    that all of it may take; when that is over the result has a ``fault``.
    """
    deadline = Deadline(seconds)
    for language in _LIKELY:
        own = engine(language)
        data = own.opening(code) + code.encode("utf-8", "replace")
        try:
            if parse(own.parser(), data, deadline).root_node.has_error:
                continue
        except ScanTimeout:
            return Result(fault="code of no known language takes too long to try")
        found = scan(code, language, deadline.left)
        if found.verdict == "block":
            return Result(tuple(one for one in found.findings if one.severity == "high"))
        if found.fault:
            return found
    return Result()


def scan_markdown(text: str) -> Result:
    """Findings in the code of an answer, fenced or not; their lines are those of the answer."""
    found: list[Finding] = []
    fault = ""
    for block in find_blocks(text):
        if block.language in rules.languages():
            inside = scan(block.code, block.language)
        else:
            inside = Result() if block.language else scan_unknown(block.code)
        found += [one.moved(block.first_line - 1) for one in inside.findings]
        fault = fault or inside.fault
    return Result(tuple(found), fault)


def scan_page(text: str) -> Result:
    """Findings in the scripts and handlers of a page of HTML."""
    piece = Piece(0, "html", 0, None)
    code = "\n".join(piece.take(line) for line in text.splitlines())
    return scan(code, piece.language)


def finding(hit: Hit, language: str, shift: int = 0) -> Finding:
    """A hit as it is told.

    Args:
        hit: where it is in the text that was parsed.
        language: of the code.
        shift: characters put before the code's first line to make it parse.
    """
    rule = hit.rule
    return Finding(
        rule=rule.id,
        line=hit.line + 1,
        column=hit.column + 1 - (shift if hit.line == 0 else 0),
        end_line=hit.end_line + 1,
        end_column=hit.end_column + 1 - (shift if hit.end_line == 0 else 0),
        cwe=f"CWE-{rule.cwe}",
        severity=rule.severity,
        message=rule.message,
        fix=rule.fix,
        language=language,
    )
