"""The page's files and its Markdown, without a browser."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pygments.formatters import HtmlFormatter
from pygments.styles import get_style_by_name
from pygments.token import Token

from puna.serving.markdown import _DARK, _LIGHT, to_html
from puna.serving.page import MAX_MARKDOWN_BYTES, page_router


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(page_router())
    with TestClient(app) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/stats", "text/html"),
        ("/ui/chat.js", "text/javascript"),
        ("/ui/theme.js", "text/javascript"),
        ("/ui/base.css", "text/css"),
        ("/ui/code.css", "text/css"),
        ("/ui/mark.svg", "image/svg+xml"),
    ],
)
def test_every_file_is_sent_as_what_it_is_under_a_strict_policy(
    client: TestClient, path: str, media_type: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/ui/chat.js")
    again = client.get("/ui/chat.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["page.py", "..%2fpage.py", "%2e%2e/page.py", "chat.js%00", "%2fetc%2fpasswd", ""]
)
def test_nothing_but_the_listed_files_is_sent(client: TestClient, name: str) -> None:
    assert client.get(f"/ui/{name}").status_code == 404


def test_the_page_is_not_part_of_the_api_schema(client: TestClient) -> None:
    assert client.get("/openapi.json").json()["paths"] == {}


def test_markdown_comes_back_in_order(client: TestClient) -> None:
    answer = client.post("/ui/markdown", json={"texts": ["**a**", "`b`"]})
    assert answer.json() == {
        "html": ["<p><strong>a</strong></p>\n", "<p><code>b</code></p>\n"],
    }


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"texts": "a"}', b'{"texts": [1]}', b"\xff"])
def test_a_malformed_request_for_markdown_is_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/ui/markdown", content=body).status_code == 400


def test_a_huge_request_for_markdown_is_refused(client: TestClient) -> None:
    body = {"texts": ["a" * MAX_MARKDOWN_BYTES]}
    assert client.post("/ui/markdown", json=body).status_code == 413


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a <b onclick=alert(1)>b</b>",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](java\tscript:alert(1))",
        "[a](&#106;avascript:alert(1))",
        "[a](data:text/html;base64,PHNjcmlwdD4=)",
        "[a](vbscript:x)",
        "[a](/stats)",
        "[a](//elsewhere.example)",
        "<javascript:alert(1)>",
        "[a]: javascript:alert(1)\n\n[a]",
        '```"><script>alert(1)</script>\ncode\n```',
        "```html\n<script>alert(1)</script>\n```",
        "    <script>alert(1)</script>",
        '![x" onerror="alert(1)](http://elsewhere.example/x.png)',
        "| <script>a</script> |\n|---|\n| <img onerror=a> |",
    ],
)
def test_what_a_text_brings_along_stays_text(text: str) -> None:
    html = to_html(text)
    for live in ("<script", "<img", "<b ", "href"):
        assert live not in html


def test_links_to_elsewhere_tell_nothing_of_where_they_were() -> None:
    html = to_html("[a](https://elsewhere.example) <mail@elsewhere.example>")
    assert html.count('rel="noopener noreferrer"') == html.count("<a ") == 2


def test_a_picture_is_its_description_and_is_not_loaded() -> None:
    assert to_html("![a & b](http://elsewhere.example/x.png)") == "<p><em>[a &amp; b]</em></p>\n"


def test_code_is_coloured_where_its_language_is_known() -> None:
    assert '<span class="k">def</span>' in to_html("```python\ndef f(): 1\n```")
    assert "<code>def f(): 1\n</code>" in to_html("```no-such-language\ndef f(): 1\n```")


def test_code_keeps_every_character_while_it_is_coloured() -> None:
    code = "\n\n  x = 1\t# 'a' <b> & c  \n\n"
    html = to_html(f"```python\n{code}```")
    inner = html[html.index("<code>") + 6 : html.index("</code>")]
    for tag in ("<span", "</span"):
        while tag in inner:
            start = inner.index(tag)
            inner = inner[:start] + inner[inner.index(">", start) + 1 :]
    for entity, character in {"&lt;": "<", "&gt;": ">", "&#39;": "'", "&amp;": "&"}.items():
        inner = inner.replace(entity, character)
    assert inner == code


def test_headings_stand_below_those_of_the_page() -> None:
    assert to_html("# a\n\n##### b") == "<h3>a</h3>\n<h6>b</h6>\n"


def test_columns_are_aligned_without_a_style_in_an_attribute() -> None:
    html = to_html("| a | b |\n|--:|:-:|\n| 1 | 2 |")
    assert '<td class="align-right">1</td>' in html
    assert '<td class="align-center">2</td>' in html
    assert "style=" not in html


def _luminance(colour: str) -> float:
    """Relative luminance of ``rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("style", "ground"), [(_LIGHT, "fffdf7"), (_DARK, "151410")])
def test_every_colour_of_code_can_be_read_on_its_ground(style: str, ground: str) -> None:
    assert "color" in HtmlFormatter(style=style).get_token_style_defs(".code")[0]
    for token, look in get_style_by_name(style):
        if not look["color"] or token in (Token.Error, Token.Text.Whitespace):
            continue  # errors are shown as text, blanks have no look
        pair = sorted((_luminance(look["color"]), _luminance(look["bgcolor"] or ground)))
        contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
        assert contrast >= 4.5, (token, look["color"])  # WCAG AA for text
