"""A small model trained under one layout after the other by the same processes."""

import json
import math
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from puna.core.errors import PunaError
from puna.core.events import EventLog
from puna.data import Batch, PackedRows, Share, TokenFile
from puna.model import Llama, LlamaConfig
from puna.parallel import Layout, Mesh, here
from puna.parallel.folders import load_spread, save_spread
from puna.parallel.parallelize import parallelize
from puna.training import LoopConfig, Outcome, RowSource, next_token, train
from puna.training.loop import AfterStep

VOCAB, ROW, STEPS, ROWS = 64, 48, 5, 16
LOOP = LoopConfig(
    steps=STEPS,
    batch_rows=ROWS,
    learning_rate=1e-3,
    warmup_steps=2,
    clip_norm=0.1,  # below the norm of every step: clipping is always at work
    checkpoint_every=STEPS,
    log_every=1,
    precision="fp32",
)
Runs = dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]
"""Name of a run: its layout, what differs in the loop, and in the model."""

CHAIN: Runs = {
    "chain fsdp": ({"dp_shard": 4}, {}, {}),
    "chain tp": ({"tp": 2, "dp_shard": 2}, {}, {}),
    "chain zbv": ({"pp": 2, "dp_shard": 2, "schedule": "zbv"}, {}, {}),
    "chain cp": ({"cp": 4}, {"checkpoint_async": True, "durable": "far", "durable_every": 5}, {}),
}


def documents() -> list[tuple[list[int], list[bool]]]:
    """Of many lengths, so several share most rows, and shares hold unequal numbers of labels."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, ROW, 90)
    return [(rng.integers(0, VOCAB, n).tolist(), (rng.random(n) < 0.7).tolist()) for n in lengths]


def new_model(**changes: Any) -> Llama:
    shape = {"dim": 32, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 48}
    fields = shape | {"vocab_size": VOCAB, "context": 64} | changes
    model = Llama(LlamaConfig.parse(fields, where="test"))
    model.init_weights(1)
    return model


class Killed(Exception):
    """In place of a kill: training stops at once."""


def trained(
    folder: Path,
    name: str,
    run: tuple[Any, Any, Any],
    *,
    until: int = STEPS,
    into: str = "",
    model: Llama | None = None,
    after_step: AfterStep | None = None,
) -> Llama:
    """Train to step ``until`` and stop there as a kill would; a new model, unless one is given.

    Leaves events and whole weights in ``folder``, and checkpoints in a folder of the name ``into``;
    of a pipeline each process leaves the weights that it has.
    """
    layout, changes, shape = run
    layout = Layout.parse(layout, where=name)
    loop = LOOP.model_copy(update={"layout": layout, **changes})
    source = RowSource(PackedRows(TokenFile(folder / "tokens"), ROW), 5, loop)
    model, mesh = new_model(**shape) if model is None else model, here().of(layout)
    log = EventLog(folder / f"{name}-{mesh.rank}.jsonl")

    def cut(step: int, share: Share) -> list[Any]:
        if step == until:
            raise Killed
        return source(step, share)

    with suppress(Killed):
        train(
            model, next_token, cut, loop, folder / (into or name), log, stage=name,
            after_step=after_step,
        )  # fmt: skip
    log.close()
    save_weights(folder, name, model, mesh)
    return model


def save_weights(folder: Path, name: str, model: Llama, mesh: Mesh) -> None:
    """Whole weights, by one process of those that have the same."""
    weights = {}
    for key, parameter in model.named_parameters():
        whole: Any = parameter.detach()
        weights[key] = whole.full_tensor() if hasattr(whole, "full_tensor") else whole.clone()
    places = mesh.places
    del places["pp"]
    if not any(places.values()):
        save_file(weights, folder / f"{name}-{mesh.rank}.safetensors")


def compiled(folder: Path) -> None:
    """Blocks compiled by themselves, with weights spread and gathered around and within them.

    Without Inductor, whose code is not what goes wrong here.
    """
    layout = Layout(tp=2, dp_shard=2)
    model = new_model()
    parallelize(model, layout)
    for block in model.model.layers.children():
        block.compile(backend="aot_eager")
    loop = LOOP.model_copy(update={"layout": layout})
    source = RowSource(PackedRows(TokenFile(folder / "tokens"), ROW), 5, loop)
    log = EventLog(folder / f"compiled-{here().rank}.jsonl")
    train(model, next_token, source, loop, folder / "compiled", log)
    save_weights(folder, "compiled", model, here().of(layout))


def chain(folder: Path) -> None:
    """Steps 2 to 5 of a run of which one process did the first, each under another layout."""
    for until, (name, (layout, changes, shape)) in enumerate(CHAIN.items(), start=2):
        changes = {"checkpoint_every": 1, **changes}
        if "durable" in changes:
            changes["durable"] = str(folder / "far")
        trained(folder, name, (layout, changes, shape), until=until, into="chain")


def refusals(folder: Path) -> None:
    """What each process is told when something is wrong, in ``refused-RANK.json``."""
    mesh, told = here(), {}

    def ask(name: str, layout: dict[str, Any], into: str, shape: dict[str, Any]) -> None:
        try:
            trained(folder, name, (layout, {}, shape), into=into)
        except PunaError as error:
            told[name] = f"{type(error).__name__}: {error}"

    if mesh.is_first:
        shutil.copytree(folder / "fsdp", folder / "torn")
        next((folder / "torn").glob("step-*/shard-00003-*")).unlink()
    mesh.wait()
    ask("missing shard", {"dp_shard": 4}, "torn", {})
    ask("another model", {"dp_shard": 4}, "fsdp", {"ffn_dim": 64})
    ask("no division", {"tp": 4}, "no division", {"n_kv_heads": 2})
    layout = Layout(dp_shard=4)
    source = RowSource(PackedRows(TokenFile(folder / "tokens"), ROW), 5, LOOP)

    def broken(model: Llama, batch: Batch) -> Outcome:
        outcome = next_token(model, batch)
        return replace(outcome, loss_sum=outcome.loss_sum * (math.nan if mesh.rank == 2 else 1))

    loop = LOOP.model_copy(update={"layout": layout})
    try:
        train(new_model(), broken, source, loop, folder / "not a number", EventLog())
    except PunaError as error:
        told["not a number"] = f"{type(error).__name__}: {error}"
    (folder / f"refused-{mesh.rank}.json").write_text(json.dumps(told))


def model_folders(folder: Path) -> None:
    """A Hugging Face folder read and written by four processes that each have a part."""
    layout = Layout(tp=2, pp=2, schedule="zbv")
    model, tokenizer = load_spread(folder / "model", layout)
    save_spread(folder / "model again", model, tokenizer, max_shard_bytes=30_000)


def all_of(folder: Path, runs: Runs) -> None:
    """The runs and what else four processes do: they have come up once for it."""
    in_turn(folder, runs)
    compiled(folder)
    chain(folder)
    model_folders(folder)
    refusals(folder)


def in_turn(folder: Path, runs: Runs) -> None:
    """The runs, one after the other."""
    for name, run in runs.items():
        trained(folder, name, run)
