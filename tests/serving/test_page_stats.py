"""The dashboard in Chromium, on figures that the tests make up."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from page_site import Site
from playwright.sync_api import Page, expect

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.clock


def figures(tokens_per_s: float = 40.0) -> Callable[[], dict[str, Any]]:
    """Figures of one model that has been writing at a constant speed."""
    begun = time.monotonic()

    def now() -> dict[str, Any]:
        seconds = time.monotonic() - begun
        engine = {
            "running": 3,
            "waiting": 2,
            "waiting_tokens": 0,
            "pages": 100,
            "pages_used": 30,
            "pages_cached": 20,
            "page_size": 8,
            "prompt_tokens": int(seconds * 750),
            "cached_tokens": int(seconds * 250),
            "generated_tokens": int(seconds * tokens_per_s),
            "finished": 4,
            "cancelled": 1,
            "failed": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        }
        return {
            "uptime_s": 3_700 + seconds,
            "draining": False,
            "requests": {"in_hand": 5, "total": 1234, "by_status": {"200": 1230, "429": 4}},
            "rejected": {"queue_full": 4},
            "guard": {
                "input": {"allow": 9, "warn": 1, "block": 2},
                "output": {"allow": 6, "warn": 0, "block": 0},
            },
            "models": {
                "llama-small": {
                    "engine": engine,
                    "adapters": ["tuned"],
                    "requests": 77,
                    "tokens_per_s": tokens_per_s,
                    "ttft_ms": {"p50": 120.4, "p95": 1_530.0},
                    "inter_token_ms": {"p50": 8.25, "p95": None},
                }
            },
        }

    return now


def plot(page: Page, title: str) -> str:
    """What a plot says to those who cannot see it."""
    named = page.get_by_role("img", name=f"{title}, now:")
    return (named.get_attribute("aria-label") or "").removeprefix(f"{title}, now: ")


def test_figures_of_the_server_and_of_each_model_are_shown(site: Site) -> None:
    site.script.figures = figures()
    page = site.open("/stats")
    expect(page.get_by_role("heading", name="llama-small")).to_be_visible()
    expect(page.locator("#state")).to_contain_text("Up 1 h 1 min")
    cards = page.locator("#server")
    for text in ("In hand5", "Answered1,234", "Client errors4", "Guard: allowed15", "blocked2"):
        expect(cards).to_contain_text(text)
    expect(cards).to_contain_text("Refused: queue full4")
    assert plot(page, "Requests") == "running 3, waiting 2"
    assert plot(page, "Time to first token") == "median 120 ms, 95% 1.5 s"
    assert plot(page, "Time between tokens") == "median 8.3 ms, 95% –"
    assert plot(page, "Pages of the cache") == "used 30, cached 20, free 50"
    expect(page.get_by_text("adapters: tuned")).to_be_visible()


def test_rates_come_from_counters_and_lines_grow(site: Site) -> None:
    site.script.figures = figures(tokens_per_s=40)
    page = site.open("/stats")
    share = page.get_by_role("img", name="Prompt found in the cache, now: share 25%")
    expect(share).to_be_attached()
    written = plot(page, "Tokens a second")
    # The clocks of the two ends differ by a request's time: a few per cent of a second.
    assert 34 <= float(written.removeprefix("written ")) <= 46
    line = page.get_by_role("img", name="Requests, now:").locator("path").first
    expect(line).to_have_attribute("d", re.compile(r"^M[\d. ]+(L[\d. ]+){3}"))


def test_the_same_is_there_as_a_table(site: Site) -> None:
    site.script.figures = figures()
    page = site.open("/stats")
    page.get_by_text("The same as a table").click()
    table = page.get_by_role("table", name="llama-small, now")
    expect(table.get_by_role("row", name="Requests, running")).to_contain_text("3")
    expect(table.get_by_role("row", name="Requests since the start")).to_contain_text("77")


def test_a_hidden_page_asks_nothing(site: Site) -> None:
    site.script.figures = figures()
    page = site.open("/stats")
    expect(page.get_by_role("heading", name="llama-small")).to_be_visible()
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { value: true, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(100)
    before = len(site.script.keys_seen)
    page.wait_for_timeout(1_300)
    assert len(site.script.keys_seen) == before
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { value: false, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(200)
    assert len(site.script.keys_seen) == before + 1


def test_a_key_is_asked_for_here_too(site: Site) -> None:
    site.script.figures = figures()
    site.script.key = "right"
    page = site.open("/stats")
    page.get_by_label("API key", exact=True).fill("right")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="llama-small")).to_be_visible()


def test_a_server_that_went_away_is_told_and_found_again(site: Site) -> None:
    site.script.figures = figures()
    page = site.open("/stats")
    page.route("**/stats/data", lambda route: route.abort())
    expect(page.get_by_role("alert").filter(has_text="cannot be reached")).to_be_visible()
    page.unroute("**/stats/data")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_hidden()
