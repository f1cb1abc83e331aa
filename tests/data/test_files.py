from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.data.document import Document, read_documents, write_documents
from puna.data.files import MAX_CHARS, cut, read_files


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.md").write_text("# B")
    (tmp_path / "a.txt").write_text("\ufeffA", encoding="utf-8")
    (tmp_path / "deep" / "c.jsonl").write_text(
        '{"text": "one"}\n\n{"text": "two\u2028", "id": 7}\n'
    )
    (tmp_path / "ignored.csv").write_text("x")
    assert read_files(tmp_path, "files") == [
        Document("A", "files", "a.txt:1"),
        Document("# B", "files", "b.md:1"),
        Document("one", "files", "deep/c.jsonl:1"),
        Document("two\u2028", "files", "deep/c.jsonl:3"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text"\n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r'a\.jsonl, line 1: expected .* "text"'),
        ("a.jsonl", b'["x"]\n', r'a\.jsonl, line 1: expected .* "text"'),
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.pdf", b"%PDF", r"a\.pdf is none of \.txt, \.md, \.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_files(tmp_path / name, "files")


def test_missing_and_empty_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read_files(tmp_path / "nowhere", "files")
    with pytest.raises(UsageError, match="holds no file of"):
        read_files(tmp_path, "files")


def test_a_book_becomes_documents_that_can_be_split(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}. " + "word " * 100 for number in range(500)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    documents = read_files(tmp_path / "book.txt", "files")
    assert len({document.whole for document in documents}) == len(documents) > 10
    assert max(len(document.text) for document in documents) <= MAX_CHARS
    assert "\n\n".join(document.text for document in documents) == "\n\n".join(paragraphs)


@given(st.lists(st.text(alphabet="ab \n")), st.integers(1, 20))
def test_cutting_loses_nothing_and_cuts_only_at_blank_lines(
    paragraphs: list[str], max_chars: int
) -> None:
    text = "\n\n".join(paragraphs)
    pieces = list(cut(text, max_chars))
    assert "\n\n".join(pieces) == text
    assert all(len(piece) <= max_chars or "\n\n" not in piece for piece in pieces)


def test_documents_survive_a_round_trip(tmp_path: Path) -> None:
    documents = [Document('l\'été\n\u2028 "x"', "s", "k#1"), Document("", "s", "2")]
    write_documents(tmp_path / "d.jsonl", documents)
    assert read_documents(tmp_path / "d.jsonl") == documents
