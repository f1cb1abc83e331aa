"""A tiny random model, served in this process and by a real server on a free loopback port."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from puna.inference import Engine, EngineConfig
from puna.model import Llama, LlamaConfig
from puna.serving import Hub, ServeConfig, create_app
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
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=48,
        context=CONTEXT,
    )
    model = Llama(config)
    model.init_weights(seed=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # random text instead of one token again and again
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def new_engine(llama: Llama, tokenizer: Tokenizer) -> Callable[..., Engine]:
    """Builds an engine of the tiny model; arguments are fields of its configuration."""

    def build(**fields: Any) -> Engine:
        defaults = {"weights": "fp32", "cache_tokens": 16_384}
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
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app` in this process, for tests that are coroutines."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    server: uvicorn.Server


Serve = Callable[[FastAPI], AbstractContextManager[Running]]


@pytest.fixture
def serve() -> Serve:
    """Runs an application on a real server, in a thread, on a free loopback port."""

    @contextmanager
    def run(app: FastAPI) -> Iterator[Running]:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                asyncio.run(asyncio.sleep(0.01))
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", server)
        finally:
            server.should_exit = True
            thread.join()

    return run


@pytest.fixture
def server(app: FastAPI, serve: Serve) -> Iterator[Running]:
    """`app` on a real server, for clients of every kind: its address is ``server.url``."""
    with serve(app) as running:
        yield running
