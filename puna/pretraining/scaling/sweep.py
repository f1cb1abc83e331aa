"""A sweep that really trains: models of several sizes at several budgets of compute, resumable.

Each run trains through the one loop into a folder of its own and leaves ``result.json``; a run that
was killed goes on from its checkpoint, one that is done is skipped. Runs do not depend on one
another: several processes may share them.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.devices import default_device
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.core.files import sha256_value, write_json
from puna.core.random import stable_seed
from puna.data import CorpusConfig, PackedRows, TokenFile, build_corpus
from puna.model import Llama, LlamaConfig
from puna.pretraining.held_out import held_out_loss
from puna.pretraining.scaling.crew import shared_out
from puna.pretraining.tokens import encode_documents
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, RowSource, next_token, train

RESULT, SCRATCH = "result.json", "scratch"


class Size(Config):
    """A shape; the head is the embedding."""

    dim: int = Field(gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(gt=0)
    """Blocks."""
    n_heads: int = Field(gt=0)
    """Query heads."""
    n_kv_heads: int = Field(gt=0)
    """Key and value heads."""
    ffn_dim: int = Field(gt=0)
    """Width inside the feed-forward."""


class Sweep(Config):
    """Budgets, sizes and how each run is trained."""

    seed: int = Field(default=0, ge=0)
    """Fixes corpus, order and weights."""
    corpus: CorpusConfig
    """What is read; enough for the longest run to see each document once, or it is repeated."""
    vocab_size: int = Field(ge=300)
    """Of the tokenizer, trained on the corpus."""
    digit_group: int = Field(default=1, ge=1, le=3)
    """Digits that may share a token."""
    row_length: int = Field(ge=8)
    """Tokens in a row."""
    validation_rows: int = Field(default=64, ge=1)
    """Held-out rows that give a run's loss."""
    sizes: dict[str, Size]
    """Shapes by name."""
    budgets: dict[float, list[str]]
    """FLOPs, and the sizes trained with that many."""
    loop: LoopConfig
    """How each run is trained. Steps follow from the budget, and more than ``steps`` are an error;
    ``learning_rate`` is that of a model ``rate_at_dim`` wide; a tenth of the steps, at most
    ``warmup_steps``, warm up."""
    rate_at_dim: int = Field(default=64, gt=0)
    """Width that ``loop.learning_rate`` is for."""
    rate_power: float = Field(default=0.5, ge=0, le=2)
    """The rate falls with width to this power."""
    rates: list[float] = Field(default=[1.0], min_length=1)
    """Multiples of that rate, each a run of its own: several make a sweep of learning rates."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for budget, names in self.budgets.items():
            for name in names:
                if name not in self.sizes:
                    raise ValueError(f"budgets.{budget:g} names no size: {name!r} is not in sizes")
        return self


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    size: str
    budget: float
    rate: float
    """Multiple of the learning rate."""

    @property
    def name(self) -> str:
        """Of its folder."""
        rate = "" if self.rate == 1.0 else f"-rate-{self.rate:g}"
        return f"{self.budget:.3g}-{self.size}{rate}"


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    size: str
    budget: float
    learning_rate: float
    parameters: int
    flops: float
    tokens: int
    steps: int
    loss: float
    """Held-out, nats per token."""
    seconds: float


def trials_of(sweep: Sweep) -> Iterator[Trial]:
    """The runs, the cheapest budget first."""
    for budget in sorted(sweep.budgets):
        for size in sweep.budgets[budget]:
            for rate in sweep.rates:
                yield Trial(size, budget, rate)


def run_sweep(
    sweep: Sweep,
    folder: Path,
    events: EventLog,
    done: Callable[[Result], None],
    processes: int = 1,
) -> list[Result]:
    """Carry out what is not done yet.

    Args:
        sweep: what to train.
        folder: of the runs and their data.
        events: told of every step of a single process.
        done: told of each run, those found done included.
        processes: how many runs go on at once, each with its share of this process's threads. Of
            several, each writes its events to ``folder/events.jsonl``.

    Returns the results, the cheapest budget first. Raises `UsageError` when ``folder`` holds
    another sweep, `PunaError` when a process ends in the middle of a run.
    """
    if processes > 1 and torch.cuda.is_available():
        raise UsageError("several processes would share one GPU: leave --processes at 1")
    _claim(sweep, folder)
    data = _Data.prepared(sweep, folder / "data")
    results = {trial: _result(folder / trial.name) for trial in trials_of(sweep)}
    for result in results.values():
        if result is not None:
            done(result)
    open_trials = [trial for trial, result in results.items() if result is None]
    if processes > 1:
        open_trials.sort(key=lambda trial: -trial.budget)  # so that none ends long after the others
        there = partial(_carry_out_there, sweep, folder)
        carried_out = shared_out(there, open_trials, processes)
    else:
        carried_out = (
            (trial, _carry_out(sweep, trial, data, folder, events)) for trial in open_trials
        )
    with closing(carried_out):
        for trial, result in carried_out:
            results[trial] = result
            done(result)
    return [result for result in results.values() if result is not None]


def results_of(folder: Path) -> list[Result]:
    """Those of a sweep's folder that are done."""
    found = [_result(path.parent) for path in sorted(folder.glob(f"*/{RESULT}"))]
    return [result for result in found if result is not None]


def read_results(path: Path) -> list[Result]:
    """Results of a sweep's folder, or of a file that `write_results` wrote."""
    if path.is_dir():
        results = results_of(path)
        if not results:
            raise UsageError(f"{path} has no finished run: start puna scaling run first")
        return results
    try:
        return [Result(**row) for row in json.loads(path.read_text())["runs"]]
    except FileNotFoundError as error:
        raise UsageError(f"no such file or folder: {path}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} does not hold the results of a sweep: {error}") from error


def write_results(path: Path, sweep: Sweep, results: list[Result], machine: Any) -> None:
    """All a sweep found, with what made it, as JSON."""
    rows = [asdict(result) for result in results]
    write_json(path, {"sweep": sweep.model_dump(mode="json"), "machine": machine, "runs": rows})


def _result(folder: Path) -> Result | None:
    path = folder / RESULT
    return Result(**json.loads(path.read_text())) if path.exists() else None


def _claim(sweep: Sweep, folder: Path) -> None:
    """Make the folder this sweep's; budgets may be added later, what trains a run stays."""
    shared = sweep.model_dump(mode="json", exclude={"budgets", "sizes", "rates"})
    mark, path = sha256_value(shared), folder / "sweep.json"
    if path.exists() and json.loads(path.read_text())["mark"] != mark:
        raise UsageError(f"{folder} holds a sweep with other settings: give another --runs folder")
    write_json(path, {"mark": mark, "settings": shared})


@dataclass(frozen=True)
class _Data:
    tokenizer: Tokenizer
    train: PackedRows
    held_out: PackedRows

    @classmethod
    def prepared(cls, sweep: Sweep, folder: Path) -> Self:
        """The corpus as tokens, made once."""
        whole = folder / "whole"
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            corpus = build_corpus(sweep.corpus, sweep.seed)
            texts = [document.text for document in corpus.train]
            tokenizer = Tokenizer.train(
                texts, sweep.vocab_size, digit_group=sweep.digit_group, n_special=16
            )
            tokenizer.save(folder / "tokenizer")
            encode_documents(tokenizer, corpus.train, folder / "train")
            encode_documents(tokenizer, corpus.validation, folder / "held-out")
            whole.touch()
        rows = [PackedRows(TokenFile(folder / n), sweep.row_length) for n in ("train", "held-out")]
        return cls(Tokenizer.from_folder(folder / "tokenizer"), *rows)


def shape_of(sweep: Sweep, size: str, vocab_size: int) -> LlamaConfig:
    """The model of a size."""
    shape = sweep.sizes[size].model_dump()
    others = {"vocab_size": vocab_size, "tie_embeddings": True, "rope_theta": 10_000.0}
    context = {"context": sweep.row_length}
    return LlamaConfig.parse(shape | others | context, where=f"sizes.{size}")


def _loop_of(sweep: Sweep, trial: Trial, config: LlamaConfig) -> LoopConfig:
    tokens = trial.budget / config.flops_per_token(sweep.row_length // 2)
    steps = round(tokens / (sweep.loop.batch_rows * sweep.row_length))
    if steps < 10:
        raise UsageError(
            f"the budget {trial.budget:g} gives {trial.size} {steps} steps: raise it, or lower "
            "loop.batch_rows"
        )
    if steps > sweep.loop.steps:
        raise UsageError(
            f"the budget {trial.budget:g} gives {trial.size} {steps} steps, loop.steps allows "
            f"{sweep.loop.steps}: lower the budget, or raise loop.steps"
        )
    narrower = (sweep.rate_at_dim / config.dim) ** sweep.rate_power
    changed = {
        "steps": steps,
        "warmup_steps": min(sweep.loop.warmup_steps, steps // 10),
        "learning_rate": sweep.loop.learning_rate * narrower * trial.rate,
        "log_every": steps,
    }
    return LoopConfig.parse(sweep.loop.model_dump() | changed, where=trial.name)


def _carry_out_there(sweep: Sweep, folder: Path, trial: Trial) -> Result:
    """As `_carry_out`, in a process of its own."""
    data, events = _Data.prepared(sweep, folder / "data"), EventLog(folder / "events.jsonl")
    try:
        return _carry_out(sweep, trial, data, folder, events)
    finally:
        events.close()


def _carry_out(
    sweep: Sweep, trial: Trial, data: _Data, folder: Path, events: EventLog
) -> Result:  # fmt: skip
    config = shape_of(sweep, trial.size, data.tokenizer.vocab_size)
    loop, place = _loop_of(sweep, trial, config), folder / trial.name
    model = Llama(config)
    model.init_weights(stable_seed(sweep.seed, "init", trial.size))
    model.to(default_device())
    progress = train(
        model, next_token, RowSource(data.train, sweep.seed, loop), loop, place / SCRATCH, events,
        stage=trial.name, attended=sweep.row_length // 2,
    )  # fmt: skip
    result = Result(
        trial.size, trial.budget, loop.learning_rate, config.n_params(),
        config.flops_per_token(sweep.row_length // 2) * progress.tokens,
        progress.tokens, progress.step, held_out_loss(model, data.held_out, sweep.validation_rows),
        round(progress.seconds, 2),
    )  # fmt: skip
    write_json(place / RESULT, asdict(result))
    shutil.rmtree(place / SCRATCH, ignore_errors=True)
    return result
