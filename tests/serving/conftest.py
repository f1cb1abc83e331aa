"""A tiny random model, served in this process and by a real server on a free loopback port."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from serving_helpers import Running, Serve, noisy_llama

from puna.inference import Engine, EngineConfig
from puna.model import Llama
from puna.serving import Hub, ServeConfig, create_app
from puna.serving.lifecycle import listen, new_server
from puna.tokenizer import Tokenizer

TEXTS = [
    "The llama grazes on the high grassland, 4,000 metres above the sea.",
    "In 2024 there were about 3,900,000 llamas; don't count them twice!",
    "Ein Lama frisst Gras. Une lama mange de l'herbe. Grüße, 你好 🦙\n\n\tdef f(x): return x",
]
CONTEXT = 256


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, vocab_size=384, n_special=32)


@pytest.fixture(scope="session")
def llama(tokenizer: Tokenizer) -> Llama:
    return noisy_llama(tokenizer.vocab_size, CONTEXT, seed=5)


@pytest.fixture
def new_engine(llama: Llama, tokenizer: Tokenizer) -> Callable[..., Engine]:
    """Builds an engine of the tiny model; arguments are fields of its configuration."""

    def build(**fields: Any) -> Engine:
        defaults = {"page_size": 8, "weights": "fp32", "cache_tokens": 16_384}
        return Engine(llama, tokenizer, EngineConfig.parse(defaults | fields, where="test"))

    return build


@pytest.fixture
def hub(new_engine: Callable[..., Engine]) -> Iterator[Hub]:
    """Serves the tiny model as "tiny"."""
    hub = Hub({"tiny": new_engine()})
    hub.start()
    yield hub
    hub.close()


@pytest.fixture
def app(hub: Hub) -> FastAPI:
    """The whole application over `hub`, without keys."""
    return create_app(hub, ServeConfig(log_requests=False))


@pytest.fixture
def anyio_backend() -> str:
    """Tests that are coroutines (``pytest.mark.anyio``) run on asyncio."""
    return "asyncio"


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app` in this process, for tests that are coroutines."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Runs an application on a real server, in a thread, on a free loopback port.

    Arguments are the application and fields of `ServeConfig` that matter to the server itself.
    """

    @contextmanager
    def run(app: FastAPI, **fields: Any) -> Iterator[Running]:
        config = ServeConfig(port=0, **fields)
        up = threading.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        def started() -> None:
            loops.append(asyncio.get_running_loop())
            up.set()

        with listen(config) as listener:
            server = new_server(app, config, started)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            port = listener.getsockname()[1]
            thread.start()
            assert up.wait(30), "the server did not start"
            running = Running(f"http://127.0.0.1:{port}", port, server, loops[0])
            try:
                yield running
            finally:
                for _ in range(2):  # the second time it does not wait for requests in hand
                    if thread.is_alive():
                        running.stop()
                thread.join(30)
                assert not thread.is_alive(), "the server did not end"

    return run


@pytest.fixture
def server(app: FastAPI, serve: Serve) -> Iterator[Running]:
    """`app` on a real server, for clients of every kind: its address is ``server.url``."""
    with serve(app) as running:
        yield running
