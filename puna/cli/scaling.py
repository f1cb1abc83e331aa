"""Commands on scaling laws: run a sweep, fit its law, predict a larger run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli.options import Json
from puna.core.errors import UsageError

if TYPE_CHECKING:
    from puna.pretraining.scaling.sweep import Result

app = typer.Typer(
    help="Scaling laws: run sweeps, fit them, predict larger runs.", no_args_is_help=True
)
Results = Annotated[
    Path, typer.Argument(metavar="RESULTS", help="A sweep's folder, or its results as JSON.")
]
HeldOut = Annotated[
    int, typer.Option(min=0, help="Largest budgets left out of the fit, and foretold.")
]


@app.command()
def run(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="YAML: budgets, sizes, loop.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/scaling"),
    out: Annotated[Path | None, typer.Option(help="Also write all results here, as JSON.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Runs that train at once, each with its share of the cores.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train what a sweep asks for; started again, it goes on where it was."""
    from rich.console import Console

    from puna.core.config import load_yaml
    from puna.core.devices import describe_machine
    from puna.core.events import EventLog
    from puna.pretraining.scaling.sweep import Sweep, run_sweep, trials_of, write_results

    settings = Sweep.parse(load_yaml(sweep), where=str(sweep))
    console, total = Console(stderr=as_json), len(list(trials_of(settings)))
    finished = 0

    def done(result: "Result") -> None:
        nonlocal finished
        finished += 1
        console.print(
            f"{finished}/{total}  {result.budget:.2e} FLOPs  {result.size}: {result.parameters:,} "
            f"parameters, {result.tokens:,} tokens, loss {result.loss:.4f}"
        )

    results = run_sweep(settings, runs, EventLog(runs / "events.jsonl"), done, processes)
    if out is not None:
        write_results(out, settings, results, describe_machine())
    if as_json:
        print(json.dumps({"runs": [asdict(result) for result in results]}))


@app.command()
def fit(
    results: Results,
    held_out: HeldOut = 0,
    plot: Annotated[Path | None, typer.Option(help="SVG or PNG to draw.")] = None,
    rates: Annotated[
        bool, typer.Option("--rates", help="Fit the best learning rate over sizes instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit tokens = A * FLOPs^alpha through the best run of each budget."""
    from puna.pretraining.scaling.fit import law_figures
    from puna.pretraining.scaling.laws import backtest, rate_law, token_law
    from puna.pretraining.scaling.sweep import read_results

    runs = read_results(results)
    law = rate_law(runs) if rates else token_law(runs, held_out)
    figures: dict[str, Any] = dict(law_figures(law))
    if held_out and not rates:
        figures["held_out"] = backtest(runs, held_out)
    if plot is not None:
        if rates:
            raise UsageError("--plot draws the law of tokens: leave out --rates")
        from puna.pretraining.scaling.plot import draw

        budgets = sorted({run.budget for run in runs})
        draw(runs, law, plot, budgets[len(budgets) - held_out :] if held_out else ())
    if as_json:
        print(json.dumps(figures))
        return
    what = "learning rate = {} * parameters^{}" if rates else "tokens = {} * FLOPs^{}"
    print(what.format(_shown(law.factor), _shown(law.power)))
    for parabola in law.parabolas:
        note = "" if parabola.bracketed else "  (not between the sizes tried: left out)"
        print(
            f"  {parabola.budget:.2e}: best {parabola.best:.4g}, loss {parabola.lowest:.4f}{note}"
        )
    if law.speeds_up and not rates:
        print(
            "the loss falls faster from budget to budget, which no power law does: some sizes "
            "still leave the plateau of their first steps; add larger budgets"
        )
    if "held_out" in figures:
        found = figures["held_out"]
        print(
            f"held out, {found['budget']:.2e} FLOPs: best loss {found['best_loss']:.4f}, foretold "
            f"{found['predicted_loss']['value']:.4f} ({found['error']:+.2%})"
        )


@app.command()
def predict(
    results: Results,
    flops: Annotated[float, typer.Option(min=1, help="Budget of the run to come.")],
    held_out: HeldOut = 0,
    vocab_size: Annotated[int, typer.Option(min=300, help="Of the model to come.")] = 128_256,
    recipe: Annotated[
        Path | None, typer.Option(help="Write the model's shape as settings of a recipe.")
    ] = None,
    benchmark: Annotated[
        Path | None,
        typer.Option(help="YAML of models judged on a benchmark: foretell its accuracy too."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="Also plan the run on so many GPUs.")] = 0,
    gpu: Annotated[str, typer.Option(help="What they are, as puna plan has them.")] = "h100",
    as_json: Json = False,
) -> None:
    """Say what a budget is best spent on: parameters, tokens, and the loss to expect."""
    from puna.pretraining.scaling.laws import predict as foretell
    from puna.pretraining.scaling.laws import shape_for, token_law
    from puna.pretraining.scaling.sweep import read_results

    law = token_law(read_results(results), held_out)
    found = foretell(law, flops)
    figures: dict[str, Any] = asdict(found)
    if benchmark is not None:
        figures["accuracy"] = _accuracy(benchmark, flops)
    if recipe is not None or gpus:
        shape = shape_for(found.parameters.value, vocab_size)
        figures["model"] = shape.model_dump(mode="json")
        if recipe is not None:
            _write_model(recipe, figures["model"], found.tokens.value)
        if gpus:
            figures["plan"] = _plan(shape, found.tokens.value, gpus, gpu)
    if as_json:
        print(json.dumps(figures))
        return
    print(
        f"{flops:.3g} FLOPs: {_shown(found.parameters)} parameters, {_shown(found.tokens)} tokens"
    )
    print(f"loss {_shown(found.loss)}")
    if "accuracy" in figures:
        print(f"accuracy {figures['accuracy']:.1%}")
    if "plan" in figures:
        plan = figures["plan"]
        print(
            f"{plan['days']:.2f} days on {gpus} x {gpu}, {plan['tflops_per_gpu']:.0f} TFLOP/s per "
            f"GPU, {plan['memory_gib_per_gpu']:.1f} GiB"
        )


def _accuracy(path: Path, flops: float) -> float:
    from puna.core.config import load_yaml
    from puna.pretraining.scaling.accuracy import Benchmark, fit_accuracy

    return fit_accuracy(Benchmark.parse(load_yaml(path), where=str(path))).at(flops)


def _shown(interval: Any) -> str:
    return f"{interval.value:.4g} (95%: {interval.low:.4g} to {interval.high:.4g})"


def _write_model(path: Path, model: dict[str, Any], tokens: float) -> None:
    """Settings of ``stages.pretrain.model``, with the tokens beside them."""
    import yaml

    from puna.core.files import write_text

    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "tie_embeddings")
    shape = {name: model[name] for name in names}
    text = yaml.safe_dump({"stages": {"pretrain": {"model": shape}}}, sort_keys=False)
    write_text(path, f"# {tokens:.4g} tokens are best for this size.\n{text}")


def _plan(shape: Any, tokens: float, gpus: int, gpu: str) -> dict[str, Any]:
    from puna.pretraining.planner.hardware import hardware
    from puna.pretraining.planner.plan import plan
    from puna.pretraining.planner.search import Wish

    rows = max(gpus, min(2048, round(tokens / shape.context / 10_000)))
    wish = Wish(shape, hardware(gpu), gpus, shape.context, rows * shape.context)
    return plan(wish, tokens)[0]
