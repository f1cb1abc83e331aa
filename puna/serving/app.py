"""The application: every endpoint behind one gate."""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter, FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from puna import __version__
from puna.safety import Safeguard
from puna.serving import chat, completions, embeddings, responses, tokens
from puna.serving.auth import KeyRing
from puna.serving.config import ServeConfig
from puna.serving.errors import RESPONSES, install_handlers
from puna.serving.gate import Gate
from puna.serving.hub import Hub
from puna.serving.operations import adapters_router, figures_router, probes
from puna.serving.page import page_router
from puna.serving.stats import Figures
from puna.serving.traffic import Traffic
from puna.serving.upstream import Upstream, upstream_router

_bearer = HTTPBearer(auto_error=False, description="An API key.")


def create_app(
    hub: Hub,
    config: ServeConfig,
    *,
    safeguard: Safeguard | None = None,
    upstream: Upstream | None = None,
    closing: Sequence[Callable[[], Awaitable[None]]] = (),
) -> FastAPI:
    """The server as an ASGI application; ``app.state`` has its ``hub`` and its ``traffic``.

    Args:
        hub: the models, started and closed by the caller.
        config: settings.
        safeguard: watches every prompt and answer.
        upstream: another server that answers instead of models; then ``hub`` is a `NoModels`.
        closing: called when the server has ended, on its event loop.

    Raises `UsageError` for a broken file of keys.
    """
    figures = Figures(hub.names())
    traffic = Traffic()
    app = FastAPI(title="Puna", version=__version__, docs_url=None, redoc_url=None)
    app.state.hub = hub
    app.state.traffic = traffic
    app.state.closing = closing if upstream is None else (*closing, upstream.close)
    install_handlers(app)
    locks = [] if config.keys is None else [Security(_bearer)]  # declared where it is asked for
    for router in _api(hub, config, figures, traffic, upstream):
        app.include_router(router, responses=RESPONSES, dependencies=locks)
    public = [probes(hub, traffic), page_router()]
    for router in public:
        app.include_router(router)
    app.add_middleware(
        Gate,
        hub=hub,
        config=config,
        figures=figures,
        traffic=traffic,
        keys=None if config.keys is None else KeyRing(config.keys),
        safeguard=safeguard,
        public=_reads(public),
    )
    if config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app


def _reads(routers: list[APIRouter]) -> Callable[[str, str], bool]:
    """Whether a method and a path only read something of ``routers``."""
    routes = [route for router in routers for route in router.routes]
    paths = [r.path_regex for r in routes if isinstance(r, APIRoute) and "GET" in (r.methods or ())]

    def matches(method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and any(regex.match(path) for regex in paths)

    return matches


def _api(
    hub: Hub,
    config: ServeConfig,
    figures: Figures,
    traffic: Traffic,
    upstream: Upstream | None,
) -> list[APIRouter]:
    """The endpoints that need a key where there are keys."""
    if upstream is not None:
        return [upstream_router(upstream), figures_router(hub, figures, traffic)]
    protocol = [m.router for m in (chat, completions, responses, embeddings, tokens)]
    routers = [*protocol, figures_router(hub, figures, traffic)]
    if config.adapter_folder is not None:
        routers.append(adapters_router(config.adapter_folder))
    return routers
