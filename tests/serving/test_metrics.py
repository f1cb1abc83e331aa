import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from serving_helpers import Running, Serve, logged, router, slow_down

from puna.inference import Engine
from puna.serving import Hub, ServeConfig, create_app
from puna.serving.stats import FIRST_TOKEN_BOUNDS, Durations, Rate

PROMPT = [1, 2, 3, 4]


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine()


@pytest.fixture
def start(engine: Engine, serve: Serve) -> Iterator[Callable[..., Running]]:
    """Starts a server of the tiny model with these settings."""
    from contextlib import ExitStack

    hub = Hub({"tiny": engine})
    hub.start()
    with ExitStack() as stack:

        def run(**fields: Any) -> Running:
            app = create_app(hub, ServeConfig(**fields))
            app.include_router(router)
            running: Running = stack.enter_context(serve(app))
            return running

        yield run
    hub.close()


def ask(running: Running, **fields: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/test/generate", json={"prompt": PROMPT} | fields)


def samples(running: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{running.url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"puna_{name}", frozenset(labels.items())


def test_the_metrics_count_what_happened(start: Callable[..., Running]) -> None:
    running = start(log_requests=False)
    for _ in range(3):
        assert ask(running, max_tokens=9, n=2).status_code == 200
    assert ask(running, model="none").status_code == 404
    assert ask(running, prompt=[1] * 300).status_code == 400
    found = samples(running)
    tiny = {"model": "tiny"}
    assert found[key("generated_tokens_total", **tiny)] == 3 * 2 * 9
    assert found[key("generations_finished_total", **tiny)] == 6
    assert found[key("time_to_first_token_seconds_count", **tiny)] == 6
    assert found[key("inter_token_seconds_count", **tiny)] <= 6 * 8
    assert found[key("requests_running", **tiny)] == 0
    assert found[key("cache_pages_used", **tiny)] == 0
    assert found[key("requests_in_hand")] == 0
    route = {"method": "POST", "endpoint": "/test/generate"}
    counts = {
        s: found[key("http_requests_total", status=s, **route)] for s in ("200", "400", "404")
    }
    assert counts == {"200": 3, "400": 1, "404": 1}


def test_addresses_that_do_not_exist_make_no_new_series(start: Callable[..., Running]) -> None:
    running = start(log_requests=False)
    for n in range(5):
        assert httpx.get(f"{running.url}/nowhere/{n}").status_code == 404
    series = {labels for name, labels in samples(running) if name == "puna_http_requests_total"}
    assert len([labels for labels in series if ("status", "404") in labels]) == 1


def test_the_dashboard_sees_the_engine_at_work(
    start: Callable[..., Running], engine: Engine
) -> None:
    slow_down(engine, 0.01)
    running = start(log_requests=False)
    assert ask(running, max_tokens=120).status_code == 200
    data = httpx.get(f"{running.url}/stats/data").json()
    model = data["models"]["tiny"]
    assert model["engine"]["generated_tokens"] == 120
    assert model["requests"] == 1
    assert 0 < model["tokens_per_s"] <= 12, "120 tokens over the last ten seconds"
    assert 10 <= model["inter_token_ms"]["p50"] <= model["inter_token_ms"]["p95"]
    assert model["ttft_ms"]["p50"] >= 10
    assert data["requests"] == {"in_hand": 0, "total": 1, "by_status": {"200": 1}}
    assert data["draining"] is False


def test_a_log_line_has_the_figures_and_nobodys_text(
    start: Callable[..., Running], capfd: pytest.CaptureFixture[str], engine: Engine
) -> None:
    secret = "The llama grazes on the high grassland"
    prompt = engine.tokenizer.encode(secret)
    running = start()
    text = ask(running, prompt=prompt, max_tokens=20).json()["texts"][0]
    answer = ask(running, prompt=prompt, max_tokens=20)
    httpx.get(f"{running.url}/health")
    written = logged(capfd, 2)
    lines = [json.loads(line) for line in written.splitlines()]
    assert len(lines) == 2, "probes are not logged"
    line = lines[1]
    assert line["id"] == answer.headers["x-request-id"]
    assert line["endpoint"] == "POST /test/generate"
    assert (line["model"], line["key"], line["status"]) == ("tiny", None, 200)
    assert (line["prompt_tokens"], line["generated_tokens"]) == (len(prompt), 20)
    assert line["cached_tokens"] > 0, "the second time the prompt is known"
    assert line["finish"] == "length"
    assert 0 < line["ttft_ms"] <= line["duration_ms"]
    assert "llama" not in written
    assert text[:10] not in written


def test_text_is_logged_where_that_is_asked_for(
    start: Callable[..., Running], capfd: pytest.CaptureFixture[str], engine: Engine
) -> None:
    running = start(log_text=True)
    prompt = engine.tokenizer.encode("The llama grazes")
    texts = ask(running, prompt=prompt, n=2).json()["texts"]
    (line,) = map(json.loads, logged(capfd, 1).splitlines())
    assert line["prompts"] == ["The llama grazes"] * 2
    assert line["answers"] == texts


@given(st.lists(st.floats(0, 200), min_size=1, max_size=200))
def test_a_histogram_agrees_with_counting_by_hand(durations: list[float]) -> None:
    histogram = Durations(FIRST_TOKEN_BOUNDS)
    for seconds in durations:
        histogram.add(seconds)
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        below += count
        assert below == sum(seconds <= bound for seconds in durations)
    assert sum(histogram.counts) == len(durations)
    assert histogram.sum == pytest.approx(sum(durations))
    assert histogram.percentiles_ms()["p95"] >= histogram.percentiles_ms()["p50"]  # type: ignore[operator]


def test_percentiles_are_of_the_last_thousand() -> None:
    histogram = Durations(FIRST_TOKEN_BOUNDS)
    assert histogram.percentiles_ms() == {"p50": None, "p95": None}
    for n in range(5_000):
        histogram.add(1.0 if n < 4_000 else (n - 4_000) / 1_000)
    found = histogram.percentiles_ms()
    assert found["p50"] == pytest.approx(500, abs=1)
    assert found["p95"] == pytest.approx(949, abs=1)


def test_a_rate_forgets_after_ten_seconds() -> None:
    rate = Rate()
    for second in range(20):
        rate.add(7, second + 0.5)
    assert rate.per_second(20.1) == 7
    assert rate.per_second(25.1) == pytest.approx(3.5)
    assert rate.per_second(60) == 0
