"""The report: one safe, self-contained page, whatever the run has to show."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.events import Event
from puna.core.pages import shown
from puna.workflow.plots import bits_plot, loss_plot, reward_plot, smooth, training_steps
from puna.workflow.report import comparison, mean_mfu, outcome, write_report
from puna.workflow.summary import stage_rows

HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script><img src=x onerror=alert(2)>&"'
_VOID = {"meta", "link", "br", "img"}
_MAY_POINT_INSIDE = ("#", "data:,")


class Page(HTMLParser):
    """What a browser would make of the page: its elements, with attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def tags(self, *names: str) -> list[tuple[str, dict[str, str | None]]]:
        return [element for element in self.elements if element[0] in names]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def step(stage: str, number: int, steps: int = 100, **more: float) -> Event:
    figures = {"loss": 100.0 / number, "learning_rate": 1e-3, "mfu": 0.5, "seconds": float(number)}
    at = {"time": 1.8e9 + number, "kind": "train_step", "stage": stage, "step": number}
    return {**at, "steps": steps, "tokens": number * 10, **figures, **more}


def event(kind: str, stage: str, **more: Any) -> Event:
    return {"time": 1.8e9, "kind": kind, "stage": stage, **more}


def judged(right: float, bits: float) -> dict[str, Any]:
    return {
        "exact_match": right,
        "exact_match_by_kind": {"addition": right, "word_problem": right / 2},
        "questions": 200,
        "stop_rate": 1.0,
        "in_format": right,
        "full_sentences": right,
        "preference_accuracy": 0.5,
        "preference_accuracy_by_kind": {"truth": 0.5},
        "pairs": 100,
        "bits_per_byte": bits,
    }


SOURCE = {
    "description": "Texts about rivers.",
    "origin": "rivers==1.0",
    "licence": "CC-BY-SA-4.0, https://creativecommons.org/licenses/by-sa/4.0/",
    "attribution": "The river people",
    "read": {"documents": 1200, "chars": 50000},
    "dropped": {"near duplicate": 77},
    "train": {"documents": 1100, "chars": 45000},
    "validation": {"documents": 23, "chars": 900},
    "epochs": 2.0,
}
CARD = {
    "sources": {"rivers": SOURCE},
    "missing": {"wikipedia-en": "no network"},
    "contamination": {"items": 300, "items_too_short": 10, "documents_dropped": 4},
}
TRAINED = {"seconds": 70.0, "steps": 100, "tokens": 1000, "train_seconds": 61.0}
TRAINED |= {"tokens_per_s": 16.4, "parameters": 1234567}
SUMMARY: dict[str, Any] = {
    "name": "rivers",
    "seed": 7,
    "puna": "0.1.0",
    "machine": {"cpu": "A Processor", "cores": 2, "memory_gib": 23.5},
    "model": "dpo/model",
    "stages": {
        "data": {"seconds": 2.0},
        "tokenizer": {"seconds": 1.0, "vocab_size": 4096},
        "baselines": {
            "seconds": 3.0,
            "xz_alone": 2.4,
            "xz_primed": 1.6,
            "ppmd": 1.5,
            "five_gram": 1.27,
        },
        "pretrain": {**TRAINED, "tokens_by_source": {"rivers": 30303}},
        "sft": TRAINED,
        "dpo": TRAINED,
    },
    "evaluation": {
        "untrained": judged(0.0, 4.0),
        "pretrain": judged(0.25, 1.2),
        "sft": judged(0.5, 1.3),
        "dpo": judged(0.64, 1.3),
    },
}


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def put_events(folder: Path, events: list[Event]) -> None:
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def full_run(folder: Path) -> None:
    """The files of a finished run whose models try to break out of the page."""
    put(folder / "data/card.json", CARD)
    (folder / "recipe.yaml").write_text(f"name: rivers  # {HOSTILE}\n")
    for model in SUMMARY["evaluation"]:
        dialogue = {"question": f"Who are you? {HOSTILE}", "answer": HOSTILE, "stopped": False}
        samples = {
            "dialogues": [dialogue],
            "continuations": [{"prompt": "The river", "text": f" ran {HOSTILE}\0"}],
        }
        miss = {"kind": "addition", "prompt": "1 + 1 = ?", "answer": "2", "reply": HOSTILE}
        put(folder / f"evaluate-{model}/samples.json", samples)
        put(folder / f"evaluate-{model}/misses.json", [miss] * 40)
    events = [event("run_start", "")]
    for stage in SUMMARY["stages"]:
        events.append(event("stage_start", stage))
        if stage in ("pretrain", "sft"):
            events += [step(stage, i) for i in range(10, 101, 10)]
        if stage == "dpo":
            rewards = {"reward_accuracy": 0.8, "reward_margin": 1.5}
            events += [step(stage, i, **rewards) for i in range(10, 101, 10)]
        events.append(event("stage_end", stage, seconds=70.0))
    put_events(folder, events)


def rendered(folder: Path, summary: dict[str, Any]) -> str:
    return write_report(folder, summary).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("full")
    full_run(folder)
    return rendered(folder, SUMMARY)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


class TestSafety:
    def test_what_a_model_writes_is_text_and_never_an_element(self, page: Page) -> None:
        assert not page.tags("script", "img", "iframe", "object", "embed", "base", "form")
        handlers = [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
        assert handlers == []
        # one question, an answer and a continuation by each model, the misses, the recipe
        assert page.text.count(HOSTILE) == 1 + 4 + 4 + 12 + 1

    def test_nothing_is_asked_of_any_other_place(self, page: Page, html: str) -> None:
        pointing = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        found = {
            attrs[name] or "" for _, attrs in page.elements for name in pointing & attrs.keys()
        }
        assert all(target.startswith(_MAY_POINT_INSIDE) for target in found)
        style = " ".join(re.findall(r"<style>.*?</style>|style=\"[^\"]*\"", html, re.DOTALL))
        assert "@import" not in style
        assert all(target.startswith("#") for target in re.findall(r"url\((.)", style))
        assert "default-src 'none'" in html  # and the browser would refuse it

    def test_an_address_in_a_licence_stays_readable(self, page: Page) -> None:
        assert "https://creativecommons.org/licenses/by-sa/4.0/" in page.text

    def test_control_characters_are_shown_as_their_pictures(self) -> None:
        assert shown("a\0b\x1b[31m") == "a␀b␛[31m"

    def test_a_text_that_goes_on_and_on_is_cut_and_says_so(self) -> None:
        assert shown(".\n" * 30 + ".").endswith("… (21 more lines)")
        assert shown("x" * 5000).endswith("… (3,800 more characters)")


class TestPage:
    def test_every_head_cell_says_whether_it_heads_a_row_or_a_column(self, page: Page) -> None:
        heads = page.tags("th")
        assert {attrs.get("scope") for _, attrs in heads} == {"row", "col"}
        assert len(page.tags("table")) == len(page.tags("caption"))

    def test_headings_descend_one_level_at_a_time(self, page: Page) -> None:
        levels = [int(tag[1]) for tag, _ in page.tags("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))

    def test_every_figure_is_told_in_words(self, page: Page) -> None:
        told = [attrs["aria-label"] for _, attrs in page.elements if attrs.get("role") == "img"]
        assert len(told) == len(page.tags("svg")) == 5
        assert "Loss of pretrain: 10.000 at step 10, 1.000 at step 100 of 100." in told

    def test_ids_are_unique_and_those_pointed_at_exist(self, page: Page, html: str) -> None:
        counts = Counter(attrs["id"] for _, attrs in page.elements if "id" in attrs)
        assert max(counts.values()) == 1
        pointed_at = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
        assert pointed_at <= counts.keys()

    def test_every_part_of_the_issue_is_there(self, page: Page) -> None:
        for said in (
            "The preference-tuned model answers 64.0% of 200 held-out questions; the pretrained "
            "model needs 1.200 bits per byte of held-out text, a 5-gram model 1.270.",
            "2027-01-15 08:00 UTC",
            "5-gram Kneser-Ney: 1.270",
            "word problem",
            "12 of its 40 wrong answers",
            "16",
            "50%",
            "1 min 10 s",
            "30,303",
            "near duplicate",
            "290 evaluation items were looked for",
            "The river people",
            "Without wikipedia-en: no network",
            "A Processor",
            "name: rivers",
        ):
            assert said in page.text

    def test_the_same_run_gives_the_same_file(self, html: str, tmp_path: Path) -> None:
        full_run(tmp_path)
        assert rendered(tmp_path, SUMMARY) == html

    def test_a_long_run_with_long_texts_stays_below_a_megabyte_and_a_half(
        self, tmp_path: Path
    ) -> None:
        full_run(tmp_path)
        rewards = {"reward_accuracy": 0.8, "reward_margin": 1.5}
        stages = ("pretrain", "sft", "dpo")
        put_events(tmp_path, [step(s, i + 1, 8000, **rewards) for s in stages for i in range(8000)])
        talk = [{"question": str(i), "answer": "la " * 4000, "stopped": True} for i in range(20)]
        for model in SUMMARY["evaluation"]:
            put(tmp_path / f"evaluate-{model}/samples.json", {"dialogues": talk})
        assert len(rendered(tmp_path, SUMMARY).encode()) < 1.5e6


class TestPartialRuns:
    def test_a_run_that_only_tunes_chats_leaves_the_rest_out(self, tmp_path: Path) -> None:
        losses = {"held_out_chats": 12, "held_out_loss_before": 3.21, "held_out_loss": 2.1}
        summary = SUMMARY | {"stages": {"sft": TRAINED | losses}, "evaluation": {}}
        put_events(tmp_path, [event("run_start", ""), step("sft", 100)])
        page = Page(rendered(tmp_path, summary))
        assert "Loss of sft on 12 held-out chats: 3.210 before, 2.100 after." in page.text
        headings = [attrs["id"] for _, attrs in page.tags("h2")]
        assert headings == ["held-out", "training", "timing", "machine"]

    def test_a_run_without_events_or_training_still_has_a_report(self, tmp_path: Path) -> None:
        put(tmp_path / "data/card.json", CARD)
        summary = {"name": "text", "stages": {"data": {"seconds": 2.0}}, "evaluation": {}}
        page = Page(rendered(tmp_path, summary))
        assert [attrs["id"] for _, attrs in page.tags("h2")] == ["timing", "card"]

    def test_an_evaluation_without_text_or_samples_shows_its_figures(self, tmp_path: Path) -> None:
        facts = {k: v for k, v in judged(0.5, 0.0).items() if k != "bits_per_byte"}
        page = Page(rendered(tmp_path, {"name": "m", "stages": {}, "evaluation": {"base": facts}}))
        assert "The model it started from answers 50.0% of 200 held-out questions." in page.text
        assert [attrs["id"] for _, attrs in page.tags("h2")] == ["comparison", "kinds"]

    def test_a_stage_that_left_the_recipe_leaves_the_report(self, tmp_path: Path) -> None:
        full_run(tmp_path)
        summary = SUMMARY | {"stages": {"sft": TRAINED}, "evaluation": {}}
        page = Page(rendered(tmp_path, summary))
        assert len(page.tags("svg")) == 1
        assert "pretrain" not in page.text

    def test_two_that_read_text_both_stand_at_the_top(self, tmp_path: Path) -> None:
        full_run(tmp_path)
        before = SUMMARY["evaluation"]
        models = {"pretrain": before["pretrain"], "cpt": judged(0.3, 3.7), "sft": before["sft"]}
        stages = SUMMARY["stages"] | {"cpt": TRAINED}
        text = Page(rendered(tmp_path, SUMMARY | {"evaluation": models, "stages": stages})).text
        told = "the pretrained model needs 1.200 bits per byte of held-out text, "
        assert f"{told}the model that read on 3.700, a 5-gram model 1.270." in text
        assert "30,303" in text  # of pretraining: a curriculum counts no tokens


class TestResumedRuns:
    def test_steps_done_again_after_a_kill_count_once(self) -> None:
        first = [event("stage_start", "sft"), *(step("sft", i, loss=9.0) for i in (10, 20, 30))]
        again = [
            event("stage_start", "sft"),
            event("train_resume", "sft", step=20),
            *(step("sft", i, loss=1.0) for i in (30, 40)),
        ]
        found = training_steps(first + again)["sft"]
        assert [(e["step"], e["loss"]) for e in found] == [
            (10, 9.0),
            (20, 9.0),
            (30, 1.0),
            (40, 1.0),
        ]

    def test_a_stage_that_started_over_shows_its_new_steps_only(self) -> None:
        old = [event("stage_start", "sft"), *(step("sft", i) for i in (1, 2, 3))]
        new = [event("stage_start", "sft"), step("sft", 10), step("sft", 20)]
        assert [e["step"] for e in training_steps(old + new)["sft"]] == [10, 20]

    def test_a_kill_before_the_first_step_loses_nothing(self) -> None:
        first = [event("stage_start", "sft"), step("sft", 10)]
        killed = [event("stage_start", "sft")]
        again = [event("stage_start", "sft"), event("train_resume", "sft", step=10)]
        assert [e["step"] for e in training_steps(first + killed + again)["sft"]] == [10]

    def test_a_skipped_stage_keeps_its_steps_and_its_time(self, tmp_path: Path) -> None:
        first = [event("stage_start", "sft"), step("sft", 100)]
        first.append(event("stage_end", "sft", seconds=42.0))
        events = [
            event("run_start", ""),
            *first,
            event("run_start", ""),
            event("stage_skip", "sft"),
        ]
        put_events(tmp_path, events)
        summary = SUMMARY | {"stages": {"sft": TRAINED}, "evaluation": {}}
        page = Page(rendered(tmp_path, summary))
        assert "42.0 s" in page.text
        assert "The run took 2 attempts" in page.text
        assert len(page.tags("svg")) == 1


class TestFigures:
    def test_the_best_of_a_row_is_least_for_bits_and_most_for_shares(self) -> None:
        rows = {row.title: row for row in comparison(SUMMARY)}
        assert rows["Validation bits per byte"].best == {1}
        assert rows["Held-out questions, exact match"].best == {3}

    def test_where_all_are_equal_none_is_best(self) -> None:
        rows = {row.title: row for row in comparison(SUMMARY)}
        assert rows["Ends its turn"].best == frozenset()

    def test_without_evaluation_the_outcome_is_what_was_trained(self) -> None:
        summary = {"stages": {"pretrain": TRAINED}, "evaluation": {}}
        assert outcome(summary) == "pretrain: 100 steps, 1,000 tokens."

    def test_without_evaluation_the_outcome_is_what_the_last_stage_held_out(self) -> None:
        found = {"held_out_pairs": 1200, "held_out_accuracy_before": 0.5, "held_out_accuracy": 0.75}
        summary = {"stages": {"pretrain": TRAINED, "dpo": TRAINED | found}, "evaluation": {}}
        expected = "Preference accuracy of dpo on 1,200 held-out pairs: 50.0% before, 75.0% after."
        assert outcome(summary) == expected
        assert stage_rows(summary) == [
            ["dpo", "1,200 pairs", "preference accuracy", "50.0%", "75.0%"]
        ]

    def test_utilisation_of_a_stage_weighs_steps_by_their_seconds(self) -> None:
        steps = [step("sft", 1, mfu=0.2, seconds=3.0), step("sft", 2, mfu=0.6, seconds=4.0)]
        assert mean_mfu(steps) == pytest.approx((0.2 * 3 + 0.6 * 1) / 4)

    @given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(0, 20))
    def test_smoothing_stays_within_the_values(self, values: list[float], reach: int) -> None:
        smoothed = smooth(values, reach)
        assert len(smoothed) == len(values)
        # 1e-9: differences of running sums up to 6e4
        assert all(min(values) - 1e-9 <= mean <= max(values) + 1e-9 for mean in smoothed)

    @given(st.integers(0, 10), st.floats(-5, 5))
    def test_smoothing_does_not_lag_behind_a_slope(self, reach: int, slope: float) -> None:
        line = [slope * i for i in range(50)]
        before_the_end = slice(0, 50 - reach)
        assert smooth(line, reach)[before_the_end] == pytest.approx(line[before_the_end], abs=1e-9)

    def test_figures_take_their_colours_from_the_page(self) -> None:
        steps = [step("dpo", i, reward_accuracy=0.5, reward_margin=0.1) for i in (1, 2, 3)]
        plots = [
            loss_plot("dpo", steps, {"0": 3.0, "9": 2.0}),
            reward_plot("dpo", steps),
            bits_plot({"a": 2}, {"b": 1}),
        ]
        for plot in plots:
            painted = re.findall(r"(?:fill|stroke): ?([^;\"]+)", plot.svg)
            assert set(painted) <= {"none", *(f"var(--{n})" for n in NAMES)}

    def test_labels_of_a_figure_are_escaped(self) -> None:
        assert "&lt;script&gt;" in bits_plot({"<script>": 1.0}, {}).svg


NAMES = ("muted", "line", "first", "second")
