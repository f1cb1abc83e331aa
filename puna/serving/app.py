"""The application: every endpoint behind one gate."""

from fastapi import APIRouter, FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer

from puna import __version__
from puna.core.errors import UsageError
from puna.serving.auth import KeyRing
from puna.serving.config import ServeConfig
from puna.serving.errors import RESPONSES, install_handlers
from puna.serving.gate import Gate, is_loopback
from puna.serving.guard import Safeguard
from puna.serving.hub import Hub
from puna.serving.operations import adapters_router, figures_router, probes
from puna.serving.stats import Figures
from puna.serving.traffic import Traffic

_bearer = HTTPBearer(auto_error=False, description="An API key; not needed where none are set up.")


def create_app(hub: Hub, config: ServeConfig, *, safeguard: Safeguard | None = None) -> FastAPI:
    """The server as an ASGI application; ``app.state.traffic`` knows what is in hand.

    Args:
        hub: the models, started and closed by the caller.
        config: settings.
        safeguard: watches every prompt and answer.

    Raises `UsageError` for an address that others reach without keys, a broken file of keys, or
    adapters to load at run time without keys.
    """
    if config.keys is None and not is_loopback(config.host):
        raise UsageError(
            f"--host {config.host} can be reached by others: give --keys FILE "
            "(made by 'puna keys add NAME --file FILE')"
        )
    if config.keys is None and config.adapter_folder is not None:
        raise UsageError("--adapter-folder lets clients load adapters: give --keys FILE too")
    figures = Figures(hub.names())
    traffic = Traffic()
    app = FastAPI(title="Puna", version=__version__, docs_url=None, redoc_url=None)
    app.state.traffic = traffic
    install_handlers(app)
    for router in _api(hub, config, figures, traffic):
        app.include_router(router, responses=RESPONSES, dependencies=[Security(_bearer)])
    public = [probes(hub, traffic)]
    for router in public:
        app.include_router(router)
    open_paths = {route.path for router in public for route in router.routes}
    app.add_middleware(
        Gate,
        hub=hub,
        config=config,
        figures=figures,
        traffic=traffic,
        keys=None if config.keys is None else KeyRing(config.keys),
        safeguard=safeguard,
        public=lambda method, path: method in ("GET", "HEAD") and path in open_paths,
    )
    if config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app


def _api(hub: Hub, config: ServeConfig, figures: Figures, traffic: Traffic) -> list[APIRouter]:
    """The endpoints that need a key where there are keys."""
    routers = [figures_router(hub, figures, traffic)]
    if config.adapter_folder is not None:
        routers.append(adapters_router(config.adapter_folder))
    return routers
