"""Reports as one HTML file with everything in it: no script, no network, one style (page.css)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_SHOWN_LINES, _SHOWN_CHARS = 10, 1200  # of one text a model wrote
# Control characters would not be valid HTML: shown as their pictures, U+2400 and on.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}


def render(template: Path, values: Mapping[str, Any]) -> str:
    """A page from a Jinja template, which may include ``page.css`` and use the filter `shown`.

    A model may write HTML, so everything is escaped but what is marked as ours.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment.get_template(template.name).render(values)


def shown(text: str) -> str:
    """A model's text for the page: without control characters, cut where it goes on for long."""
    lines = text.translate(_PICTURES).strip("\n").split("\n")
    cut = "\n".join(lines[:_SHOWN_LINES])
    if len(cut) > _SHOWN_CHARS:
        return f"{cut[:_SHOWN_CHARS]} … ({len(text) - _SHOWN_CHARS:,} more characters)"
    rest = len(lines) - _SHOWN_LINES
    return f"{cut}\n… ({rest} more lines)" if rest > 0 else cut
