"""``/metrics``: the server's figures for Prometheus, put together when they are asked for."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from puna.serving.hub import Hub
from puna.serving.stats import Durations, Figures
from puna.serving.traffic import Traffic

_ENGINE_GAUGES = {
    "running": ("requests_running", "Requests being decoded or read."),
    "waiting": ("requests_waiting", "Requests in the queue."),
    "waiting_tokens": ("prompt_tokens_waiting", "Prompt tokens still to read."),
    "pages": ("cache_pages", "Pages of the key-value cache."),
    "pages_used": ("cache_pages_used", "Pages that running requests hold."),
    "pages_cached": ("cache_pages_cached", "Pages kept for prompts to come."),
}
_ENGINE_COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens computed."),
    "cached_tokens": ("prefix_cache_hit_tokens", "Prompt tokens that the prefix cache saved."),
    "generated_tokens": ("generated_tokens", "Tokens generated."),
    "finished": ("generations_finished", "Generations that ended by themselves."),
    "cancelled": ("generations_cancelled", "Generations that were cancelled."),
    "failed": ("generations_failed", "Generations that the model failed on."),
    "drafted_tokens": ("drafted_tokens", "Tokens proposed by speculation."),
    "accepted_tokens": ("accepted_tokens", "Proposed tokens that were right."),
}


class _Figures(Collector):
    def __init__(self, hub: Hub, figures: Figures, traffic: Traffic) -> None:
        self._hub = hub
        self._figures = figures
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        """Every metric of the server and of its engines."""
        yield from self._engines()
        yield from self._models()
        yield from self._server()

    def _engines(self) -> Iterator[Metric]:
        states = [(served.name, served.engine.stats()) for served in self._hub.models()]
        for field, (name, text) in _ENGINE_GAUGES.items():
            gauge = GaugeMetricFamily(f"puna_{name}", text, labels=["model"])
            for model, state in states:
                gauge.add_metric([model], getattr(state, field))
            yield gauge
        for field, (name, text) in _ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(f"puna_{name}", text, labels=["model"])
            for model, state in states:
                counter.add_metric([model], getattr(state, field))
            yield counter

    def _models(self) -> Iterator[Metric]:
        first = HistogramMetricFamily(
            "puna_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            labels=["model"],
        )
        inter = HistogramMetricFamily(
            "puna_inter_token_seconds", "Between an answer's tokens.", labels=["model"]
        )
        for model, figures in self._figures.models.items():
            _add(first, model, figures.first_token)
            _add(inter, model, figures.inter_token)
        yield first
        yield inter

    def _server(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "puna_http_requests",
            "Answers by endpoint and status.",
            labels=["method", "endpoint", "status"],
        )
        for (method, endpoint, status), n in self._figures.answers.items():
            answers.add_metric([method, endpoint, str(status)], n)
        yield answers
        rejected = CounterMetricFamily(
            "puna_rejected_requests", "Error answers by reason.", labels=["reason"]
        )
        for reason, n in self._figures.rejected.items():
            rejected.add_metric([reason], n)
        yield rejected
        verdicts = CounterMetricFamily(
            "puna_guard_verdicts", "What the safeguard found.", labels=["stage", "decision"]
        )
        for labels, n in self._figures.verdicts.items():
            verdicts.add_metric(list(labels), n)
        yield verdicts
        yield GaugeMetricFamily(
            "puna_requests_in_hand", "Requests let in and not done.", len(self._traffic)
        )
        yield GaugeMetricFamily("puna_uptime_seconds", "Since the start.", self._figures.uptime_s)


def _add(family: HistogramMetricFamily, model: str, durations: Durations) -> None:
    edges = [*map(str, durations.bounds), "+Inf"]
    family.add_metric(
        [model], list(zip(edges, accumulate(durations.counts), strict=True)), durations.sum
    )


class Metrics:
    """Renders the figures as Prometheus reads them."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, hub: Hub, figures: Figures, traffic: Traffic) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(hub, figures, traffic))

    def render(self) -> bytes:
        """Text exposition format, version 0.0.4."""
        return generate_latest(self._registry)
