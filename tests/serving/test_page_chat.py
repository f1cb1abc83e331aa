"""The web chat in Chromium, against a server that follows a script."""

import json
import re
import time
from pathlib import Path

from page_site import Site
from playwright.sync_api import Locator, Page, expect

pytest_plugins = ["page_fixtures"]

SLOW = [f"word{index} " for index in range(400)]


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


def test_an_answer_streams_in_and_ends_with_its_figures(site: Site) -> None:
    site.script.words, site.script.pause_s = ["**Bold** ", "and ", "on."], 0.02
    page = site.open()
    ask(page, "Hello?")
    settled(page)
    expect(answers(page).locator("strong")).to_have_text("Bold")
    facts = answers(page).locator(".facts")
    expect(facts).to_contain_text("21 tokens read")
    expect(facts).to_contain_text("3 written")
    expect(facts).to_contain_text(re.compile(r"[\d.]+ tokens/s"))
    expect(facts).to_contain_text(re.compile(r"first after \d+ ms"))
    expect(facts).to_contain_text("complete")
    expect(page.locator("#live")).to_have_text("Answer: Bold and on.")
    assert site.script.last["stream"] is True
    assert site.script.last["stream_options"] == {"include_usage": True}
    assert site.script.last["messages"] == [{"role": "user", "content": "Hello?"}]


def test_markdown_is_shown_while_it_streams(site: Site) -> None:
    site.script.words, site.script.pause_s = ["**first** ", *SLOW], 0.02
    page = site.open()
    ask(page, "Go on.")
    expect(answers(page).locator("strong")).to_have_text("first")
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()


def test_stopping_keeps_what_was_written_and_cancels_on_the_server(site: Site) -> None:
    site.script.words, site.script.pause_s = SLOW, 0.02
    page = site.open()
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word3")
    page.get_by_role("button", name="Stop the answer").click()
    settled(page)
    expect(answers(page).locator(".facts")).to_contain_text("stopped by you")
    assert site.script.cancelled.wait(5)
    site.script.words, site.script.pause_s = ["Done."], 0
    ask(page, "And now?")
    settled(page)
    first, partial, second = asked(site)
    assert (first, second) == ("Count.", "And now?")
    assert partial.startswith("word0 word1 word2")


def test_escape_stops_and_a_busy_conversation_takes_no_second_question(site: Site) -> None:
    site.script.words, site.script.pause_s = SLOW, 0.02
    page = site.open()
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word1")
    ask(page, "Too early.")
    assert len(site.script.asked) == 1
    expect(page.get_by_label("Your question", exact=True)).to_have_value("Too early.")
    page.keyboard.press("Escape")
    expect(answers(page).locator(".facts")).to_contain_text("stopped by you")


def test_retry_asks_the_same_again_and_can_be_undone(site: Site) -> None:
    page = site.open()
    ask(page, "Hello?")
    settled(page)
    site.script.words = ["Another."]
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_contain_text("Another.")
    settled(page)
    assert asked(site) == ["Hello?"]
    assert len(site.script.asked) == 2
    page.get_by_role("button", name="Undo").click()
    expect(answers(page)).to_contain_text("A short answer.")
    expect(answers(page)).to_have_count(1)


def test_editing_an_earlier_question_asks_again_from_there(site: Site) -> None:
    page = site.open()
    for text in ("First?", "Second?"):
        ask(page, text)
        settled(page)
        expect(answers(page).last).to_contain_text("A short answer.")
    page.locator(".message.user").first.hover()
    page.get_by_role("button", name="Edit this question").first.click()
    editor = page.get_by_label("Edit your question")
    expect(editor).to_have_value("First?")
    editor.fill("Changed?")
    editor.press("Enter")
    expect(page.locator(".bubble")).to_have_text(["Changed?"])
    settled(page)
    assert asked(site) == ["Changed?"]
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".bubble")).to_have_text(["First?", "Second?"])


def test_messages_and_code_are_copied_as_they_were_written(site: Site) -> None:
    answer = "Look:\n\n```python\nx = '<b>'\n```\n"
    site.script.words = [answer]
    page = site.open(permissions=["clipboard-read", "clipboard-write"])
    ask(page, "Code?")
    settled(page)
    clipboard = "navigator.clipboard.readText()"
    page.get_by_role("button", name="Copy this answer").click()
    expect(page.locator("#live")).to_have_text("Copied")
    assert page.evaluate(clipboard) == answer
    page.locator(".copy-code").click()
    expect(page.locator(".copy-code")).to_have_text("Copied")
    assert page.evaluate(clipboard) == "x = '<b>'\n"


def test_conversations_survive_a_reload_and_one_can_go_on(site: Site) -> None:
    page = site.open()
    ask(page, "First topic?")
    settled(page)
    page.get_by_role("button", name="New conversation").click()
    ask(page, "Second topic?")
    settled(page)
    page.reload()
    expect(rows(page)).to_have_text(["Second topic?", "First topic?"])
    expect(answers(page)).to_contain_text("A short answer.")
    page.get_by_role("button", name="First topic?", exact=True).click()
    ask(page, "More?")
    expect(answers(page)).to_have_count(2)
    settled(page)
    assert asked(site) == ["First topic?", "A short answer.", "More?"]


def test_an_answer_interrupted_by_a_reload_is_kept_as_far_as_it_was(site: Site) -> None:
    site.script.words, site.script.pause_s = SLOW, 0.02
    page = site.open()
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word4")
    page.reload()
    expect(answers(page)).to_contain_text("word4")
    expect(answers(page).locator(".facts")).to_contain_text("interrupted")
    assert site.script.cancelled.wait(5)
    site.script.words, site.script.pause_s = ["Whole."], 0
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_contain_text("Whole.")


def test_an_answer_goes_on_while_another_conversation_is_open(site: Site) -> None:
    site.script.words, site.script.pause_s = [f"w{index} " for index in range(40)], 0.02
    page = site.open()
    ask(page, "Long?")
    expect(answers(page)).to_contain_text("w1 ")
    page.get_by_role("button", name="New conversation").click()
    expect(answers(page)).to_have_count(0)
    page.locator("#list .open").filter(has_text="Long?").click()
    expect(answers(page)).to_contain_text("w39")
    settled(page)


def test_settings_reach_the_request_and_can_be_reset(site: Site) -> None:
    page = site.open()
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Top-p").fill("0.5")
    page.get_by_label("Min-p").fill("0.1")
    page.get_by_label("Stop at").fill("END\nSTOP")
    numbers = {
        "Top-k": "40",
        "Most tokens of an answer": "99",
        "Seed": "7",
        "Presence penalty": "0.5",
        "Frequency penalty": "-0.5",
        "Repetition penalty": "1.1",
    }
    for label, value in numbers.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Model", exact=True).select_option("llama-large")
    page.reload()
    ask(page, "Hi.")
    settled(page)
    expected = {
        "model": "llama-large",
        "temperature": 0.2,
        "top_p": 0.5,
        "min_p": 0.1,
        "top_k": 40,
        "max_tokens": 99,
        "seed": 7,
        "stop": ["END", "STOP"],
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1,
    }
    assert {name: site.script.last.get(name) for name in expected} == expected
    assert site.script.last["messages"][0] == {"role": "system", "content": "Be brief."}
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("button", name="Reset sampling").click()
    page.keyboard.press("Escape")
    ask(page, "Hi.")
    settled(page)
    extra = set(site.script.last) - {"model", "messages", "stream", "stream_options"}
    assert {name: site.script.last[name] for name in extra} == {
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 512,
    }


def test_a_setting_that_is_no_value_is_named_and_not_used(site: Site) -> None:
    page = site.open()
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Most tokens of an answer").fill("0")
    expect(page.locator("#set-max_tokens-error")).to_have_text("A whole number from 1 to 1000000.")
    page.keyboard.press("Escape")
    ask(page, "Hi.")
    settled(page)
    assert site.script.last["max_tokens"] == 512


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(site: Site) -> None:
    site.script.key = "right"
    context = site.browser.new_context(base_url=site.url)
    site.contexts.append(context)
    page = context.new_page()
    page.goto("/")
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    dialog.get_by_label("API key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("this key is not known here")
    dialog.get_by_label("API key").fill("right")
    dialog.get_by_label("API key").press("Enter")
    expect(page.get_by_label("Model", exact=True)).to_be_enabled()
    assert site.script.keys_seen == [None, "Bearer wrong", "Bearer right"]
    ask(page, "Hi.")
    settled(page)
    assert "right" not in page.evaluate("JSON.stringify(localStorage)")
    assert "right" in page.evaluate("JSON.stringify(sessionStorage)")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("button", name="Forget API key").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_an_error_is_shown_in_its_words_and_can_be_retried(site: Site) -> None:
    error = {"message": "the queue is full: try again in 3 s", "code": "queue_full"}
    site.script.error = (429, {"error": error})
    page = site.open()
    ask(page, "Hi.")
    trouble = page.get_by_role("alert").filter(has_text="busy")
    expect(trouble).to_contain_text("the queue is full")
    site.script.error = None
    trouble.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_contain_text("A short answer.")
    assert asked(site) == ["Hi."]


def test_a_conversation_that_outgrew_the_model_says_so_and_offers_a_new_one(site: Site) -> None:
    message = "the prompt has 9000 tokens and this model's context is 8192"
    error = {"message": message, "code": "context_length_exceeded"}
    site.script.error = (400, {"error": error})
    page = site.open()
    ask(page, "Hi.")
    trouble = page.get_by_role("alert").filter(has_text="outgrown the model's memory")
    expect(trouble).to_contain_text(message)
    trouble.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()


def test_a_lost_connection_is_told_and_what_came_is_kept(site: Site) -> None:
    site.script.breaks = True
    page = site.open()
    ask(page, "Hi.")
    expect(answers(page)).to_contain_text("The connection was lost")
    expect(answers(page).locator(".prose")).to_have_text("A short answer.")


def test_a_server_that_cannot_be_reached_is_told(site: Site) -> None:
    page = site.open()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Hi.")
    expect(page.get_by_role("alert").filter(has_text="cannot be reached")).to_be_visible()


def test_text_stays_readable_when_markdown_cannot_be_rendered(site: Site) -> None:
    site.script.markdown_fails = True
    site.script.words = ["**a** ", "<b>"]
    page = site.open()
    ask(page, "Hi.")
    settled(page)
    expect(answers(page).locator(".prose")).to_have_text("**a** <b>")


def test_what_the_guard_did_is_said_in_words(site: Site) -> None:
    page = site.open()
    site.script.guard = {"decision": "allow"}
    ask(page, "Hi.")
    settled(page)
    expect(answers(page).last).to_contain_text("Guard: nothing found")
    site.script.guard = {"decision": "warn", "reason": "medical advice"}
    ask(page, "Hi.")
    settled(page)
    expect(answers(page).last).to_contain_text("The guard warns: medical advice")
    site.script.guard = {"decision": "block", "reason": "a secret key"}
    site.script.finish = "content_filter"
    ask(page, "Hi.")
    settled(page)
    expect(answers(page).last).to_contain_text("The guard stopped this: a secret key")


def test_a_question_that_the_guard_refused_says_so(site: Site) -> None:
    message = "the safeguard refuses this request: a weapon"
    site.script.error = (400, {"error": {"message": message, "code": "content_blocked"}})
    page = site.open()
    ask(page, "Hi.")
    expect(page.get_by_role("alert").filter(has_text=message)).to_be_visible()
    expect(answers(page)).to_contain_text("The guard stopped this")


def test_a_cut_answer_says_why(site: Site) -> None:
    site.script.finish = "length"
    page = site.open()
    ask(page, "Hi.")
    settled(page)
    expect(answers(page)).to_contain_text("cut off: token limit reached")


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
