"""The fitter on points made by a known law, and on a real sweep that is kept with the code."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from puna.cli.main import app
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.pretraining.scaling import sweep as under_test
from puna.pretraining.scaling.accuracy import Benchmark, fit_accuracy
from puna.pretraining.scaling.fit import Point, fit_law
from puna.pretraining.scaling.laws import backtest, predict, rate_law, shape_for, token_law
from puna.pretraining.scaling.sweep import Result, Sweep, read_results, run_sweep

ALPHA, FACTOR = 0.537, 0.299  # "The Llama 3 Herd of Models", figure 3
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21, 1e22)
KEPT = Path(__file__).parents[2] / "benchmarks" / "scaling.json"


def points(seed: int, noise: float, power: float = ALPHA, factor: float = FACTOR) -> list[Point]:
    """Seven sizes at each budget around the law's best, on parabolas, with noise in the loss."""
    drawn, found = np.random.default_rng(seed), []
    for budget in BUDGETS:
        best = factor * budget**power
        for off in np.linspace(-1.5, 1.5, 7):
            loss = 1.7 + 2000 * budget**-0.15 + 0.03 * (off - 0.1) ** 2
            x = best * math.exp(off - 0.1)
            found.append(Point(budget, x, float(loss + noise * drawn.standard_normal())))
    return found


def test_the_fitter_recovers_a_known_law_from_noisy_points_within_its_own_interval() -> None:
    law = fit_law(points(seed=1, noise=0.002))
    assert law.power.holds(ALPHA)
    assert law.factor.holds(FACTOR)
    assert law.power.value == pytest.approx(ALPHA, abs=0.02)
    # the paper's budget: its own rounding gives 16.3T
    tokens = predict(law, 3.8e25).tokens
    assert tokens.holds(FACTOR * 3.8e25**ALPHA)
    assert tokens.value == pytest.approx(16.3e12, rel=0.3)


def test_its_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = sum(fit_law(points(seed, noise=0.003)).power.holds(ALPHA) for seed in range(20))
    assert held >= 16  # of 20 at 95%: fewer than 16 come once in 3,000


def test_without_noise_it_is_exact() -> None:
    law = fit_law(points(seed=0, noise=0.0, power=0.49, factor=1.7))
    assert law.power.value == pytest.approx(0.49, abs=1e-6)
    assert law.factor.value == pytest.approx(1.7, rel=1e-4)
    # the loss on the way: floor 1.7, power 0.15; the floor is searched on a grid
    assert law.best_loss(1e23).value == pytest.approx(1.7 + 2000 * 1e23**-0.15, rel=0.01)


def test_a_budget_whose_lowest_loss_is_not_between_its_sizes_is_left_out() -> None:
    off = [p for p in points(1, 0.001) if p.budget != 3e19 or p.x < 0.99 * FACTOR * 3e19**ALPHA]
    law = fit_law(off)
    assert [p.budget for p in law.parabolas if not p.bracketed] == [3e19]
    with pytest.raises(UsageError, match="has 2 runs: a parabola needs at least 4"):
        fit_law(points(1, 0.0)[:16])


def test_runs_that_scatter_give_wide_intervals_and_no_nonsense() -> None:
    """Among resampled runs some have no lowest loss, or one far away: those are left out."""
    scattered = [p for p in points(seed=3, noise=0.02) if p.budget < 2e20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = fit_law(scattered)
    loss = law.best_loss(1e20)
    assert 0 < loss.low < loss.value < loss.high < 2 * loss.value
    assert law.power.high - law.power.low > 0.1
    assert len(law.samples) < 1000
    flat = [Point(p.budget, p.x, 3 + 0.02 * (n % 7 in (1, 5))) for n, p in enumerate(scattered)]
    with pytest.raises(UsageError, match=r"add sizes|between the sizes"):
        fit_law(flat)


def test_runs_far_from_the_best_do_not_bend_the_parabola() -> None:
    plain = points(seed=0, noise=0.0)
    far = [Point(p.budget, p.x * 50, p.loss * 1.3) for p in plain[::7]]
    assert fit_law(plain + far).power.value == pytest.approx(ALPHA, abs=1e-6)


def test_the_neighbours_of_the_best_run_belong_to_its_parabola() -> None:
    """Else one that is far worse leaves all others on one side of the best."""
    steep = [
        Point(p.budget, p.x, p.loss + (0.2 if p.x > 1.2 * FACTOR * p.budget**ALPHA else 0))
        for p in points(seed=0, noise=0.0)
    ]
    assert all(parabola.bracketed for parabola in fit_law(steep).parabolas)


def test_a_loss_that_falls_ever_faster_is_told_from_a_power_law() -> None:
    plain = points(seed=0, noise=0.0)
    assert not fit_law(plain).speeds_up
    first = math.log(BUDGETS[0])
    leaving = [
        Point(p.budget, p.x, p.loss - 0.01 * (math.log(p.budget) - first) ** 2) for p in plain
    ]
    assert fit_law(leaving).speeds_up


def test_accuracy_is_found_again_through_likelihood() -> None:
    def nats(flops: float) -> float:
        return 6.0 - 0.21 * math.log10(flops)

    def accuracy(nll: float) -> float:
        return 0.25 + 0.75 / (1 + math.exp(9.0 * (nll - 1.3)))

    compute = [(c, nats(c)) for c in (1e19, 1e20, 1e21, 1e22)]
    answers = [(n, accuracy(n)) for n in np.linspace(1.0, 2.0, 9)]
    found = fit_accuracy(Benchmark(chance=0.25, compute=compute, answers=answers))
    assert found.middle == pytest.approx(1.3, abs=1e-3)
    assert found.steepness == pytest.approx(9.0, rel=1e-2)
    assert found.at(3.8e25) == pytest.approx(accuracy(nats(3.8e25)), abs=1e-3)


def test_the_shape_for_a_prediction_has_about_that_many_parameters() -> None:
    for wanted in (5e8, 8e9, 402e9):
        shape = shape_for(wanted, 128_256)
        assert shape.n_params() == pytest.approx(wanted, rel=0.25)
    with pytest.raises(UsageError, match="fewer than the smallest shape"):
        shape_for(1e6, 128_256)


def test_sweeps_go_on_where_they_were_and_refuse_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "text.jsonl"
    words = ["llama", "puna", "grass", "lake", "stone", "wool", "herd", "path"]
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, 40)) for _ in range(120)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    size = {"dim": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "ffn_dim": 16}
    settings = {
        "corpus": {"sources": {"files": {"path": str(corpus)}}, "validation_fraction": 0.2,
                   "duplicate_similarity": 1.0},
        "vocab_size": 300, "row_length": 32, "validation_rows": 4,
        "sizes": {"a": size, "b": size | {"n_layers": 2}}, "budgets": {3e8: ["a", "b"]},
        "loop": {"steps": 99, "batch_rows": 4, "learning_rate": 0.01, "precision": "fp32"},
    }  # fmt: skip
    sweep, seen = Sweep.parse(settings, where="test"), []
    folder = tmp_path / "runs"
    first = run_sweep(sweep, folder, EventLog(), seen.append)
    assert [r.size for r in first] == ["a", "b"]
    for result in first:
        assert result.flops == pytest.approx(result.budget, rel=0.1)
        assert result.loss < math.log(300)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="would share one GPU"):
        run_sweep(sweep, tmp_path / "shared", EventLog(), seen.append, processes=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shared = run_sweep(sweep, tmp_path / "shared", EventLog(), seen.append, processes=2)
    for one, alone in zip(shared, first, strict=True):
        assert (one.size, one.steps, one.tokens) == (alone.size, alone.steps, alone.tokens)
        assert one.loss == pytest.approx(alone.loss, rel=1e-4)  # on other numbers of threads
    assert len(read_results(tmp_path / "shared")) == 2
    monkeypatch.setattr(under_test, "train", None)  # nothing is trained again
    assert run_sweep(sweep, folder, EventLog(), seen.append) == first
    assert read_results(folder) == first
    other = Sweep.parse(settings | {"seed": 1}, where="test")
    with pytest.raises(UsageError, match="holds a sweep with other settings"):
        run_sweep(other, folder, EventLog(), seen.append)
    wrong = settings | {"budgets": {3e8: ["c"]}}
    with pytest.raises(UsageError, match="names no size: 'c' is not in sizes"):
        Sweep.parse(wrong, where="test")


def test_the_best_rate_over_sizes_is_found() -> None:
    results = [
        Result(name, 1e12, rate, n, 1e12, 1000, 10, 3 + (math.log(rate / best)) ** 2, 1.0)
        for name, n in (("a", 1e6), ("b", 1e7), ("c", 1e8))
        for best in [0.5 * n**-0.4]
        for rate in (best * factor for factor in (0.3, 0.6, 1.1, 2.0))
    ]
    law = rate_law(results)
    assert law.power.value == pytest.approx(-0.4, abs=1e-6)
    assert law.factor.value == pytest.approx(0.5, rel=1e-4)


def test_a_prediction_is_handed_to_recipe_and_planner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"size": str(i), "budget": p.budget, "learning_rate": 1e-3, "parameters": 1, "steps": 1,
         "flops": p.budget, "tokens": round(p.x), "loss": p.loss, "seconds": 1.0}
        for i, p in enumerate(points(seed=1, noise=0.002))
    ]  # fmt: skip
    kept, model = tmp_path / "results.json", tmp_path / "model.yaml"
    kept.write_text(json.dumps({"runs": rows}))
    benchmark = tmp_path / "models.yaml"
    benchmark.write_text("chance: 0.25\ncompute: [[1e20, 1.8], [1e22, 1.4]]\n"
                         "answers: [[1.8, 0.27], [1.4, 0.52], [1.1, 0.81]]\n")  # fmt: skip
    app(
        ["scaling", "predict", str(kept), "--flops", "1e22", "--gpus", "256",
         "--recipe", str(model), "--benchmark", str(benchmark), "--json"],
        standalone_mode=False,
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    tokens = FACTOR * 1e22**ALPHA
    assert found["tokens"]["low"] < tokens < found["tokens"]["high"]
    assert found["parameters"]["value"] == pytest.approx(1e22 / 6 / tokens, rel=0.15)
    assert found["accuracy"] == pytest.approx(0.52, abs=0.01)
    # 6 FLOPs a weight and token on 256 GPUs; attention and the planner's loss of time beside it
    hours = 1e22 / 256 / (found["plan"]["tflops_per_gpu"] * 1e12) / 3600
    assert found["plan"]["days"] * 24 == pytest.approx(hours, rel=0.5)
    shape = yaml.safe_load(model.read_text())["stages"]["pretrain"]["model"]
    assert shape["dim"] == found["model"]["dim"]
    app(["scaling", "fit", str(kept), "--held-out", "1", "--json"], standalone_mode=False)
    held = json.loads(capsys.readouterr().out)["held_out"]
    assert held["budget"] == 1e22
    assert abs(held["error"]) < 0.02
    with pytest.raises(UsageError, match="does not hold the results of a sweep"):
        app(["scaling", "fit", str(benchmark)], standalone_mode=False)


def test_the_stored_sweep_is_whole_and_its_largest_budget_is_foretold_as_the_page_says() -> None:
    results = read_results(KEPT)
    budgets = {r.budget for r in results}
    assert len(budgets) >= 4
    assert all(sum(r.budget == b for r in results) >= 5 for b in budgets)
    for result in results:
        assert result.flops == pytest.approx(result.budget, rel=0.2)  # padding is not counted
    law = token_law(results, held_out=1)
    assert all(parabola.bracketed for parabola in law.parabolas)
    assert law.speeds_up  # what is foretold comes out too high
    found = backtest(results)
    assert found["budget"] == max(budgets)
    assert abs(found["error"]) < 0.02
    (largest,) = [p for p in token_law(results).parabolas if p.budget == max(budgets)]
    assert found["predicted_loss"]["value"] / largest.lowest - 1 < 0.02
    assert found["predicted_loss"]["low"] < found["best_loss"] < found["predicted_loss"]["high"]
    tokens = found["predicted_tokens"]
    assert tokens["low"] < largest.best < tokens["high"]
