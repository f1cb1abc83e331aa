"""A sweep's laws, and what they say about a larger run: its size, its tokens, its loss."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from puna.core.errors import UsageError
from puna.model import LlamaConfig
from puna.pretraining.scaling.fit import Interval, Law, Point, fit_law
from puna.pretraining.scaling.sweep import Result

_ASPECT = 128  # width per layer of the published sizes, 8B's
_HEAD_DIM, _GROUP, _WIDENING = 128, 4, 3.5


@dataclass(frozen=True)
class Prediction:
    """What a budget is best spent on, by the law."""

    flops: float
    tokens: Interval
    parameters: Interval
    """From flops = 6 * parameters * tokens."""
    loss: Interval


def token_law(results: Sequence[Result], held_out: int = 0) -> Law:
    """The best number of tokens over budgets, without the ``held_out`` largest budgets.

    Runs with other learning rates than the best of their size and budget are left out.
    """
    budgets = sorted({result.budget for result in results})
    if held_out and len(budgets) - held_out < 2:
        raise UsageError(
            f"{len(budgets)} budgets less {held_out} held out leave too few: two are needed"
        )
    kept = set(budgets[: len(budgets) - held_out])
    best = _best_rates(results)
    return fit_law([Point(r.budget, float(r.tokens), r.loss) for r in best if r.budget in kept])


def rate_law(results: Sequence[Result]) -> Law:
    """The best learning rate over sizes (parameters): hyperparameter scaling.

    Of each size the budget with most rates is taken. Raises `UsageError` where no two sizes have
    four rates.
    """
    groups: dict[tuple[float, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.parameters, result.budget), []).append(result)
    chosen: dict[float, list[Result]] = {}
    for (parameters, _), group in groups.items():
        if len(group) > max(3, len(chosen.get(parameters, []))):
            chosen[parameters] = group
    if len(chosen) < 2:
        raise UsageError("no two sizes have four learning rates: add rates to the sweep")
    points = [Point(n, r.learning_rate, r.loss) for n, group in chosen.items() for r in group]
    return fit_law(points)


def _best_rates(results: Sequence[Result]) -> list[Result]:
    best: dict[tuple[float, str], Result] = {}
    for result in results:
        key = (result.budget, result.size)
        if key not in best or result.loss < best[key].loss:
            best[key] = result
    return list(best.values())


def predict(law: Law, flops: float) -> Prediction:
    """The best use of ``flops``."""
    tokens = law.best_x(flops)
    parameters = Interval(flops / 6 / tokens.value, flops / 6 / tokens.high, flops / 6 / tokens.low)
    return Prediction(flops, tokens, parameters, law.best_loss(flops))


def backtest(results: Sequence[Result], held_out: int = 1) -> dict[str, Any]:
    """How well the smaller budgets foretell the largest one's lowest loss among its runs."""
    law = token_law(results, held_out)
    budget = max(result.budget for result in results)
    best = min((r for r in results if r.budget == budget), key=lambda r: r.loss)
    foretold = law.best_loss(budget)
    return {
        "budget": budget,
        "best_loss": best.loss,
        "best_size": best.size,
        "best_tokens": best.tokens,
        "predicted_loss": asdict(foretold),
        "predicted_tokens": asdict(law.best_x(budget)),
        "error": foretold.value / best.loss - 1,
    }


def shape_for(parameters: float, vocab_size: int) -> LlamaConfig:
    """A Llama with about that many parameters, in the proportions of the published ones.

    Width is 128 for each layer, heads are 128 wide in groups of four, the feed-forward is 3.5
    times as wide. Raises `UsageError` for fewer than about a hundred million.
    """
    shapes = [_shape(layers, vocab_size) for layers in range(8, 257)]
    best = min(shapes, key=lambda shape: abs(shape.n_params() - parameters))
    if parameters < 0.7 * shapes[0].n_params():
        raise UsageError(
            f"{parameters:.3g} parameters are fewer than the smallest shape in these proportions, "
            f"{shapes[0].n_params():,}: raise --flops, or set stages.pretrain.model yourself"
        )
    return best


def _shape(n_layers: int, vocab_size: int) -> LlamaConfig:
    dim = round(n_layers * _ASPECT / (_GROUP * _HEAD_DIM)) * _GROUP * _HEAD_DIM
    heads = dim // _HEAD_DIM
    fields = {
        "dim": dim, "n_layers": n_layers, "n_heads": heads, "n_kv_heads": heads // _GROUP,
        "ffn_dim": round(_WIDENING * dim), "vocab_size": vocab_size, "tie_embeddings": False,
    }  # fmt: skip
    return LlamaConfig.parse(fields, where="shape of the prediction")
