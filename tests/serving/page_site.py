"""A server of the page that follows a script, and pages of it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from puna.serving.page import page_router


@dataclass
class Script:
    """What the server does next, and what it was asked."""

    words: list[str] = field(default_factory=lambda: ["A ", "short ", "answer."])
    pause_s: float = 0.0
    finish: str = "stop"
    guard: dict[str, str] | None = None
    error: tuple[int, dict[str, Any]] | None = None
    """Status and body of every answer that is refused."""
    breaks: bool = False
    """Whether the connection ends before the answer does."""
    key: str | None = None
    markdown_fails: bool = False
    figures: Callable[[], dict[str, Any]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys_seen: list[str | None] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def last(self) -> dict[str, Any]:
        """The last request for an answer."""
        return self.asked[-1]


def scripted_app(script: Script) -> FastAPI:
    """The page, and an OpenAI-like server that follows the script."""
    app = FastAPI()

    def refused(request: Request) -> Response | None:
        given = request.headers.get("authorization")
        script.keys_seen.append(given)
        if script.key is None or given == f"Bearer {script.key}":
            return None
        error = {"message": "this key is not known here", "code": "invalid_api_key"}
        return JSONResponse({"error": error}, status_code=401)

    @app.middleware("http")
    async def fault(request: Request, call_next: Any) -> Response:
        if request.url.path == "/ui/markdown" and script.markdown_fails:
            return JSONResponse({"error": {"message": "no"}}, status_code=500)
        return await call_next(request)

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        data = [{"id": name, "object": "model"} for name in ("llama-small", "llama-large")]
        return refused(request) or {"object": "list", "data": data}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        script.asked.append(await request.json())
        if script.error:
            return JSONResponse(script.error[1], status_code=script.error[0])
        return refused(request) or StreamingResponse(
            _stream(script), media_type="text/event-stream"
        )

    @app.get("/stats/data")
    async def figures(request: Request) -> Any:
        assert script.figures is not None
        return refused(request) or script.figures()

    app.include_router(page_router())
    return app


async def _stream(script: Script) -> AsyncIterator[str]:
    def chunk(**fields: Any) -> str:
        return f"data: {json.dumps({'object': 'chat.completion.chunk', **fields})}\n\n"

    def choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}

    try:
        yield chunk(**choice({"role": "assistant", "content": ""}))
        for word in list(script.words):
            yield chunk(**choice({"content": word}))
            await asyncio.sleep(script.pause_s)
        if script.breaks:
            return
        last = choice({}, script.finish)
        if script.guard:
            last["choices"][0]["puna"] = {"guard": script.guard}
        yield chunk(**last)
        usage = {
            "prompt_tokens": 21,
            "completion_tokens": len(script.words),
            "total_tokens": 21 + len(script.words),
            "prompt_tokens_details": {"cached_tokens": 8},
        }
        yield chunk(choices=[], usage=usage)
        yield "data: [DONE]\n\n"
    except asyncio.CancelledError:
        script.cancelled.set()
        raise


@dataclass
class Site:
    """A running server, its script, and pages of it that may reach nothing else."""

    url: str
    script: Script
    browser: Browser
    contexts: list[BrowserContext] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Requests to anywhere else."""
    faults: list[str] = field(default_factory=list)
    """What pages threw, and what their policy forbade."""

    def open(self, path: str = "/", **options: Any) -> Page:
        """A page of a new visitor."""
        context = self.browser.new_context(base_url=self.url, **options)
        self.contexts.append(context)
        context.set_default_timeout(8_000)
        context.on("request", self._watch)
        page = context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._note)
        page.goto(path)
        if path == "/":
            expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        return page

    def _watch(self, request: Any) -> None:
        if not request.url.startswith((self.url + "/", f"blob:{self.url}/")):
            self.strays.append(request.url)

    def _note(self, message: Any) -> None:
        # The browser itself reports each refused request, which tests provoke.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)


def ask(page: Page, text: str) -> None:
    question = page.get_by_label("Your question", exact=True)
    question.fill(text)
    question.press("Enter")


def answers(page: Page) -> Locator:
    return page.locator(".message.assistant")


def asked(site: Site) -> list[str]:
    """Contents of the last request's messages."""
    return [message["content"] for message in site.script.last["messages"]]


def settled(page: Page) -> None:
    """The last answer is complete and shown whole."""
    expect(answers(page).last.get_by_role("button", name="Answer again")).to_be_visible()


def rows(page: Page) -> Locator:
    return page.locator("#list li")
