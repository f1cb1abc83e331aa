"""The web chat at ``/`` and the dashboard at ``/stats``: files of this package, and their Markdown.

Nothing here comes from elsewhere or sends anything elsewhere: the browser is told so by a strict
content security policy. Text of a model becomes HTML in `puna.serving.markdown`, on this side, so
that the page inserts nothing that was not escaped here.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError

from puna.core.config import Config
from puna.serving.markdown import code_css, to_html

MAX_MARKDOWN_BYTES = 1_000_000
"""Most bytes of a request to ``/ui/markdown``: a long conversation is about a tenth."""

_WEB = Path(__file__).parent / "web"
_PAGES = {"/": "chat.html", "/stats": "stats.html"}
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Only our own scripts and styles, none inside the page; HTML from text only by one policy.
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "object-src 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types puna",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Kept, but asked about each time: a new version of the server is a new page at once.
    "Cache-Control": "no-cache",
}


class MarkdownTexts(Config):
    """What ``/ui/markdown`` takes."""

    texts: tuple[str, ...] = Field(max_length=500)
    """Markdown texts, each answered by its HTML, in this order."""


@dataclass(frozen=True)
class _File:
    """A file as it is sent."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it already."""
        headers = {**_HEADERS, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def page_router() -> APIRouter:
    """Routes of the chat, the dashboard, their files and ``/ui/markdown``; none in the schema."""
    files = _read_files()
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    @router.get("/stats")
    async def page(request: Request) -> Response:
        return files[_PAGES[request.url.path]].answer(request)

    @router.get("/ui/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            return _refusal(404, f"there is no file {name!r} here")
        return files[name].answer(request)

    @router.post("/ui/markdown")
    async def markdown(request: Request) -> Response:
        body = await _bounded_body(request)
        if body is None:
            return _refusal(413, f"more than {MAX_MARKDOWN_BYTES} bytes: send fewer texts at once")
        try:
            texts = MarkdownTexts.model_validate_json(body).texts
        except ValidationError:
            return _refusal(400, 'send {"texts": [...]} with at most 500 strings')
        html = await run_in_threadpool(lambda: [to_html(text) for text in texts])
        return JSONResponse({"html": html}, headers={"X-Content-Type-Options": "nosniff"})

    return router


def _read_files() -> dict[str, _File]:
    """Every file that may be sent, by its name: read once, so no name reaches the disk."""
    files = {
        path.name: _File(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(_WEB.iterdir())
        if path.suffix in _TYPES
    }
    files["code.css"] = _File(code_css().encode(), _TYPES[".css"])
    return files


async def _bounded_body(request: Request) -> bytes | None:
    """The body, or None as soon as it is longer than allowed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_MARKDOWN_BYTES:
            return None
    return bytes(body)


def _refusal(status: int, message: str) -> JSONResponse:
    """An error in the form of OpenAI's."""
    kind = "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind}}, status_code=status)
