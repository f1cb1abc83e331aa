"""The models a server offers, by name: engines, and the adapters that run on them."""

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from puna.core.errors import PunaError, UsageError
from puna.inference import AsyncEngine, Engine, Request, Sampling
from puna.serving.errors import ApiError
from puna.tokenizer import Tokenizer


@dataclass(frozen=True)
class Served:
    """A name that clients may ask for, and what answers."""

    name: str
    engine: AsyncEngine
    tokenizer: Tokenizer
    adapter: str | None
    """The LoRA adapter that requests must name; None is the model itself."""
    created: int
    """Unix time at which it became available."""
    context: int
    """Most tokens of prompt and answer together."""


class Hub:
    """Models by name.

    Args:
        engines: one for each name; nothing else may use them from now on. The first is the default
            for adapters that name no model.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        assert engines, "a server needs a model"
        self._served = {name: _served(name, engine) for name, engine in engines.items()}
        self._models = tuple(engines)

    def start(self) -> None:
        """Start the engines' threads."""
        for name in self._models:
            self._served[name].engine.start()

    def close(self) -> None:
        """Stop the engines' threads; each ends its current step. Again, it does nothing."""
        for name in self._models:
            self._served[name].engine.close()

    @property
    def alive(self) -> bool:
        """Whether every engine's thread runs."""
        return all(served.engine.alive for served in self.models())

    def names(self) -> list[str]:
        """Every name that is served: models first, then adapters."""
        return list(self._served)

    def models(self) -> list[Served]:
        """The models themselves, without adapters: one for each engine."""
        return [self._served[name] for name in self._models]

    def get(self, name: str) -> Served:
        """What is served as ``name``; raises `ApiError` 404 when nothing is."""
        served = self._served.get(name)
        if served is None:
            near = difflib.get_close_matches(name, self._served, n=1)
            mend = f"did you mean '{near[0]}'?" if near else f"there is {', '.join(self._served)}"
            raise ApiError(
                404, f"no model '{name[:100]}': {mend}", param="model", code="model_not_found"
            )
        return served

    async def load_adapter(self, name: str, folder: Path, model: str | None = None) -> None:
        """Serve the LoRA adapter in ``folder`` as ``name``, on ``model``.

        Raises `UsageError` for a name that is taken or a folder that does not fit the model.
        """
        if not name or len(name) > 100:
            raise UsageError("an adapter's name has 1 to 100 characters")
        if name in self._served:
            raise UsageError(f"'{name}' is served already: unload it or take another name")
        base = self.get(model or self._models[0])
        await base.engine.load_adapter(name, folder)
        self._served[name] = Served(
            name, base.engine, base.tokenizer, name, int(time.time()), base.context
        )

    async def unload_adapter(self, name: str) -> None:
        """Serve ``name`` no more; raises `UsageError` when it is no adapter, or in use."""
        served = self._served.get(name)
        if served is None or served.adapter is None:
            raise UsageError(f"no adapter '{name[:100]}' is loaded")
        await served.engine.unload_adapter(name)  # first: one in use goes on being served
        del self._served[name]


def warm_up(engine: Engine) -> None:
    """Run short requests, so that compiled code is ready before the first client comes.

    First one alone, then two together: the compiler makes code of its own for a single row, and for
    prompts, which have more than one token. Raises `PunaError` where the engine cannot run them.
    """
    request = Request(
        [engine.tokenizer.eos_id] * 2, Sampling(max_new_tokens=3, ignore_stop_tokens=True)
    )
    for n_rows in (1, 2):
        for _ in range(n_rows):
            engine.submit(request)
            _step(engine)  # the queue may have room for one only
        while not engine.idle:
            _step(engine)


def _step(engine: Engine) -> None:
    for _, delta in engine.step():
        if delta.error is not None:
            raise PunaError(f"the model does not run: {delta.error}")


def _served(name: str, engine: Engine) -> Served:
    return Served(
        name, AsyncEngine(engine), engine.tokenizer, None, int(time.time()), engine.context
    )
