"""The report's figures as inline SVG, drawn from a run's events.

Colours are the page's CSS variables and letters are real text, so that a figure follows the page
into dark mode and onto paper.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from puna.core.events import Event

# Matplotlib wants colours: each of these stands for the page's own until the SVG is written.
_INK, _FAINT, _FIRST, _SECOND = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "--muted", _FAINT: "--line", _FIRST: "--first", _SECOND: "--second"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_WIDTH = 4.6  # inches: about a phone's width, so that letters are not shrunk there
_SHOWN_POINTS = 500  # of a line; more cannot be told apart and make the file large
_FIXED = (
    re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL),
    re.compile(r"font-family: [^;]*;"),
    re.compile(r'(?<=<svg)[^>]*?(?= viewBox)|(?<=")\s(xmlns(:xlink)?|version)="[^"]*"'),
)
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Plot:
    """A figure for the page."""

    title: str
    svg: Markup
    description: str
    """What it shows, in words, for those who do not see it."""


def training_steps(events: Iterable[Event], kind: str = "train_step") -> dict[str, list[Event]]:
    """The steps that made each stage's model, in order; or its rollouts.

    A stage that was killed logged steps after its last checkpoint that were then done again, and
    one whose recipe changed started over: what was superseded is left out.
    """
    steps: dict[str, list[Event]] = {}
    starting: set[str] = set()
    for event in events:
        stage = event.get("stage", "")
        if event["kind"] == "stage_start":
            starting.add(stage)
        elif event["kind"] == "train_resume":
            starting.discard(stage)
            steps[stage] = [e for e in steps.get(stage, []) if e["step"] <= event["step"]]
        elif event["kind"] == kind:
            if stage in starting:
                starting.discard(stage)
                steps[stage] = []
            steps.setdefault(stage, []).append(event)
    return {stage: found for stage, found in steps.items() if found}


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value with up to ``reach`` on either side.

    As many on both sides, so that it does not lag behind a falling curve; only at the end, where
    nothing follows, it looks back alone.
    """
    sums = [0.0, *accumulate(values)]
    ahead = [min(i, reach, len(values) - 1 - i) for i in range(len(values))]
    ends = [(i - min(i, reach), i + after + 1) for i, after in enumerate(ahead)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def loss_plot(stage: str, steps: Sequence[Event], held_out: Mapping[str, float]) -> Plot:
    """Loss over steps, raw and smoothed, with the learning rate faint behind it.

    ``held_out`` is the loss on held-out chats by step, where it was measured.
    """
    losses = [event["loss"] for event in steps]
    with rc_context(_STYLE):
        figure, axes = _axes(f"loss-{stage}")
        rate = _second_axes(axes)
        _line(rate, steps, [e["learning_rate"] for e in steps], _INK, dashed=True, faint=True)
        _line(axes, steps, losses, _FIRST, faint=True, label="loss")
        _line(axes, steps, smooth(losses, len(losses) // 40), _FIRST, label="smoothed")
        if held_out:
            places = [int(step) for step in held_out]
            axes.plot(places, list(held_out.values()), "o-", color=_SECOND, ms=3, label="held out")
        axes.plot([], [], color=_INK, ls="--", lw=1, alpha=0.6, label="learning rate (right)")
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        rate.set_ylim(bottom=0)
        axes.set_xlim(0, steps[-1]["steps"])
        axes.legend(loc="upper right")
        svg = _svg(figure)
    last = steps[-1]
    described = f"Loss of {stage}: {losses[0]:.3f} at step {steps[0]['step']:,}, "
    described += f"{losses[-1]:.3f} at step {last['step']:,} of {last['steps']:,}."
    if held_out:
        first, *_, end = held_out.values()
        described += f" On held-out chats: {first:.3f} before, {end:.3f} after."
    return Plot(f"Loss of {stage}", svg, described)


def reward_plot(stage: str, steps: Sequence[Event]) -> Plot:
    """How often and by how much the chosen answer is rewarded above the rejected one."""
    reach = len(steps) // 40
    with rc_context(_STYLE):
        figure, axes = _axes(f"reward-{stage}")
        margin = _second_axes(axes)
        for where, name, colour, label in (
            (margin, "reward_margin", _SECOND, "margin (right)"),
            (axes, "reward_accuracy", _FIRST, "accuracy"),
        ):
            values = [event[name] for event in steps]
            _line(where, steps, values, colour, faint=True)
            _line(where, steps, smooth(values, reach), colour)
            axes.plot([], [], color=colour, label=label)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlim(0, steps[-1]["steps"])
        axes.legend(loc="lower right")
        svg = _svg(figure)
    last = steps[-1]
    described = f"Rewards of {stage}: the chosen answer is rewarded above the rejected one in "
    described += f"{last['reward_accuracy']:.0%} of pairs by {last['reward_margin']:.3f} at step "
    described += f"{last['step']:,}, from {steps[0]['reward_accuracy']:.0%} by "
    described += f"{steps[0]['reward_margin']:.3f} at step {steps[0]['step']:,}."
    return Plot(f"Rewards of {stage}", svg, described)


def rollout_plots(stage: str, rows: Sequence[Event]) -> list[Plot]:
    """Reward against distance from the reference, and what the policy's answers are like."""
    first = {
        "reward": (_FIRST, False, "reward", "{:.3f}"),
        "kl": (_SECOND, True, "KL, nats an answer", "{:.3f}"),
    }
    second = {
        "entropy": (_FIRST, False, "entropy, nats a token", "{:.3f}"),
        "clip_fraction": (_INK, False, "clipped share", "{:.3f}"),
        "explained_variance": (_SECOND, False, "explained variance", "{:.2f}"),
        "length": (_INK, True, "length, tokens", "{:.1f}"),
    }
    return [
        _rollout_plot(f"Rollouts of {stage}: reward", f"rollout-reward-{stage}", rows, first),
        _rollout_plot(f"Rollouts of {stage}: policy", f"rollout-policy-{stage}", rows, second),
    ]


def _rollout_plot(
    title: str, name: str, rows: Sequence[Event], lines: Mapping[str, tuple[str, bool, str, str]]
) -> Plot:
    """Lines over the steps; each has a colour, whether its scale is the right one, a label."""
    found, described = {k: line for k, line in lines.items() if k in rows[0]}, []
    with rc_context(_STYLE):
        figure, axes = _axes(name)
        right = _second_axes(axes)
        for key, (colour, on_right, label, form) in found.items():
            values = [row[key] for row in rows]
            _line(right if on_right else axes, rows, values, colour, dashed=on_right)
            style, note = ("--", " (right)") if on_right else ("-", "")
            axes.plot([], [], color=colour, ls=style, label=f"{label}{note}")
            described.append(f"{label} {form.format(values[0])}, then {form.format(values[-1])}")
        axes.legend(loc="best")
        svg = _svg(figure)
    steps = f"from step {rows[0]['step']:,} to {rows[-1]['step']:,}"
    return Plot(title, svg, f"{title}, {steps}: {'; '.join(described)}.")


def bits_plot(models: Mapping[str, float], baselines: Mapping[str, float]) -> Plot:
    """Bits per byte of models and plain methods as bars; shorter is better."""
    bars = {**models, **baselines}
    colours = [_FIRST] * len(models) + [_INK] * len(baselines)
    with rc_context(_STYLE):
        figure, axes = _axes("bits", height=0.4 + 0.27 * len(bars))
        drawn = axes.barh(list(bars), list(bars.values()), height=0.68, color=colours)
        axes.bar_label(drawn, fmt="{:.3f}", padding=3, color=_INK)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.margins(x=0.14)
        axes.set_xlabel("")
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_visible(False)
        svg = _svg(figure)
    described = "Bits per byte of the validation text: "
    described += ", ".join(f"{name} {value:.3f}" for name, value in bars.items())
    return Plot("Bits per byte, shorter is better", svg, described + ".")


def _axes(name: str, height: float = 2.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), label=name, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, axes


def _second_axes(axes: Axes) -> Axes:
    """Another scale on the right, drawn behind the first."""
    second = axes.twinx()
    second.grid(visible=False)
    second.yaxis.set_major_locator(MaxNLocator(3))
    axes.set_zorder(second.get_zorder() + 1)
    return second


def _line(
    axes: Axes,
    steps: Sequence[Event],
    values: Sequence[float],
    colour: str,
    *,
    dashed: bool = False,
    faint: bool = False,
    label: str | None = None,
) -> None:
    every = -(-len(steps) // _SHOWN_POINTS)
    shown = sorted({*range(0, len(steps), every), len(steps) - 1})
    axes.plot(
        [steps[i]["step"] for i in shown],
        [values[i] for i in shown],
        color=colour,
        linestyle="--" if dashed else "-",
        linewidth=1.0 if faint else 1.8,
        alpha=0.45 if faint else 1.0,
        marker="o" if len(steps) < 4 and not dashed else None,
        markersize=4,
        clip_on=False,
        label=label,
    )


def _svg(figure: Figure) -> Markup:
    """The figure for a page with several: size and letters are the page's, ids its own."""
    name = str(figure.get_label())
    target = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(target, format="svg", metadata=_NO_METADATA)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for fixed in _FIXED:
        text = fixed.sub("", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)  # noqa: S704  matplotlib escapes the labels it draws
