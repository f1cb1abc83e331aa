"""Names of languages: what people write behind a fence or at the end of a file, and ours.

A name of ours is the one the rules use: ``python``, ``cpp``, ``csharp``, ``terraform`` and so on.
"""

import re
from pathlib import PurePath

_TAGS = {
    "python": "py py2 py3 python2 python3 pyw ipython ipython3 sage cython pyx pyi gyp",
    "pycon": "python-repl py-repl pyrepl",
    "c": "h",
    "cpp": "c++ cc cxx hpp hh hxx h++ arduino ino cuda cu",
    "javascript": "js jsx mjs cjs node nodejs es6 ecmascript",
    "typescript": "ts mts cts",
    "tsx": "",
    "java": "jsp",
    "csharp": "c# cs c-sharp dotnet csx",
    "php": "php3 php4 php5 php7 php8 phtml inc",
    "rust": "rs",
    "go": "golang",
    "kotlin": "kt kts",
    "swift": "",
    "ruby": "rb jruby irb rake gemspec",
    "bash": "sh shell zsh ksh dash ash posix fish",
    "console": "shell-session sh-session shellsession terminal bash-session",
    "sql": "mysql postgres postgresql psql plsql pgsql plpgsql sqlite sqlite3 tsql mssql mariadb "
    "oracle ddl",
    "xml": "svg xsd xsl xslt wsdl plist pom",
    "html": "htm xhtml vue svelte",
    "yaml": "yml kubernetes k8s compose docker-compose ansible",
    "dockerfile": "docker containerfile",
    "terraform": "tf hcl tfvars opentofu",
    "json": "jsonc json5 jsonl ndjson",
    "markdown": "md mdx mkd rst",
    "diff": "patch udiff",
}
_OURS = {alias: name for name, aliases in _TAGS.items() for alias in [name, *aliases.split()]}
_FILES = {
    "dockerfile": "dockerfile",
    "containerfile": "dockerfile",
    "rakefile": "ruby",
    "gemfile": "ruby",
    ".bashrc": "bash",
    ".profile": "bash",
    ".env": "bash",
}
# A tag may stand in braces ({.python}), before a colon (py:main.py) or with settings ({1,3}).
_FIRST_WORD = re.compile(r"[{\s]*\.?(?:language-|lang-)?([A-Za-z][\w+#.-]*)")


def language_of_tag(info: str) -> str:
    """Our name for the language that the text behind a fence gives.

    ``""`` when there is none or it is not known; a file's name serves too (``main.py``).
    """
    match = _FIRST_WORD.match(info)
    if not match:
        return ""
    word = match[1].lower().rstrip(".")
    return _OURS.get(word) or language_of_path(word)


def language_of_path(path: str) -> str:
    """Our name for the language of a file by its name; ``""`` when it is not known."""
    name = PurePath(path).name.lower()
    if name in _FILES or name.split(".")[0] in ("dockerfile", "containerfile"):
        return _FILES.get(name, "dockerfile")
    if name.startswith(".env."):
        return "bash"
    ending = PurePath(name).suffix[1:]
    return _OURS.get(ending, "")
