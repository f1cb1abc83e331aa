"""What the shield's engine reads in a tree: names, values, places."""

import pytest
from tree_sitter import QueryCursor

from puna.core.errors import UsageError
from puna.safety.shield import languages, matching, scan
from puna.safety.shield.conditions import condition, regex
from puna.safety.shield.engine import engine
from puna.safety.shield.imports import aliases_of
from puna.safety.shield.lines import LogicalLines
from puna.safety.shield.names import Names, SeenNames
from puna.safety.shield.needles import needles
from puna.safety.shield.tree import Reader

CALLS = [
    ("python", "import os as o\no.system(x)", "os.system"),
    ("python", "from subprocess import run as r\nr(x)", "subprocess.run"),
    ("python", "a.b().c[0].d(x)", "a.b().c[].d"),
    ("javascript", 'const {exec: e} = require("node:child_process"); e(x)', "child_process.exec"),
    ("javascript", 'import * as cp from "child_process"; cp.exec(x)', "child_process.exec"),
    ("javascript", "new Function(x)", "new Function"),
    ("java", "class A { void f() { Runtime.getRuntime().exec(x); } }", "Runtime.getRuntime().exec"),
    ("java", "class A { Object a = new java.util.Random(); }", "new Random"),
    ("csharp", "class A { void F() { a?.B<int>(x); } }", "a.B"),
    ("php", "$db->query($x);", "$db.query"),
    ("php", "include $x;", "include"),
    ("rust", "use std::process::Command as C; fn f() { C::new(x); }", "std.process.Command.new"),
    ("cpp", "void f() { std::system(x); }", "system"),
    ("c", "void f() { p->q.r(x); }", "p.q.r"),
    ("go", 'import "os/exec"\nfunc f() { exec.Command(x) }', "os.exec.Command"),
    ("kotlin", "fun f() { Runtime.getRuntime().exec(x) }", "Runtime.getRuntime().exec"),
    ("swift", "func f() { a.b(x, n: y) }", "a.b"),
    ("ruby", "A::B.c(x)", "A.B.c"),
    ("bash", 'eval "$x"', "eval"),
]


@pytest.mark.parametrize(
    ("language", "code", "name"), [case for case in CALLS if case[0] in languages()]
)
def test_a_call_has_its_full_name(language: str, code: str, name: str) -> None:
    own = engine(language)
    reader = Reader(own.grammar)
    tree = own.parser().parse(own.opening(code) + code.encode())
    captures = QueryCursor(own.facts).captures(tree.root_node)
    for node in captures.get("import", ()):
        reader.aliases.update(aliases_of(language, node))
    calls = [reader.call(node) for node in captures["call"]]
    assert name in [call.name for call in calls]
    assert reader.last(next(c.node for c in calls if c.name == name)) == name.rpartition(".")[2]


@pytest.mark.parametrize(
    ("code", "insecure"),
    [
        ("os.system('ls')", False),
        ("a = 'ls'\nos.system(a)", False),
        ("os.system('ls ' + '-l')", False),
        ("os.system('ls ' + x)", True),
        ("a = 'ls ' + x\nos.system(a)", True),
        ("a = 'ls '\na += x\nos.system(a)", True),
        ("a = x\na = 'ls'\ndef f():\n    a = 'ls'\n    os.system(a)", False),
        ("def f(a):\n    os.system(a)", True),
        ("os.system('kill %d' % int(x))", False),
        ("os.system(f'ls {shlex.quote(x)}')", False),
        ("COMMAND = 'ls'\nos.system(COMMAND)", False),
        ("os.system(['a', 'b'][0])", False),
        ("os.system(x if y else 'ls')", True),
        ("os.system('a' if y else 'ls')", False),
        ("os.system(x if x in NAMES else 'ls')", False),
        ("os.system(x if y in NAMES else 'ls')", True),
        ("os.system(x if x in NAMES or y else 'ls')", True),
        ("os.system(x if x not in NAMES else 'ls')", True),
        ("os.system('ls' if x in NAMES else x)", True),
        ("def f(a='ls'):\n    os.system(a)", True),
        ("g(a='ls')\nos.system(a)", True),
    ],
)
def test_a_constant_is_no_injection(code: str, insecure: bool) -> None:
    assert (scan(code, "python").verdict == "block") == insecure


HOLDERS = [
    (
        "python",
        "def f(v):\n    w = []\n    w.append('a = ?')\n    g('@' + ' AND '.join(w), v)",
        False,
    ),
    (
        "python",
        "def f(v):\n    w = []\n    w.append('a = ' + v)\n    g('@' + ' AND '.join(w))",
        True,
    ),
    ("python", "def f(n: int):\n    g(f'@b = {n}')", False),
    ("python", "def f(n: str):\n    g(f'@b = {n}')", True),
    ("python", "def f(n):\n    m = ','.join('?' for _ in n)\n    g(f'@b IN ({m})')", False),
    ("python", "def f(n):\n    m = ','.join(x for x in n)\n    g(f'@b IN ({m})')", True),
    (
        "javascript",
        "function f(n) { const w = []; w.push('a = ?'); q(`@${w.join(' AND ')}`); }",
        False,
    ),
    (
        "javascript",
        "function f(n) { const w = []; w.push(`a = ${n}`); q(`@${w.join(' AND ')}`); }",
        True,
    ),
    ("javascript", "function f(n) { q(`@b IN (${n.map(() => '?').join()})`); }", False),
    ("php", "function f($n) { $w = []; $w[] = 'a = ?'; q('@' . implode(' AND ', $w)); }", False),
    ("php", "function f($n) { $w = []; $w[] = \"a = $n\"; q('@' . implode(' AND ', $w)); }", True),
    ("java", 'class A { void f(long n) { q("@b = " + n); } }', False),
    ("java", 'class A { void f(String n) { q("@b = " + n); } }', True),
    (
        "java",
        'class A { void f(int n) { q("@b IN (" '
        '+ String.join(",", Collections.nCopies(n, "?")) + ")"); } }',
        False,
    ),
    ("python", "def f(n):\n    c = n if n in COLUMNS else 'id'\n    g('@b = ' + c)", False),
    ("python", "def f(n):\n    c = n if n else 'id'\n    g('@b = ' + c)", True),
    (
        "php",
        "function f($n) { $c = match ($n) { 1 => 'x', default => 'y' }; q('@b = ' . $c); }",
        False,
    ),
    (
        "php",
        "function f($n) { $c = match (1) { 1 => $n, default => 'y' }; q('@b = ' . $c); }",
        True,
    ),
    (
        "javascript",
        "function f(n) { const c = LIST.includes(n) ? n : 'a'; q(`@b = ${c}`); }",
        False,
    ),
    (
        "python",
        "def f(v):\n    w = []\n    w.append('a')\n    w.insert(0, v)\n    g('@' + w)",
        True,
    ),
    ("python", "def f(v):\n    w = []\n    w.append('a')\n    fill(w, v)\n    g('@' + w)", True),
    (
        "python",
        "def f(v):\n    w = []\n    w.append('a = ?')\n    if w:\n        g('@' + ' '.join(w), v)",
        False,
    ),
    (
        "python",
        "def f(v):\n    w = []\n    w.append(v)\n" + "    w.append('a')\n" * 17 + "    g('@' + w)",
        True,
    ),
    (
        "python",
        "def f(v):\n    w = [v]\n    if v:\n        w = []\n        w.append('a')\n    g('@' + w)",
        True,
    ),
    (
        "php",
        "function f() { $w = []; $w['a'] = $_GET['x']; $w[] = 'b'; q('@' . implode($w)); }",
        True,
    ),
    ("php", "function f(string|int $n) { q('@b = ' . $n); }", True),
    ("php", "function f(?int $n) { q('@b = ' . $n); }", False),
    ("python", "def f(n: int | bytes):\n    g(f'@b = {n}')", True),
    ("python", "def f(n: int | None = None):\n    g(f'@b = {n}')", False),
    ("typescript", "function f(n: string, o: { n: number }) { q(`@b = ${n}`); }", True),
    ("javascript", "function f(n) { const x = 'a'; q(`@${n.map(x => `'${x}'`).join()}`); }", True),
    ("java", 'class A { void f(/* int n */ String n) { q("@b = " + n); } }', True),
    ("csharp", 'class A { void F() { Q("@b = " + Name.Trim()); } }', True),
    ("csharp", 'class A { void F(int n) { Q($"@b = {n}"); } }', False),
    ("csharp", 'class A { void F(string n) { Q($"@b = {n}"); } }', True),
]
"""``@`` stands for the beginning of a query."""


@pytest.mark.parametrize(("language", "code", "insecure"), HOLDERS)
def test_what_a_list_holds_and_a_type_says_is_known(
    language: str, code: str, insecure: bool
) -> None:
    found = scan(code.replace("@", "SELECT a FROM t WHERE "), language)
    assert (bool(found.findings), found.fault) == (insecure, "")


def test_what_a_string_builder_was_given_is_known() -> None:
    code = """class C : Controller { object S(string term) { var b = new StringBuilder();
        b.Append("<p>").Append(term); return Content(b.ToString(), "text/html"); } }"""
    assert "csharp-xss" in {found.rule for found in scan(code, "csharp").findings}
    safe = code.replace("(term)", "(HtmlEncoder.Default.Encode(term))")
    assert not scan(safe, "csharp").findings


def test_a_default_does_not_say_how_the_rest_looks() -> None:
    code = """def go():
    target = request.args.get("next")
    if not target:
        target = "/home"
    return redirect(target)"""
    assert {found.rule for found in scan(code, "python").findings} == {"python-redirect-from-data"}


@pytest.mark.parametrize(
    ("language", "code", "line"),
    [
        ("python", 'end of a docstring.\n    """\n    os.system(a)\n', 3),
        ("python", 'x = f(\n"""\nos.system(a)\n""")\n', None),
        ("c", "it's a comment\n */\nvoid f(void) { gets(b); }\n", 3),
        ("php", "echo 1;\n$db->query(\"SELECT a FROM b WHERE c = '$d'\");\n", 2),
        ("php", "<p>a</p>\n<?php\neval($a);\n", 3),
    ],
)
def test_a_piece_may_begin_anywhere(language: str, code: str, line: int | None) -> None:
    found = {one.line for one in scan(code, language).findings}
    assert found == (set() if line is None else {line})


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("os.system", "os.system", True),
        ("os.system", "x.os.system", True),
        ("os.system", "ros.system", False),
        ("eval", "eval", True),
        ("eval", "model.eval", False),
        ("*.execute", "db.cursor().execute", True),
        ("*.execute", "execute", False),
        ("request.args.*", "request.args.get", True),
        ("request.args.*", "request.args[]", True),
        ("request.args.*", "my_request.args.get", False),
    ],
)
def test_patterns_of_names(pattern: str, name: str, fits: bool) -> None:
    assert Names([pattern]).match(name) == fits


@pytest.mark.parametrize(
    ("style", "lines", "complete"),
    [
        ("python", ["f(", "  1,", ")"], [False, False, True]),
        ("python", ["def f(a):", "    return a"], [True, True]),
        ("python", ['x = """', "f(", '"""'], [False, False, True]),
        ("python", ["x = {", "  'a': 1", "}"], [False, False, True]),
        ("python", ["x = 1 + \\", "  2  # (", "y = ')'"], [False, True, True]),
        ("js", ["app.get('/', (req) => {", "  f(req);", "});"], [True, True, True]),
        ("js", ["f({", "  shell: true,", "})"], [False, False, True]),
        ("js", ["x = `a (", "${b}`", "if (a) { }"], [False, True, True]),
        ("c", ["int f(int a)", "{", "  g(a,", "    b);", "}"], [False, True, False, True, True]),
        ("c", ["#include <x.h>", "/* a (", "*/", "int a;"], [True, False, True, True]),
        ("go", ["c := &tls.Config{", "  A: true,", "}"], [False, False, True]),
        ("go", ["if x {", "  y()", "}"], [True, True, True]),
        ("bash", ["cat <<EOF", "f(", "EOF", "ls |", "sh"], [False, False, True, False, True]),
        ("rust", ["fn f<'a>(x: &'a str) {", "  g('(');", "}"], [True, True, True]),
        ("sql", ["SELECT a", "FROM b;"], [False, True]),
    ],
)
def test_logical_lines(style: str, lines: list[str], complete: list[bool]) -> None:
    follow = LogicalLines(style)
    assert [follow.feed(line + "\n") for line in lines] == complete
    assert follow.closers == ""


def test_needles_are_in_every_match() -> None:
    assert needles(regex(r"\b(AKIA|ASIA)[0-9A-Z]{16}")) == ("akia", "asia")
    assert needles(regex(r"(?i)PassWord\s*=")) == ("password",)
    assert needles(regex(r"a|\d*")) == ()


def test_a_rule_that_is_wrong_is_told_in_a_line() -> None:
    with pytest.raises(UsageError, match="no regular expression"):
        condition("/(/")
    with pytest.raises(UsageError, match="no condition"):
        condition({"what": 1})
    with pytest.raises(UsageError, match="no language of the shield"):
        scan("x", "klingon")


@pytest.mark.parametrize("language", languages())
def test_random_bytes_do_no_harm(language: str) -> None:
    import random

    rng = random.Random(language)
    for _ in range(3):
        scan(bytes(rng.randrange(256) for _ in range(300)).decode("latin-1"), language)
        scan("".join(rng.choices("(){}[];,=+<>'\"ab \n$`|&", k=300)), language)


def test_code_that_takes_too_long_is_not_called_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "void f(char *p) { free(p); g(p); h(p); }\n"
    assert scan(code, "c").fault == ""
    late = scan(code, "c", seconds=0.0)
    monkeypatch.setattr(matching, "_MOST_MATCHES", 1)
    broken_off = scan(code * 20, "c")
    for result in (late, broken_off):
        assert result.verdict == "warn"
        assert "too long" in result.fault


def test_seen_names_are_those_of_an_expression_and_of_all_within_it() -> None:
    seen = SeenNames()
    outer = seen.begin()
    seen.note("a.escape")
    inner = seen.begin()
    seen.note("b.quote")
    seen.end(2, inner)
    seen.end(1, outer)
    assert seen.may_hold(1, Names(["escape", "*.escape"]))
    assert seen.may_hold(1, Names(["*.quote"]))
    assert not seen.may_hold(2, Names(["*.escape"]))
    assert not seen.may_hold(3, Names(["*.quote"]))
    late = Names(["*.late"])
    assert not seen.may_hold(1, late)
    outer = seen.begin()
    seen.repeat(2)
    for n in range(1000):  # more names than bits
        seen.note(f"f{n}")
    seen.note("c.late")
    seen.end(4, outer)
    assert seen.may_hold(4, late)
    assert seen.may_hold(4, Names(["*.quote"]))
    assert seen.may_hold(4, Names(["f777"]))


@pytest.mark.parametrize("far", range(10, 20))
def test_a_value_that_was_too_deep_to_judge_is_judged_again_from_nearby(far: int) -> None:
    given = ["v0 = request.args['q']", *(f"v{n} = v{n - 1}" for n in range(1, far + 1))]
    near = [f"HTMLResponse(v{n})" for n in range(9)]
    body = [*given, f"HTMLResponse(v{far})", *near]
    code = "from flask import request\ndef f():\n" + "".join(f"    {line}\n" for line in body)
    found = {one.line for one in scan(code, "python").findings}
    n_lines = code.count("\n")
    assert found >= set(range(n_lines - len(near) + 1, n_lines + 1))


def test_hits_come_in_one_order_the_outer_first() -> None:
    code = (
        "async function register(password) {\n"
        "  return crypto.createHash('md5').update(password).digest('hex');\n}\n"
    )
    found = [scan(code, "javascript").findings for _ in range(20)]
    assert all(one == found[0] for one in found)
    weak = next(one for one in found[0] if one.rule == "javascript-password-hash")
    assert code.splitlines()[1][weak.column - 1 : weak.end_column - 1].endswith("(password)")


def test_a_remainder_may_be_a_string_once_a_call_is_known_to_be_harmless() -> None:
    code = (
        "from flask import request\nimport bleach\n\ndef g(q):\n    fmt = bleach.clean(q)\n"
        "    if not q:\n        fmt = '<b>hello %s</b> <p>'\n"
        "    return fmt % request.args['name']\n"
    )
    found = scan(code, "python").findings
    assert [(one.rule, one.line) for one in found] == [("python-html-from-data", 8)]


@pytest.mark.parametrize("name", ["password", "PASSWORD", "pa\u017f\u017fword", "prıvate_key"])
def test_a_name_is_found_in_whatever_letters_an_expression_takes_it(name: str) -> None:
    assert scan(f'{name} = "hunter2horse9k1"', "python").findings
