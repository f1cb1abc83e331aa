"""The picture of a sweep: parabolas at each budget, and the lines that their lowest points make."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from puna.core.files import write_bytes
from puna.pretraining.scaling.fit import Law
from puna.pretraining.scaling.sweep import Result

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "puna",
    "font.size": 9,
    "legend.frameon": False,
}


def draw(results: Sequence[Result], law: Law, path: Path, held_out: Sequence[float] = ()) -> None:
    """Write an SVG or PNG: loss over tokens with parabolas, best tokens and loss over FLOPs."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _parabolas(left, results, law, held_out)
        budgets = sorted({result.budget for result in results})
        line = np.geomspace(budgets[0] / 1.5, budgets[-1] * 2, 50)
        for axes, value in ((middle, law.best_x), (right, law.best_loss)):
            found = [value(c) for c in line]
            axes.plot(line, [f.value for f in found], color="C0")
            axes.fill_between(line, [f.low for f in found], [f.high for f in found], alpha=0.2)
            axes.set_xscale("log")
            axes.set_xlabel("FLOPs")
        lowest = [p for p in law.parabolas if p.bracketed]
        middle.plot([p.budget for p in lowest], [p.best for p in lowest], "o", color="C0")
        middle.set_yscale("log")
        middle.set_ylabel("best number of tokens")
        middle.set_title(f"{law.factor.value:.3g} x FLOPs^{law.power.value:.3f}")
        right.plot([p.budget for p in lowest], [p.lowest for p in lowest], "o", color="C0")
        for budget in held_out:
            best = min(r.loss for r in results if r.budget == budget)
            right.plot([budget], [best], "D", color="C3", label="held out: best run")
        if held_out:
            right.legend()
        right.set_ylabel("best held-out loss, nats per token")
        for axes in (left, middle, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_minor_formatter(NullFormatter())  # between powers of ten they collide
        write_bytes(path, _rendered(figure, path.suffix.lstrip(".") or "svg"))


def _parabolas(axes: Axes, results: Sequence[Result], law: Law, held_out: Sequence[float]) -> None:
    for number, budget in enumerate(sorted({result.budget for result in results})):
        runs = sorted((r for r in results if r.budget == budget), key=lambda r: r.tokens)
        marker = "D" if budget in held_out else "o"
        axes.plot(
            [r.tokens for r in runs], [r.loss for r in runs], marker, color=f"C{number}", ms=4,
            label=f"{budget:.1e}{' (held out)' if budget in held_out else ''}",
        )  # fmt: skip
        for parabola in law.parabolas:
            if parabola.budget == budget:
                tokens = np.geomspace(runs[0].tokens, runs[-1].tokens, 60)
                losses = parabola.lowest + parabola.bend * np.log(tokens / parabola.best) ** 2
                axes.plot(tokens, losses, color=f"C{number}")
    axes.set_xscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("held-out loss, nats per token")
    axes.legend(title="FLOPs", fontsize=8)


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
