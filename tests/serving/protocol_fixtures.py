"""One server for a module of tests: a tiny random model with room for tools in its context."""

from collections.abc import Iterator

import openai
import pytest
from protocol_api import CONTEXT, MODEL, Api
from serving_helpers import Serve, noisy_llama

from puna.inference import Engine, EngineConfig
from puna.model import Llama
from puna.serving import Hub, ServeConfig, create_app
from puna.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def roomy(tokenizer: Tokenizer) -> Llama:
    """Random weights: text is noise, so only what the protocol promises can be tested."""
    return noisy_llama(tokenizer.vocab_size, CONTEXT, seed=6)


@pytest.fixture(scope="module")
def api(roomy: Llama, tokenizer: Tokenizer, serve: Serve) -> Iterator[Api]:
    config = EngineConfig.parse({"weights": "fp32", "cache_tokens": 65_536}, where="test")
    hub = Hub({MODEL: Engine(roomy, tokenizer, config)})
    hub.start()
    with serve(create_app(hub, ServeConfig(log_requests=False))) as running:
        yield Api(running.url, tokenizer, roomy)
    hub.close()


@pytest.fixture(scope="module")
def ai(api: Api) -> Iterator[openai.OpenAI]:
    """OpenAI's client of `api`."""
    with api.openai() as client:
        yield client
