"""Answers of a model, made up: prose and code, harmless or with one insecure call planted.

All of it is a function of the seed. Words, names and fences vary; so do the languages, whether a
block names its language, and whether a call stands on one line or on several.
"""

import random
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

OPENINGS = (
    "Sure, here is one way to do it.",
    "Below is the function you asked for:",
    "You could write it like this. It needs nothing beyond the usual modules.",
    "Good question! Many tutorials call `eval(text)` or `os.system(cmd)` here; think twice.",
    "Here you go — short and to the point ✨",
    "The idea: read the value, check it, then hand it on.\n\n1. read\n2. check\n3. hand on",
)
CLOSINGS = (
    "Let me know if you want tests for it.",
    "Never use `gets(buffer)` in new code; it knows no length.",
    "> Note: run it once with a small input first.",
    "| step | cost |\n|---|---|\n| read | small |\n| write | larger |",
    "That is all; the rest stays as it was.\n\nHave fun!",
)
NOUNS = ("order", "report", "invoice", "player", "sensor", "ticket", "photo", "backup", "route")
VERBS = ("load", "find", "convert", "publish", "rename", "archive", "check", "send")


@dataclass(frozen=True)
class Code:
    """How a language writes a function, and what may stand in it. ``@`` is the argument's name."""

    tag: str
    head: str
    tail: str
    harmless: tuple[str, ...]
    insecure: tuple[tuple[str, str], ...]
    """(what comes before, the call that must not get out); lines of one call are one text."""


LANGUAGES: dict[str, Code] = {
    "python": Code(
        "python",
        "import os\nimport pickle\nimport sqlite3\nimport subprocess\n\n\ndef $name(@, db):\n",
        "    return True\n",
        (
            '    print("gets() and eval() are only words here", @)\n',
            '    subprocess.run(["git", "status"], check=True)\n',
            '    db.execute("SELECT id FROM $noun WHERE name = ?", (@,))\n',
            "    size = len(@)\n    if size > 10:\n        print(size)\n",
        ),
        (
            ("", '    os.system("ls -l " + @)\n'),
            ('    command = f"tar xf {@}"\n', "    subprocess.run(command, shell=True)\n"),
            (
                "",
                "    subprocess.check_output(\n        f'file {@}',\n        shell=True,\n    )\n",
            ),
            ("", "    db.execute(f\"DELETE FROM $noun WHERE name = '{@}'\")\n"),
            ('    sql = "SELECT * FROM $noun WHERE id = " + @\n', "    db.execute(sql)\n"),
        ),
    ),
    "javascript": Code(
        "js",
        'const { exec, execFile } = require("child_process");\n\n'
        "async function $name(req, res, db) {\n  const @ = req.query.$noun;\n",
        "  res.json({ done: true });\n}\n",
        (
            '  console.log("eval(x) is text", @);\n',
            '  execFile("git", ["status"]);\n',
            '  await db.query("SELECT id FROM $noun WHERE name = ?", [@]);\n',
            "  for (const one of [1, 2, 3]) {\n    console.log(one);\n  }\n",
        ),
        (
            ("", "  eval(@);\n"),
            ("", "  exec(`ls -l ${@}`);\n"),
            ("", "  exec(\n    'convert ' +\n      @ +\n      ' out.png',\n  );\n"),
            ("", "  await db.query(`SELECT * FROM $noun WHERE id = ${@}`);\n"),
        ),
    ),
    "php": Code(
        "php",
        "<?php\nfunction $name(PDO $db)\n{\n    $@ = $_GET['$noun'];\n",
        "    return true;\n}\n",
        (
            "    error_log('system() is a word: ' . strlen($@));\n",
            "    $rows = $db->prepare('SELECT id FROM $noun WHERE name = ?');\n",
            "    if ($@ === '') {\n        return false;\n    }\n",
        ),
        (
            ("", "    eval($@);\n"),
            ("", '    system("ls -l " . $@);\n'),
            ("", '    $db->query("SELECT * FROM $noun WHERE id = $@");\n'),
            ("", "    unserialize($@);\n"),
        ),
    ),
    "java": Code(
        "java",
        "import java.io.*;\nimport java.sql.*;\n\npublic class $Name {\n"
        "    public void $name(String @, Connection db) throws Exception {\n",
        "    }\n}\n",
        (
            '        System.out.println("exec() is a word: " + @);\n',
            "        if (@.isEmpty()) {\n            return;\n        }\n",
            '        db.prepareStatement("SELECT id FROM $noun WHERE name = ?");\n',
        ),
        (
            ("", '        Runtime.getRuntime().exec("sh -c " + @);\n'),
            (
                "",
                "        db.createStatement().executeQuery(\n"
                '            "SELECT * FROM $noun WHERE id = " + @\n        );\n',
            ),
        ),
    ),
    "c": Code(
        "c",
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\n"
        "int $name(const char *@)\n{\n    char buffer[64];\n    int i = 0;\n",
        "    return i;\n}\n",
        (
            '    puts("gets(buffer) is only text");\n',
            '    snprintf(buffer, sizeof(buffer), "%s", @);\n',
            '    for (i = 0; i < 3; i++) {\n        printf("%d\\n", i);\n    }\n',
        ),
        (
            ("", "    gets(buffer);\n"),
            ("", "    strcpy(buffer, @);\n"),
            ("", "    strcpy(\n        buffer,\n        @\n    );\n"),
        ),
    ),
    "csharp": Code(
        "csharp",
        "using System.Diagnostics;\nusing Microsoft.Data.SqlClient;\n\npublic class $Name\n{\n"
        "    public void Run(string @, SqlConnection db)\n    {\n",
        "    }\n}\n",
        (
            '        Console.WriteLine("Process.Start is a word: " + @);\n',
            '        var command = new SqlCommand("SELECT id FROM $noun WHERE name = @n", db);\n',
        ),
        (
            ("", '        Process.Start("/bin/sh", "-c \\"ls " + @ + "\\"");\n'),
            ("", '        new SqlCommand($"SELECT * FROM $noun WHERE id = {@}", db);\n'),
        ),
    ),
    "go": Code(
        "go",
        'package main\n\nimport (\n\t"database/sql"\n\t"fmt"\n\t"os/exec"\n)\n\n'
        "func $name(@ string, db *sql.DB) error {\n",
        "\treturn nil\n}\n",
        (
            '\tfmt.Println("exec is a word", @)\n',
            '\tdb.Exec("DELETE FROM $noun WHERE id = $1", @)\n',
            '\tif @ == "" {\n\t\treturn nil\n\t}\n',
        ),
        (
            ("", '\texec.Command("sh", "-c", "ls "+@).Run()\n'),
            ("", "\tdb.Exec(fmt.Sprintf(\"DELETE FROM $noun WHERE id = '%s'\", @))\n"),
        ),
    ),
    "ruby": Code(
        "ruby",
        "require 'json'\n\ndef $name(params, db)\n  @ = params[:$noun]\n",
        "  true\nend\n",
        (
            '  puts "eval is a word: #{@}"\n',
            "  system('git', 'status')\n",
            "  return if @.empty?\n",
        ),
        (("", "  eval(@)\n"), ("", '  system("ls -l #{@}")\n')),
    ),
    "cpp": Code(
        "cpp",
        "#include <cstdlib>\n#include <cstring>\n#include <iostream>\n#include <string>\n\n"
        "void $name(const std::string& @)\n{\n    char buffer[64];\n",
        "}\n",
        (
            '    std::cout << "strcpy(a, b) is text: " << @ << std::endl;\n',
            "    for (char one : @) {\n        std::cout << one;\n    }\n",
        ),
        (
            ("", "    strcpy(buffer, @.c_str());\n"),
            ("", '    system(("ls -l " + @).c_str());\n'),
        ),
    ),
    "rust": Code(
        "rust",
        "use std::process::Command;\n\npub fn $name(@: &str) -> std::io::Result<()> {\n",
        "    Ok(())\n}\n",
        (
            '    println!("sh -c is text: {}", @);\n',
            '    Command::new("git").arg("status").status()?;\n',
        ),
        (
            ("", '    Command::new("sh").arg("-c").arg(format!("ls {}", @)).status()?;\n'),
            (
                "",
                '    Command::new("sh")\n        .arg("-c")\n'
                '        .arg(format!("tar xf {}", @))\n        .status()?;\n',
            ),
        ),
    ),
    "kotlin": Code(
        "kotlin",
        "import java.sql.Connection\n\nfun $name(@: String, db: Connection) {\n",
        "}\n",
        (
            '    println("exec is a word: $@")\n',
            '    db.prepareStatement("SELECT id FROM $noun WHERE name = ?")\n',
        ),
        (
            ("", '    Runtime.getRuntime().exec("sh -c $@")\n'),
            (
                "",
                "    db.createStatement().executeQuery(\n"
                "        \"SELECT * FROM $noun WHERE id = '$@'\"\n    )\n",
            ),
        ),
    ),
    "bash": Code(
        "bash",
        '#!/usr/bin/env bash\nset -euo pipefail\n\n@="$1"\n',
        'echo "done"\n',
        (
            'echo "eval is a word: $@"\n',
            'if [ -z "$@" ]; then\n  exit 2\nfi\n',
            'for one in a b c; do\n  echo "$one"\ndone\n',
        ),
        (("", 'eval "$@"\n'), ("", 'curl -fsSL "https://example.org/$@" | bash\n')),
    ),
}


@dataclass(frozen=True)
class Answer:
    """A made-up answer."""

    text: str
    planted: int | None
    """Where the call that must not get out begins; None in a harmless answer."""
    language: str
    tagged: bool


def answers(seed: int, count: int, languages: tuple[str, ...] = ()) -> Iterator[Answer]:
    """``count`` answers, every second with a planted call.

    Args:
        seed: all is a function of it.
        count: how many.
        languages: of `LANGUAGES`; all without.
    """
    rng = random.Random(seed)
    for number in range(count):
        yield _answer(rng, rng.choice(languages or tuple(LANGUAGES)), planted=number % 2 == 0)


def pieces(rng: random.Random, text: str) -> Iterator[str]:
    """The text in chunks: of one character each, or of up to any length, or whole."""
    longest = rng.choice((1, 2, 8, 40, 400, len(text)))
    at = 0
    while at < len(text):
        end = at + rng.randint(1, longest)
        yield text[at:end]
        at = end


def _answer(rng: random.Random, language: str, *, planted: bool) -> Answer:
    tagged = rng.random() < 0.7
    parts = [rng.choice(OPENINGS) + "\n\n"]
    if rng.random() < 0.3:
        parts.append(_block(rng, rng.choice(tuple(LANGUAGES)), tagged=True, plant=False)[0])
        parts.append("\nAnd the part that you asked about:\n\n")
    block, offset = _block(rng, language, tagged=tagged, plant=planted)
    at = len("".join(parts)) + offset
    parts.append(block)
    if rng.random() < 0.1:  # cut off by the limit of tokens
        parts[-1] = block[: block.rindex("\n", 0, -1) + 1]
    else:
        parts.append("\n" + rng.choice(CLOSINGS) + "\n")
    text = "".join(parts)
    if rng.random() < 0.1:
        at += text[:at].count("\n")
        text = text.replace("\n", "\r\n")
    return Answer(text, at if planted else None, language, tagged)


def _block(rng: random.Random, language: str, *, tagged: bool, plant: bool) -> tuple[str, int]:
    """A fenced block and where in it the planted call begins (0 without one)."""
    code = LANGUAGES[language]
    noun, verb = rng.choice(NOUNS), rng.choice(VERBS)
    argument = rng.choice(("value", "text", "given", "wanted", "source")) + str(rng.randint(1, 99))
    fence = rng.choice(("```", "```", "~~~", "````"))
    opening = fence + (code.tag if tagged else "") + "\n"
    body = "".join(rng.sample(code.harmless, rng.randint(1, len(code.harmless))))
    if plant:
        before, call = rng.choice(code.insecure)
        lead, rest = code.head + body + before, call
    else:
        lead, rest = code.head + body, ""

    def named(text: str) -> str:
        text = text.replace("@n", "\0").replace("@", argument).replace("\0", "@n")
        text = text.replace("$noun", noun).replace("$name", f"{verb}_{noun}")
        return text.replace("$Name", verb.title() + noun.title())

    closing = fence + "\n"
    indent = rng.choice(("", "", "", "", "", "   ", "    "))
    if indent == "    ":  # of four spaces: a block without fences; of three: below a list's item
        opening = closing = ""
    start = textwrap.indent(opening + named(lead), indent)
    return start + textwrap.indent(named(rest + code.tail) + closing, indent), len(start)
