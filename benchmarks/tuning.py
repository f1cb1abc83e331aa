"""What the tuning benchmarks share: a model, data of chat length, and loops that take turns.

Each side runs its own trainer's loop in a process of its own. The loop stops before every step
until it is asked to go on, so the steps of the sides alternate and meet the same weather.
"""

import json
import os
import sys
import time
from collections.abc import Container, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from harness import Claim, Side, rounds

from puna.core.devices import default_device as device
from puna.core.devices import describe_machine, peak_memory

SMALL = {"dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 1408, "context": 1024}
SHAPES = ("small", "1b", "3b")  # the last two for a GPU
LEARNING_RATE = 1e-6
GPU_WARM_UP = 4  # steps: kernels are compiled and chosen, the allocator meets every length
STATE_BYTES = 16  # of a parameter under AdamW: weight, gradient and two moments in fp32


class Turns:
    """A training process's half of the game: it waits for a line, steps, and answers.

    Made before the model is loaded, so that ``before`` is the memory of the libraries alone.
    """

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print must not come between
        self.before = resident_bytes()
        self._started = 0.0

    def begin(self) -> None:
        """Wait to be asked for a step; the process ends when nobody asks any more."""
        if not sys.stdin.readline():
            os._exit(0)
        self._started = time.perf_counter()

    def end(self, n_tokens: int, **figures: float) -> None:
        """Tell how long the step took."""
        synchronise()
        seconds = time.perf_counter() - self._started
        peak = peak_bytes()
        answer = {"tokens_per_s": n_tokens / seconds, "seconds": seconds}
        memory = {"grown_bytes": peak - self.before, "peak_bytes": peak}
        self._replies.write(json.dumps(answer | memory | figures) + "\n")
        self._replies.flush()


def turn_taking(turns: Turns, counts: list[int]) -> Any:
    """A callback of transformers' trainers: a turn is a step, of the next of ``counts`` tokens."""
    from transformers import TrainerCallback

    class TakeTurns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: object, **__: object) -> None:
            turns.begin()

        def on_step_end(self, *_: object, **__: object) -> None:
            turns.end(counts.pop(0))

    return TakeTurns()


def on_gpu() -> bool:
    """Whether the sides train on a GPU."""
    return torch.cuda.is_available()


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if on_gpu():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """The most memory this process had: of the GPU where there is one."""
    return peak_memory("cuda" if on_gpu() else "cpu")


def resident_bytes() -> int:
    """Memory of this process that is in use now; of the GPU where there is one."""
    if on_gpu():
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Sides:
    """Processes by name, ended together."""

    def __init__(self, commands: Mapping[str, list[str]]) -> None:
        self._commands = commands
        self._sides: dict[str, Side] = {}

    def __enter__(self) -> Self:
        self._sides = {name: Side(*command) for name, command in self._commands.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides.values():
            side.close()

    def medians(self, repeats: int, warm_up: int = 1) -> dict[str, dict[str, float]]:
        """Medians of each side's steps after the first, which warm it up."""
        asked = {name: side.ask for name, side in self._sides.items()}
        return rounds(asked, repeats, warm_up=warm_up)


def measure(
    commands: Mapping[str, list[str]], repeats: int, ours: Container[str] = ("puna",)
) -> dict[str, dict[str, float]]:
    """Medians of each side's steps: in turn, or one side after the other on a GPU.

    A GPU is nobody else's, and large models do not fit side by side. A side that fails there, for
    want of memory, say, is left out; those of Puna, ``ours``, may not.
    """
    if not on_gpu():
        with Sides(commands) as running:
            return running.medians(repeats)
    found: dict[str, dict[str, float]] = {}
    for name, command in commands.items():
        with Sides({name: command}) as running:
            try:
                found |= running.medians(repeats, warm_up=GPU_WARM_UP)
            except RuntimeError as error:
                if name in ours:
                    raise
                print(f"{name}: {error}", file=sys.stderr, flush=True)
    return found


def working_bytes(figures: Mapping[str, float], n_params: int) -> float:
    """Memory beyond the libraries and what AdamW needs for every parameter."""
    return figures["grown_bytes"] - STATE_BYTES * n_params


def build_folder(folder: Path, vocab_size: int, shape: str = "small") -> int:
    """Write the model all sides load, with a small tokenizer; its number of parameters.

    ``shape`` "1b" and "3b" are those of Llama 3.2. A model that is there already stays.
    """
    import train_gpu

    from puna.core.errors import UsageError
    from puna.formats import load_config, save_model
    from puna.model import Llama, LlamaConfig
    from puna.model.config import llama_config
    from puna.tokenizer import Tokenizer

    if (folder / "config.json").exists():
        found = load_config(folder)
        layers = (
            SMALL["n_layers"] if shape == "small" else llama_config(f"llama3.2-{shape}").n_layers
        )
        if (found.vocab_size, found.n_layers) != (vocab_size, layers):
            raise UsageError(f"{folder} holds another model: give --folder a new one")
        return found.n_params()
    if shape == "small":
        fields = SMALL | {"vocab_size": vocab_size, "tie_embeddings": True}
        model = Llama(LlamaConfig.parse(fields, where="benchmark"))
        model.init_weights(seed=1)
    else:
        published = {"rope_scaling": None, "context": 8192, "vocab_size": vocab_size}
        model = train_gpu.new_model(llama_config(f"llama3.2-{shape}", **published), device())
    save_model(
        folder, model, Tokenizer.train(["Hello there, how are you? "] * 9, 280, n_special=16)
    )
    n_params = model.config.n_params()
    del model
    if on_gpu():
        torch.cuda.empty_cache()  # for the sides
    return n_params


def random_ids(rng: np.random.Generator, least: int, most: int) -> list[int]:
    """A text of some length between the two, its tokens drawn from those all vocabularies have."""
    ids: list[int] = rng.integers(0, 8000, int(rng.integers(least, most + 1))).tolist()
    return ids


def speed_claim(name: str, ours: Mapping[str, float], theirs: Mapping[str, float], least: float,
                peer: str) -> Claim:  # fmt: skip
    """Tokens per second against a peer's."""
    return Claim(name, ours["tokens_per_s"], least, theirs["tokens_per_s"], peer)


def machine() -> dict[str, Any]:
    """The facts that belong beside the figures, with the load when it began."""
    facts: dict[str, Any] = describe_machine()
    versions = {name: metadata.version(name) for name in ("transformers", "trl")}
    return facts | versions | {"load": round(os.getloadavg()[0], 2)}


def show(report: dict[str, Any]) -> None:
    """Figures as JSON, so that a run which is cut off has said something."""
    print(json.dumps(report), flush=True)
