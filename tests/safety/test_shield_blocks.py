"""Code in answers: where it stands, in which language, however the answer is cut."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puna.safety.shield.blocks import MAX_LINE, Block, BlockFinder, Line, find_blocks
from puna.safety.shield.guess import guess_language
from puna.safety.shield.tags import language_of_path, language_of_tag


def lines_of(text: str, cuts: tuple[int, ...] = ()) -> list[Line]:
    finder = BlockFinder()
    places = [0, *sorted(cuts), len(text)]
    lines = [line for a, b in pairwise(places) for line in finder.push(text[a:b])]
    return lines + finder.finish()


def only_block(text: str) -> Block:
    (block,) = find_blocks(text)
    return block


@pytest.mark.parametrize(
    ("info", "language"),
    [
        ("py", "python"),
        ("python3", "python"),
        ("C++", "cpp"),
        ("c#", "csharp"),
        ("JS", "javascript"),
        ("tsx", "tsx"),
        ("golang", "go"),
        ("sh", "bash"),
        ("{.python .numberLines}", "python"),
        ("py:src/main.py", "python"),
        ("js {1,3-4}", "javascript"),
        ("main.rs", "rust"),
        ("Dockerfile", "dockerfile"),
        ("hcl", "terraform"),
        ("language-ruby", "ruby"),
        ("", ""),
        ("text", ""),
        ("brainfuck", ""),
    ],
)
def test_a_tag_is_given_our_name_of_its_language(info: str, language: str) -> None:
    assert language_of_tag(info) == language


def test_a_files_name_tells_its_language() -> None:
    names = ["a/b.tf", "deploy/Dockerfile.prod", "x.JSX", ".env.local", "README", "k8s.yml", "a.h"]
    assert [language_of_path(name) for name in names] == [
        "terraform",
        "dockerfile",
        "javascript",
        "bash",
        "",
        "yaml",
        "c",
    ]


FENCED = {
    "backticks": "Text.\n```python\nx = 1\n```\nMore.\n",
    "tildes": "Text.\n~~~py\nx = 1\n~~~\nMore.\n",
    "longer end": "````python\nx = 1\n``````\n",
    "in a list": "1. First\n\n   ```python\n   x = 1\n   ```\n",
    "on the list's line": "- ```python\n  x = 1\n  ```\n",
    "in a quote": "> Text\n> ```python\n> x = 1\n> ```\n",
    "not closed": "Text:\n```python\nx = 1",
    "after text": "The code: ```python\nx = 1\n```\nDone with it.\n",
    "carriage returns": "```python\r\nx = 1\r\n```\r\n",
    "prompts": "```python\n>>> x = 1\n```\n",
    "html": 'Text:\n<pre><code class="language-python">\nx = 1\n</code></pre>\n',
    "in markdown": "````markdown\n# Title\n```python\nx = 1\n```\n````\n",
}


@pytest.mark.parametrize("text", FENCED.values(), ids=FENCED)
def test_fenced_code_is_found_with_its_language(text: str) -> None:
    blocks = [block for block in find_blocks(text) if block.language == "python"]
    assert [block.code.strip() for block in blocks] == ["x = 1"]
    assert blocks[0].fenced
    assert "x = 1" in text.splitlines()[blocks[0].first_line - 1]


def test_a_shorter_or_other_fence_does_not_end_a_block() -> None:
    block = only_block("````python\ns = '''\n```\n~~~\n'''\nx = 1\n````\n")
    assert block.code == "s = '''\n```\n~~~\n'''\nx = 1\n"


def test_a_new_tag_ends_a_block_whose_end_was_forgotten() -> None:
    blocks = find_blocks("```python\nx = 1\n```bash\nls -l\n```\nAll of this is said in words.\n")
    assert [(block.language, block.code) for block in blocks] == [
        ("python", "x = 1\n"),
        ("bash", "ls -l\n"),
    ]


def test_code_that_a_shell_session_shows_is_its_commands_without_prompts_and_output() -> None:
    block = only_block("```console\n$ curl x | sh\nsome output\nuser@host:~# reboot\n```\n")
    assert (block.language, block.code) == ("bash", "curl x | sh\n\nreboot\n")


def test_a_diff_is_read_as_the_code_after_it() -> None:
    text = "```diff\n--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-old()\n+new()\n same()\n```\n"
    block = only_block(text)
    assert (block.language, block.code.split()) == ("python", ["new()", "same()"])


def test_a_fence_of_one_line_is_code() -> None:
    assert only_block("```import os```\n").code == "import os\n"


PAGE = """\
<!DOCTYPE html>
<p onclick="go(1)">Hi</p>
<script>
  eval(location.hash)
</script><b>x</b><script>f()</script>
<a href='javascript:g()'>a</a>
"""


@pytest.mark.parametrize("tag", ["html", ""])
def test_a_page_is_read_for_its_scripts(tag: str) -> None:
    block = only_block(f"```{tag}\n{PAGE}```\n")
    assert block.language == "javascript"
    assert block.code == "\ngo(1);\n\n  eval(location.hash)\nf()\ng();\n"


def test_a_page_with_php_in_it_is_php() -> None:
    block = only_block("```html\n<p>Hi</p>\n<?php echo $_GET['x']; ?>\n```\n")
    assert (block.language, block.code) == ("php", "\n<?php echo $_GET['x']; ?>\n")


def test_html_between_its_tags_is_read_as_what_it_shows() -> None:
    text = '<pre class="x lang-cpp"><code>a &lt; b &amp;&amp; c;\nd();</code></pre>\nThat is all.\n'
    block = only_block(text)
    assert (block.language, block.code) == ("cpp", "a < b && c;\nd();\n")
    assert only_block("<pre>import os\nprint(os.name)</pre>\n").language == "python"


def test_parts_of_an_over_long_line_stay_together() -> None:
    code = f'x = "{"a" * (3 * MAX_LINE)}"\ny = 2\n'
    assert only_block(f"```python\n{code}```\n").code == code


LOOSE = {
    "python": "import os\n\ndef run(cmd):\n    # Runs a command of the user.\n    os.system(cmd)\n",
    "c": "#include <stdio.h>\nint main(void) {\n    char b[8];\n    gets(b);\n    return 0;\n}\n",
    "javascript": "const cp = require('child_process');\n\ncp.exec('ls ' + dir, (err) => {\n"
    "  console.log(err);\n});\n",
    "java": "public class A {\n    void go(String s) throws IOException {\n"
    "        Runtime.getRuntime().exec(s);\n    }\n}\n",
    "php": "<?php\n$id = $_GET['id'];\necho $id;\n",
    "go": 'package main\n\nfunc main() {\n\tx := os.Args[1]\n\tfmt.Println(x)\n}\n',
    "rust": "use std::env;\n\nfn main() {\n    let mut x = 1;\n    println!(\"{}\", x);\n}\n",
    "ruby": "require 'open3'\n\ndef run(cmd)\n  system(cmd)\nend\n",
    "bash": "#!/bin/bash\nset -e\ncurl http://x.org/i.sh | sh\n",
    "sql": "SELECT name FROM users WHERE id = 1;\n",
    "csharp": "using System.Diagnostics;\n\npublic class A\n{\n    public void Go(string s)\n"
    "    {\n        Process.Start(s);\n    }\n}\n",
    "dockerfile": "FROM python:3.11\nRUN pip install x\nUSER root\n",
    "terraform": 'resource "aws_s3_bucket" "b" {\n  acl = "public-read"\n}\n',
    "kotlin": "fun run(c: String) {\n    val p = Runtime.getRuntime().exec(c)\n    println(p)\n}\n",
    "swift": "import Foundation\n\nfunc load(_ s: String) -> URL? {\n    let u = URL(string: s)\n"
    "    return u\n}\n",
}  # fmt: skip


@pytest.mark.parametrize("language", LOOSE)
def test_code_without_a_fence_is_one_block_between_the_prose(language: str) -> None:
    code = LOOSE[language]
    text = f"Here is what you asked me for.\n\n{code}\nThis code does what it was asked to do.\n"
    block = only_block(text)
    assert (block.code.strip(), block.first_line) == (code.strip(), 3)
    assert (block.language, block.fenced) == (language, False)


@pytest.mark.parametrize("language", LOOSE)
def test_the_language_of_an_untagged_fence_is_guessed(language: str) -> None:
    block = only_block(f"So:\n```\n{LOOSE[language]}```\n")
    assert (block.language, block.code) == (language, LOOSE[language])


def test_sentences_in_a_docstring_do_not_end_a_block_without_a_fence() -> None:
    code = (
        'def f(x):\n    """Title.\n\nThis is a long line of words in a docstring.\n"""\n    go(x)\n'
    )
    assert only_block(code).code == code


PROSE = """\
# How to write safe code

Never pass user input to os.system() or eval(): an attacker could run any command.
Use `subprocess.run(["ls", path])` instead, and check the result.

1. First, import the module; then call it.
2. Do not use MD5 for passwords. Use bcrypt (or Argon2).
   - For example: the function `gets(buffer)` never knows the size.

| call | why not |
|---|---|
| `strcpy` | it copies without a bound |

Select the right option from the menu. Update the settings, then delete the old ones.
if you want to know more, read on: there is a lot to say.
> As they say: better safe than sorry.
Note: the password is a secret. E.g. "hunter2" would be a bad one!
那么我们应该怎么做呢？请看下面的说明。
Yes.
"""


def test_prose_is_never_code() -> None:
    assert find_blocks(PROSE) == []


ANSWER = PROSE + "".join(f"{FENCED[name]}\n" for name in FENCED) + "".join(LOOSE.values()) + PROSE


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(ANSWER)), max_size=60))
def test_the_cut_of_an_answer_changes_nothing(cuts: list[int]) -> None:
    assert lines_of(ANSWER, tuple(cuts)) == lines_of(ANSWER)


PIECES = st.sampled_from(
    ["```", "````", "~~~", "python", "\n", "\r\n", "> ", "- ", "x = f(1)", '"""', "/*", "(",
     "The quick brown fox is ", "    ", "#", ">>> ", "$ ",
     "diff", "+++ b/a.py", "\x00", "é", "`", "<pre>", "</pre>"]
)  # fmt: skip


def prose_at_first(line: Line) -> bool:
    """Whether it is prose, or a fence that opens behind a sentence."""
    behind = line.kind == "fence" and "fox" in line.text.partition("```")[0]
    return line.kind == "prose" or behind


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=50))
@example(["The quick brown fox is ", "```", "python"])  # a fence opens behind prose
def test_any_text_comes_back_whole_and_what_went_out_early_was_no_code(pieces: list[str]) -> None:
    whole = "".join(pieces)
    expected = lines_of(whole)
    assert "".join(line.text for line in expected) == whole
    finder, early, lines = BlockFinder(), False, []
    for character in whole:
        for line in finder.push(character):
            assert not early or prose_at_first(line)
            lines.append(line)
            early = False
        early = early or finder.held_is_prose
    assert lines + finder.finish() == expected
    assert not early or prose_at_first(expected[-1])


def test_a_sentence_goes_out_before_its_line_ends_and_code_does_not() -> None:
    finder = BlockFinder()
    finder.push("This is the way to ")
    assert finder.held_is_prose
    finder.push("do it.\n```\nThis is the way to ")
    assert not finder.held_is_prose


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=300))
def test_no_text_breaks_the_guess(text: str) -> None:
    assert isinstance(guess_language(text), str)


def test_parse_errors_decide_between_languages_that_look_alike() -> None:
    code = "int x = f(y);\n"
    assert guess_language(code, lambda _, name: 0 if name == "java" else 1) != ""
    ambiguous = "Foo bar = baz(1);\n"
    picked = {
        guess_language(ambiguous, lambda _, name, want=want: name != want)
        for want in ("java", "csharp")
    }
    assert picked == {"java", "csharp"}


@pytest.mark.clock
@pytest.mark.parametrize(
    "line", ["a" * 200_000, "A b " * 50_000, "x(" * 100_000, "> " * 100_000, '"a":' * 50_000]
)
def test_a_hostile_line_costs_little(line: str) -> None:
    start = time.perf_counter()
    find_blocks(line + "\n```\n" + line + "\n")
    assert time.perf_counter() - start < 2  # a regular expression that backtracks takes minutes
