"""Endpoints for those who run the server: health, readiness, figures, adapters."""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from puna.serving.call import Call, call_of
from puna.serving.errors import ApiError
from puna.serving.hub import Hub
from puna.serving.metrics import Metrics
from puna.serving.stats import Figures
from puna.serving.traffic import Traffic


class State(BaseModel):
    """A probe's answer."""

    status: str


def probes(hub: Hub, traffic: Traffic) -> APIRouter:
    """``/health`` and ``/ready``, which need no key."""
    router = APIRouter(tags=["operations"])
    unavailable: dict[int | str, dict[str, Any]] = {503: {"model": State}}

    @router.get("/health", responses=unavailable)
    async def health(response: Response) -> State:
        """Whether the engines live; if not, start the server again."""
        if hub.alive:
            return State(status="ok")
        response.status_code = 503
        return State(status="an engine has stopped")

    @router.get("/ready", responses=unavailable)
    async def ready(response: Response) -> State:
        """Whether new requests are let in."""
        if hub.alive and not traffic.draining:
            return State(status="ready")
        response.status_code = 503
        return State(status="stopping" if traffic.draining else "an engine has stopped")

    return router


def figures_router(hub: Hub, figures: Figures, traffic: Traffic) -> APIRouter:
    """``/metrics`` and ``/stats/data``."""
    router = APIRouter(tags=["operations"])
    metrics = Metrics(hub, figures, traffic)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.render(), media_type=metrics.content_type)

    @router.get("/stats/data")
    async def stats() -> dict[str, Any]:
        """Figures for the dashboard; see `snapshot`."""
        return snapshot(hub, figures, traffic)

    return router


def snapshot(hub: Hub, figures: Figures, traffic: Traffic) -> dict[str, Any]:
    """The server at this moment.

    ``uptime_s``, ``draining``, ``requests`` (``in_hand``, ``total``, ``by_status``), ``rejected``
    by reason, ``guard`` by stage and decision, and ``models``: for each engine its ``adapters``,
    its `Stats` as ``engine``, and for the names on it together ``requests``, ``tokens_per_s``
    (generated, over the last 10 s), ``ttft_ms`` and ``inter_token_ms`` (``p50`` and ``p95`` of the
    last 1,000; null before the first).
    """
    by_status: Counter[str] = Counter()
    for (_, _, status), n in figures.answers.items():
        by_status[str(status)] += n
    guard: dict[str, dict[str, int]] = {
        stage: {decision: figures.verdicts[stage, decision] for decision in _DECISIONS}
        for stage in ("input", "output")
    }
    return {
        "uptime_s": round(figures.uptime_s, 1),
        "draining": traffic.draining,
        "requests": {
            "in_hand": len(traffic),
            "total": by_status.total(),
            "by_status": dict(by_status),
        },
        "rejected": dict(figures.rejected),
        "guard": guard,
        "models": {served.name: _model(hub, figures, served.name) for served in hub.models()},
    }


_DECISIONS = ("allow", "warn", "block")


def _model(hub: Hub, figures: Figures, name: str) -> dict[str, Any]:
    engine = hub.get(name).engine
    found = figures.of(name)
    adapters = [other for other in hub.names() if hub.get(other).engine is engine and other != name]
    rates = [figures.of(each).rate.per_second(time.perf_counter()) for each in (name, *adapters)]
    return {
        "engine": asdict(engine.stats()),
        "adapters": adapters,
        "requests": sum(figures.of(each).requests for each in (name, *adapters)),
        "tokens_per_s": round(sum(rates), 1),
        "ttft_ms": found.first_token.percentiles_ms(),
        "inter_token_ms": found.inter_token.percentiles_ms(),
    }


class LoadAdapter(BaseModel):
    """Which adapter to load."""

    lora_name: str = Field(min_length=1, max_length=100)
    """The name it is served by."""
    lora_path: str = Field(min_length=1, max_length=4096)
    """Its folder, below the one the server allows."""
    base_model_name: str | None = None
    """The model it belongs to; the first one by default."""


class UnloadAdapter(BaseModel):
    """Which adapter to unload."""

    lora_name: str = Field(min_length=1, max_length=100)


def adapters_router(folder: Path) -> APIRouter:
    """Loading and unloading of adapters below ``folder``, for admin keys."""
    router = APIRouter(prefix="/v1", tags=["adapters"])
    root = folder.resolve()

    async def admin(call: Annotated[Call, Depends(call_of)]) -> Call:
        if call.holder is None or not call.holder.entry.admin:
            raise ApiError(
                403,
                "this needs an admin key: 'puna keys add NAME --admin'",
                type="permission_error",
                code="admin_key_needed",
            )
        return call

    @router.post("/load_lora_adapter")
    async def load_lora_adapter(
        wanted: LoadAdapter, call: Annotated[Call, Depends(admin)]
    ) -> State:
        """Serve an adapter by its name from now on."""
        path = (root / wanted.lora_path).resolve()
        if not path.is_relative_to(root) or not path.is_dir():
            raise ApiError(
                400, "no such folder below the server's adapter folder", param="lora_path"
            )
        await call.hub.load_adapter(wanted.lora_name, path, wanted.base_model_name)
        return State(status=f"'{wanted.lora_name}' is loaded")

    @router.post("/unload_lora_adapter")
    async def unload_lora_adapter(
        wanted: UnloadAdapter, call: Annotated[Call, Depends(admin)]
    ) -> State:
        """Serve an adapter no more."""
        await call.hub.unload_adapter(wanted.lora_name)
        return State(status=f"'{wanted.lora_name}' is unloaded")

    return router
