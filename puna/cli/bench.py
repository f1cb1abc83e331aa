"""``puna bench``: the figures of `puna.inference.bench` as a table or as JSON."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from puna.core.devices import describe_machine
from puna.inference import Engine
from puna.inference.bench import Figure, Speed, Start, run


def measure(start: Start, name: str, *, compiled: bool, runs: int, as_json: bool) -> None:
    """Measure the model that ``start`` loads and print its figures."""
    console = Console(stderr=True)
    with console.status("") as status:
        engine, speed = run(
            start, compiled=compiled, runs=runs, report=lambda step: status.update(f"{step} ...")
        )
    if as_json:
        print(json.dumps(_facts(engine, name, speed, runs)))
    else:
        Console(highlight=False).print(_table(engine, name, speed, runs))


def _facts(engine: Engine, name: str, speed: Speed, runs: int) -> dict[str, Any]:
    setup = {
        "model": name,
        "parameters": engine.n_params,
        "weights": engine.weights,
        "compiled": engine.config.compile,
        "speculation": engine.config.speculation,
        "cache_weights": engine.config.cache_weights,
        "runs": runs,
    }
    share = {"bandwidth_share": speed.bandwidth_share}
    return {**setup, **asdict(speed), **share, "machine": describe_machine()}


def _table(engine: Engine, name: str, speed: Speed, runs: int) -> Table:
    compiled = ", compiled" if engine.config.compile else ""
    ahead = f", {engine.config.speculation} tokens ahead" if engine.config.speculation else ""
    cache = ", int8 cache" if engine.config.cache_weights == "int8" else ""
    machine = describe_machine()
    table = Table(
        title=f"{escape(name)}, {engine.weights}{cache}{compiled}{ahead}",
        caption=f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, "
        f"torch {machine['torch']}; median of {runs}",
    )
    table.add_column("")
    for heading in ("median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    table.add_column("")
    rates = {f"prefill of {speed.prompt}": speed.prefill, f"decoding {speed.new}": speed.decode}
    for n, figure in speed.batches.items():
        rates[f"{n} rows, {speed.short} + {speed.short}"] = figure
    for label, figure in rates.items():
        table.add_row(label, *_cells(figure, 1, 0), "tokens/s")
    table.add_row("first token", *_cells(speed.first_token, 1000, 1), "ms")
    table.add_row("first token from a start", f"{speed.eager_start:.1f}", "", "", "s")
    if speed.compiled_start is not None:
        table.add_row("second, compiling", f"{speed.compiled_start:.1f}", "", "", "s")
    table.add_row("weights read for a token", f"{speed.weight_bytes / 1e6:,.0f}", "", "", "MB")
    table.add_row("cache of a token", f"{speed.cache_bytes_per_token / 1e3:,.1f}", "", "", "kB")
    table.add_row("memory, at most", f"{speed.peak_memory / 1e6:,.0f}", "", "", "MB")
    table.add_row("memory bandwidth", f"{speed.bandwidth / 1e9:,.1f}", "", "", "GB/s")
    table.add_row("share used in decoding", f"{100 * speed.bandwidth_share:.0f}", "", "", "%")
    return table


def _cells(figure: Figure, scale: float, digits: int) -> list[str]:
    values = (figure.median, figure.low, figure.high)
    return [f"{scale * value:,.{digits}f}" for value in values]
