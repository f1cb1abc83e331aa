"""The web chat in Chromium: conversations that are kept, and everybody's way to use the page."""

import json
import time
from pathlib import Path

from page_site import Site, answers, ask, asked, rows, settled
from playwright.sync_api import expect

pytest_plugins = ["page_fixtures"]

SLOW = [f"word{index} " for index in range(400)]


def test_a_conversation_is_renamed_searched_deleted_and_brought_back(site: Site) -> None:
    page = site.open()
    for text in ("About llamas?", "About grass?"):
        page.get_by_role("button", name="New conversation").click()
        ask(page, text)
        settled(page)
    page.get_by_role("button", name="Rename “About llamas?”").click()
    page.get_by_label("New title").fill("Animals")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_text(["About grass?", "Animals"])
    page.get_by_label("Search conversations").fill("LLAMAS")
    expect(rows(page)).to_have_text(["Animals"])
    page.get_by_role("button", name="Delete “Animals”").click()
    expect(rows(page)).to_have_count(0)
    page.get_by_label("Search conversations").fill("")
    expect(rows(page)).to_have_text(["About grass?"])
    page.get_by_role("button", name="Undo").click()
    expect(rows(page)).to_have_count(2)
    page.reload()
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_role("heading", level=1)).to_have_text("Animals")


def test_conversations_go_out_and_come_in_elsewhere(site: Site, tmp_path: Path) -> None:
    page = site.open()
    ask(page, "Keep this?")
    settled(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["format"] == "puna-conversations"
    other = site.open()
    other.locator("#import-file").set_input_files(file)
    expect(other.locator(".toast")).to_contain_text("1 imported.")
    other.get_by_role("button", name="Keep this?", exact=True).click()
    expect(answers(other)).to_contain_text("A short answer.")
    other.locator("#import-file").set_input_files(file)
    expect(other.locator(".toast")).to_contain_text("0 imported, 1 already here.")
    file.write_text('{"format": "puna-conversations", "conversations": [{"id": 3}]}')
    other.locator("#import-file").set_input_files(file)
    expect(other.locator(".toast")).to_contain_text("damaged: nothing was imported")


def test_a_full_storage_is_told_and_the_conversation_goes_on(site: Site) -> None:
    page = site.open()
    page.evaluate(
        """() => {
          let size = 4 * 1024 * 1024;
          for (let n = 0; size > 0; n += 1) {
            try { localStorage.setItem("filler" + n, "x".repeat(size)); }
            catch { size = Math.floor(size / 2); }
          }
        }"""
    )
    ask(page, "Hi.")
    settled(page)
    expect(page.get_by_role("alert").filter(has_text="storage is full")).to_be_visible()
    ask(page, "More.")
    settled(page)
    assert asked(site) == ["Hi.", "A short answer.", "More."]
    page.evaluate(
        """() => Object.keys(localStorage)
          .filter((name) => name.startsWith("filler"))
          .forEach((name) => localStorage.removeItem(name))"""
    )
    ask(page, "And more.")
    settled(page)
    expect(page.get_by_role("alert").filter(has_text="storage is full")).to_be_hidden()


def test_another_tab_sees_what_was_said(site: Site) -> None:
    page = site.open()
    other = page.context.new_page()
    other.goto("/")
    ask(page, "From one tab?")
    settled(page)
    expect(rows(other)).to_have_text(["From one tab?"])


def test_hostile_texts_do_nothing(site: Site) -> None:
    attack = (
        "<img src=x onerror='document.title=1'> <script>document.title=1</script> "
        "[a](javascript:document.title=1) ![b](http://elsewhere.example/x.png) "
        "<iframe src=http://elsewhere.example></iframe>"
    )
    site.script.words = [attack]
    site.script.guard = {"decision": "warn", "reason": attack}
    page = site.open()
    ask(page, attack)
    settled(page)
    page.reload()
    settled(page)
    expect(page.locator(".message :is(img, script, iframe, a)")).to_have_count(0)
    expect(page.locator("#list :is(img, script, iframe)")).to_have_count(0)
    assert page.title().startswith("<img src=x")


def test_a_reader_who_scrolled_up_is_left_in_peace(site: Site) -> None:
    site.script.words, site.script.pause_s = [f"line {n}\n\n" for n in range(300)], 0.01
    page = site.open(viewport={"width": 900, "height": 500})
    ask(page, "Long?")
    expect(answers(page)).to_contain_text("line 40")
    scroll = "document.getElementById('scroll')"
    away = f"{scroll}.scrollHeight - {scroll}.clientHeight - {scroll}.scrollTop"
    assert page.evaluate(away) < 60
    page.locator("#scroll").hover()
    page.mouse.wheel(0, -300)
    expect(page.get_by_role("button", name="Latest")).to_be_visible()
    place = page.evaluate(f"{scroll}.scrollTop")
    expect(answers(page)).to_contain_text("line 90")
    assert page.evaluate(f"{scroll}.scrollTop") == place
    page.get_by_role("button", name="Latest").click()
    assert page.evaluate(away) < 60


def test_blocks_that_are_complete_stay_while_the_answer_grows(site: Site) -> None:
    site.script.words, site.script.pause_s = ["A paragraph.\n\n", *SLOW], 0.02
    page = site.open()
    ask(page, "Long?")
    expect(answers(page)).to_contain_text("word2")
    page.evaluate("window.block = document.querySelector('.prose p')")
    expect(answers(page)).to_contain_text("word30")
    assert page.evaluate("window.block === document.querySelector('.prose p')")


def test_an_example_is_asked_with_a_click(site: Site) -> None:
    page = site.open()
    page.locator("#examples button").nth(1).click()
    settled(page)
    assert "palindrome" in asked(site)[0]


def test_everything_can_be_done_by_keyboard(site: Site) -> None:
    page = site.open()
    keys = page.keyboard
    keys.type("One")
    keys.press("Shift+Enter")
    keys.type("two")
    keys.press("Enter")
    settled(page)
    assert asked(site) == ["One\ntwo"]
    keys.press("ArrowUp")
    expect(page.get_by_label("Edit your question")).to_be_focused()
    keys.press("Escape")
    expect(page.get_by_role("button", name="Edit this question")).to_be_focused()
    keys.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    keys.press("Escape")
    keys.press("/")
    expect(page.get_by_label("Your question", exact=True)).to_be_focused()
    keys.press("Control+k")
    expect(page.get_by_label("Search conversations")).to_be_focused()
    keys.press("Control+,")
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    keys.press("Escape")
    keys.press("Alt+n")
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()


def test_tab_reaches_every_control_with_a_visible_focus(site: Site) -> None:
    page = site.open()
    ask(page, "Hi.")
    settled(page)
    page.evaluate("document.activeElement.blur()")
    seen: list[str] = []
    look = """() => {
      const at = document.activeElement;
      const shown = at.closest(".composer-box") ?? at;
      const name = at.getAttribute("aria-label") ?? at.id ?? "";
      return [name || at.textContent, getComputedStyle(shown).outlineStyle !== "none"];
    }"""
    for _ in range(30):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(look)
        if page.evaluate("document.activeElement === document.body"):
            continue
        assert visible, name
        seen.append(name)
    wanted = {
        "new", "search", "Rename “Hi.”", "Delete “Hi.”", "export", "import", "help-open", "model",
        "Settings", "Edit this question", "Copy this question", "Copy this answer", "Answer again",
        "question",
    }  # fmt: skip
    assert wanted <= set(seen)
    assert any(name.startswith("Colours") for name in seen)


def test_colours_follow_the_system_until_they_are_chosen(site: Site) -> None:
    page = site.open(color_scheme="dark")
    theme = page.locator("html")
    expect(theme).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(theme).to_have_attribute("data-theme", "light")
    button = page.get_by_role("button", name="Colours")
    button.click()
    button.click()
    expect(button).to_have_accessible_name("Colours: dark")
    page.reload()
    expect(theme).to_have_attribute("data-theme", "dark")


def test_a_narrow_screen_has_everything_and_no_sideways_scrolling(site: Site) -> None:
    site.script.words = ["```python\n" + "x = 1  # " + "long " * 60 + "\n```\n\n" + "w" * 300]
    page = site.open(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    ask(page, "Narrow?")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.getElementById('scroll').scrollWidth") <= 360
    expect(page.get_by_role("button", name="New conversation")).to_be_hidden()
    page.get_by_role("button", name="Open the list").tap()
    page.get_by_role("button", name="New conversation").tap()
    expect(page.get_by_role("button", name="New conversation")).to_be_hidden()
    page.get_by_role("button", name="Open the list").tap()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Open the list")).to_be_focused()
    page.get_by_role("button", name="Open the list").tap()
    page.get_by_role("button", name="Narrow?", exact=True).tap()
    expect(answers(page)).to_contain_text("www")
    page.get_by_role("button", name="Settings", exact=True).tap()
    expect(page.get_by_label("Temperature")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_motion_is_still_for_who_asked_for_that(site: Site) -> None:
    site.script.words, site.script.pause_s = SLOW, 0.02
    page = site.open(reduced_motion="reduce")
    ask(page, "Count.")
    pulse = page.locator(".writing .pulse")
    expect(pulse).to_be_visible()
    assert pulse.evaluate("(dot) => getComputedStyle(dot).animationName") == "none"


def test_a_composed_character_is_not_sent_half_written(site: Site) -> None:
    page = site.open()
    page.get_by_label("Your question", exact=True).fill("ni")
    page.locator("#question").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    time.sleep(0.1)
    assert site.script.asked == []
