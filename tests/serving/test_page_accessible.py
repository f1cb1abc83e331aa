"""Both pages under axe: nothing serious, in light and dark, wide and narrow."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_site import Site
from playwright.sync_api import Page, expect
from test_page_stats import figures

pytest_plugins = ["page_fixtures"]

WIDE = {"width": 1200, "height": 800}
NARROW = {"width": 360, "height": 640}
LOOKS = [("light", WIDE), ("dark", WIDE), ("light", NARROW), ("dark", NARROW)]
ANSWER = """# Title

A [link](https://elsewhere.example), `code` and a table:

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x: int) -> str:
    \"\"\"Text.\"\"\"
    return f"{x}" + str(1.5)  # a comment
```
> quoted
"""


def serious(page: Page) -> list[str]:
    """Serious and critical violations, with where they are."""
    page.wait_for_timeout(250)  # transitions end
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {[node['html'][:120] for node in each['nodes']]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("scheme", "viewport"), LOOKS)
def test_the_chat_has_nothing_serious(site: Site, scheme: str, viewport: dict[str, int]) -> None:
    site.script.words = [ANSWER]
    site.script.guard = {"decision": "warn", "reason": "a reason"}
    page = site.open(color_scheme=scheme, viewport=viewport)
    assert serious(page) == []
    page.locator("#question").fill("Hello?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Answer again")).to_be_visible()
    site.script.error = (500, {"error": {"message": "failed"}})
    page.locator("#question").fill("Again?")
    page.keyboard.press("Enter")
    expect(page.locator(".trouble")).to_be_visible()
    assert serious(page) == []
    page.get_by_role("button", name="Settings", exact=True).click()
    assert serious(page) == []


def test_the_drawer_and_the_help_have_nothing_serious(site: Site) -> None:
    page = site.open(viewport=NARROW)
    page.get_by_role("button", name="Open the list").click()
    assert serious(page) == []
    page.get_by_role("button", name="Keys").click()
    assert serious(page) == []


@pytest.mark.parametrize(("scheme", "viewport"), LOOKS)
def test_the_dashboard_has_nothing_serious(
    site: Site, scheme: str, viewport: dict[str, int]
) -> None:
    site.script.figures = figures()
    page = site.open("/stats", color_scheme=scheme, viewport=viewport)
    page.get_by_text("The same as a table").first.click()
    assert serious(page) == []
