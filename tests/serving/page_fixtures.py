"""Fixtures of the tests in a browser."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from page_site import Script, Site, scripted_app
from playwright.sync_api import Browser, expect, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

expect.set_options(timeout=15_000)  # other tests run beside


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window.

    Not longer than a file: while it is there an event loop runs in this thread, and no other can.
    """
    path = os.environ.get("PUNA_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail(
            "the tests of the web chat need Chromium: apt install chromium, "
            "or set PUNA_CHROMIUM to the path of one"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def scripted_server() -> Iterator[tuple[str, Script]]:
    """One server for all tests."""
    script = Script()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(scripted_app(script), port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the scripted server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}", script
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def site(chromium: Browser, scripted_server: tuple[str, Script]) -> Iterator[Site]:
    """A fresh script; afterwards no page may have failed or asked anyone else."""
    url, script = scripted_server
    script.__init__()  # type: ignore[misc]
    found = Site(url, script, chromium)
    yield found
    for context in found.contexts:
        context.close()
    assert found.strays == []
    assert found.faults == []
