"""The running Python's own library: the language reference, its docstrings and its source.

It is on every machine that runs Puna, so a corpus can be built with no package index at all.
Files are parsed, never imported.
"""

import ast
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from puna.data.document import Document, Source, SourceUnavailable

# Tests, a bundled editor, demos, and the generated tables of the codecs.
_LEFT_OUT = {
    *("test", "tests", "idlelib", "lib2to3", "distutils", "encodings", "turtledemo"),
    *("site-packages", "dist-packages", "pydoc_data", "ensurepip", "_pyrepl", "__phello__"),
}
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def read_reference(source: Source) -> list[Document]:
    """One document per topic of the language reference that ``help()`` shows.

    Raises:
        SourceUnavailable: this Python was installed without it.
    """
    path = _library() / "pydoc_data" / "topics.py"
    if not path.exists():
        raise SourceUnavailable(f"this Python has no {path}: install its standard library")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    topics: dict[str, str] = ast.literal_eval(values[0])
    return [Document(text, source.name, name) for name, text in sorted(topics.items())]


def read_library(source: Source) -> list[Document]:
    """Two documents per module: ``name#docs``, what its docstrings say, and ``name#code``.

    Raises:
        SourceUnavailable: this Python keeps its library elsewhere than in ``.py`` files.
    """
    documents = []
    for name, code in _modules():
        docs = docstrings(name, ast.parse(code))
        documents += [Document(docs, source.name, f"{name}#docs")] if docs else []
        documents.append(Document(code, source.name, f"{name}#code"))
    if not documents:
        raise SourceUnavailable(f"this Python has no source files in {_library()}")
    return documents


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _modules() -> Iterator[tuple[str, str]]:
    library = _library()
    top = (entry for entry in sorted(library.iterdir()) if entry.stem not in _LEFT_OUT)
    paths = (path for entry in top for path in _python_files(entry))
    for path in paths:
        parts = path.relative_to(library).with_suffix("").parts
        if not _LEFT_OUT & set(parts) and all(part.isidentifier() for part in parts):
            with tokenize.open(path) as handle:  # honours the file's own encoding line
                yield ".".join(part for part in parts if part != "__init__"), handle.read()


def _python_files(entry: Path) -> list[Path]:
    if entry.is_dir():
        return sorted(entry.rglob("*.py"))
    return [entry] if entry.suffix == ".py" else []


def docstrings(name: str, module: ast.Module) -> str:
    """What a module's public docstrings say, each under the name it documents; may be empty."""
    found = [(name, ast.get_docstring(module)), *_documented(name, module.body)]
    return "\n\n".join(f"{heading}\n\n{text.strip()}" for heading, text in found if text)


def _documented(prefix: str, body: list[ast.stmt]) -> Iterator[tuple[str, str | None]]:
    for node in body:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield f"class {name}", ast.get_docstring(node)
                yield from _documented(name, node.body)
            else:
                yield f"{name}({ast.unparse(node.args)})", ast.get_docstring(node)
