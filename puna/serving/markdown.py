"""Markdown to HTML that is safe to insert, by markdown-it-py; code coloured by Pygments.

Safe means: no HTML of the text's own survives, links lead to http, https or mail addresses only and
tell nothing to where they lead, and nothing is loaded (a picture becomes its description).
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_LIGHT, _DARK = "default", "github-dark"
_SCHEMES = ("http://", "https://", "mailto:")
_HEADINGS_BELOW = 2
"""The page has a first heading and each message a second one."""
_MAX_COLOURED = 20_000
"""Characters of a code block that are coloured; a longer one is shown plain."""


def to_html(text: str) -> str:
    """HTML of a Markdown text (CommonMark with tables and strikethrough)."""
    return str(_MARKDOWN.render(text))


def code_css() -> str:
    """Style sheet of coloured code: a light one, and a dark one under ``[data-theme=dark]``."""
    lines = HtmlFormatter(style=_LIGHT).get_token_style_defs(".code")
    lines += HtmlFormatter(style=_DARK).get_token_style_defs("[data-theme=dark] .code")
    return "\n".join(lines) + "\n"


def _finish(state: StateCore) -> None:
    """Put our own tokens where the standard ones would not do."""
    state.tokens = [ours for token in state.tokens for ours in _ours(token)]


def _ours(token: Token) -> Iterator[Token]:
    """What stands for a token of the text."""
    if token.type in ("fence", "code_block"):
        yield _html(_code(token))
    elif token.type == "table_open":
        # Focusable, so that a wide table can be scrolled by keyboard.
        yield _html('<div class="table" role="region" aria-label="Table" tabindex="0">\n')
        yield token
    elif token.type == "table_close":
        yield token
        yield _html("</div>\n")
    else:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + _HEADINGS_BELOW)}"
        elif token.type in ("th_open", "td_open") and "style" in token.attrs:
            # The policy of the page allows no style in an attribute.
            side = str(token.attrs.pop("style")).rpartition(":")[2]
            token.attrSet("class", f"align-{side}")
        elif token.type == "inline":
            _finish_inline(token.children or [])
        yield token


def _finish_inline(children: Sequence[Token]) -> None:
    for child in children:
        if child.type == "link_open":
            child.attrSet("target", "_blank")
            child.attrSet("rel", "noopener noreferrer")
        elif child.type == "image":
            # Loading it would tell another server about this conversation.
            child.type, child.content = "html_inline", f"<em>[{escapeHtml(child.content)}]</em>"


def _html(content: str) -> Token:
    return Token("html_block", "", 0, content=content)


def _code(token: Token) -> str:
    """A block of code under a bar with its language and a button that copies it."""
    language = (token.info.split() or [""])[0]
    return (
        f'<div class="code"><div class="code-bar"><span>{escapeHtml(language or "text")}</span>'
        '<button type="button" class="copy-code">Copy</button></div>'
        f'<pre tabindex="0"><code>{_coloured(token.content, language)}</code></pre></div>\n'
    )


def _coloured(code: str, language: str) -> str:
    """Escaped code, with classes where Pygments knows the language."""
    lexer = _lexer(language.lower())
    if lexer is None or len(code) > _MAX_COLOURED:
        return escapeHtml(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


@lru_cache(maxsize=256)  # an unknown name takes a search through every installed package
def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def _is_safe(url: str) -> bool:
    return url.lower().startswith(_SCHEMES)


def _build() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.validateLink = _is_safe  # type: ignore[method-assign]
    markdown.core.ruler.push("puna", _finish)
    return markdown


_MARKDOWN = _build()
