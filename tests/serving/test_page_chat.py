"""The web chat in Chromium, against a server that follows a script: questions and answers."""

import re

from page_site import Site, answers, ask, asked, rows, settled
from playwright.sync_api import expect

pytest_plugins = ["page_fixtures"]

SLOW = [f"word{index} " for index in range(400)]


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
