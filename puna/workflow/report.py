"""The report of a run: one HTML file with everything in it, no script, no network."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from puna.core.events import Event, read_events
from puna.core.files import write_text
from puna.core.pages import render
from puna.workflow.plots import (
    Plot,
    bits_plot,
    loss_plot,
    reward_plot,
    rollout_plots,
    training_steps,
)
from puna.workflow.summary import STAGE_HEAD, stage_rows, table_rows

REPORT = "report.html"
_SHOWN_MISSES = 12
_MODELS = {
    "untrained": "the untrained model",
    "base": "the model it started from",
    "pretrain": "the pretrained model",
    "cpt": "the model that read on",
    "sft": "the instruction-tuned model",
    "dpo": "the preference-tuned model",
    "ppo": "the model tuned on rewards",
    "grpo": "the model tuned on rewards",
}
_BASELINES = {
    "five_gram": "5-gram Kneser-Ney",
    "ppmd": "PPMd, 5 bytes",
    "xz_primed": "xz, knowing the training text",
    "xz_alone": "xz",
}
_PLAIN_METHODS = ("5-", "xz")  # how their rows begin in the table
_MACHINE = {
    "cpu": "Processor",
    "cores": "Cores",
    "threads": "Threads of torch",
    "memory_gib": "Memory, GiB",
    "gpu": "GPU",
    "gpus": "GPUs",
    "system": "System",
    "python": "Python",
    "torch": "PyTorch",
}


@dataclass(frozen=True)
class TextTable:
    """A table of text; the first cell of a row is its head."""

    label: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()
    prose: bool = False
    """Whether cells hold words, which stand left, and not figures."""


@dataclass(frozen=True)
class Row:
    """A row of the before-and-after table."""

    title: str
    cells: Sequence[str]
    """A figure of each model; none where the title says it all."""
    best: frozenset[int]
    """Which cells are the best ones."""
    part: bool
    """Whether it belongs to the row above."""


def write_report(folder: Path, summary: dict[str, Any]) -> Path:
    """Write ``report.html`` into the run folder; returns its path.

    Whatever the run does not have (evaluations, a corpus) is left out.
    """
    path = folder / REPORT
    write_text(path, render(Path(__file__).parent / "report.html.jinja", _page(folder, summary)))
    return path


def _page(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    events = list(read_events(folder / "events.jsonl"))
    stages: dict[str, Any] = summary["stages"]
    models: dict[str, Any] = summary["evaluation"]
    steps = {name: s for name, s in training_steps(events).items() if name in stages}
    rollouts = {n: rows for n, rows in training_steps(events, "rollout").items() if n in stages}
    samples = {name: _json(folder / f"evaluate-{name}" / "samples.json") for name in models}
    last = next(reversed(models), None)
    misses = _json(folder / f"evaluate-{last}" / "misses.json") or []
    return {
        "summary": summary,
        "outcome": outcome(summary),
        "date": _date(events),
        "glance": _glance(summary, events),
        "models": list(models),
        "comparison": comparison(summary),
        "held_out": _held_out(summary),
        "gate": _gate(stages.get("gate")),
        "kinds": _kinds(models),
        "losses": [
            loss_plot(name, found, stages[name].get("held_out_losses", {}))
            for name, found in steps.items()
        ],
        "rewards": [reward_plot(n, s) for n, s in steps.items() if "reward_accuracy" in s[-1]]
        + [plot for name, rows in rollouts.items() for plot in rollout_plots(name, rows)],
        "bits": _bits(summary),
        "dialogues": _side_by_side(samples, "dialogues", "question"),
        "continuations": _side_by_side(samples, "continuations", "prompt"),
        "last": last,
        "misses": _misses(misses),
        "timing": _timing(summary, events, steps),
        "attempts": sum(event["kind"] == "run_start" for event in events),
        "card": _card(_json(folder / "data" / "card.json"), stages) if "data" in stages else None,
        "machine": {_MACHINE.get(k, k): v for k, v in summary.get("machine", {}).items()},
        "recipe": _text(folder / "recipe.yaml"),
    }


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _json(path: Path) -> Any:
    text = _text(path)
    return None if text is None else json.loads(text)


def _date(events: Sequence[Event]) -> str | None:
    """When the run ended; a report made again later keeps it."""
    return (
        f"{datetime.fromtimestamp(events[-1]['time'], UTC):%Y-%m-%d %H:%M} UTC" if events else None
    )


def outcome(summary: Mapping[str, Any]) -> str:
    """What came out of the run, in a sentence."""
    models, stages = summary["evaluation"], summary["stages"]
    if models:
        return _sentence([*_answers(models), *_likelihood(models, stages.get("baselines"))])
    rows = stage_rows(summary)
    if rows:
        stage, number, title, before, after = next(row for row in rows if row[0] == rows[-1][0])
        changed = f"{before} before, {after} after" if before else after
        n, what = number.split()
        return _sentence([f"{title} of {stage} on {n} held-out {what}: {changed}"])
    trained = [name for name, facts in stages.items() if "tokens_per_s" in facts]
    if trained:
        facts = stages[trained[-1]]
        return f"{trained[-1]}: {facts['steps']:,} steps, {facts['tokens']:,} tokens."
    return ""


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _answers(models: Mapping[str, Any]) -> list[str]:
    name, facts = list(models.items())[-1]
    if "exact_match" not in facts:
        return []
    share = f"{facts['exact_match']:.1%} of {facts['questions']:,} held-out questions"
    return [f"{_MODELS.get(name, name)} answers {share}"]


def _likelihood(models: Mapping[str, Any], baselines: Mapping[str, float] | None) -> list[str]:
    """Of those that read plain text last: chats pull the later ones away from it."""
    told = {n: facts["bits_per_byte"] for n, facts in models.items() if "bits_per_byte" in facts}
    if not told:
        return []
    readers = [name for name in ("pretrain", "cpt") if name in told] or list(told)[-1:]
    first, *others = [(_MODELS.get(name, name), told[name]) for name in readers]
    others += [("a 5-gram model", baselines["five_gram"])] if baselines else []
    text = f"{first[0]} needs {first[1]:.3f} bits per byte of held-out text"
    return ["".join([text, *(f", {name} {bits:.3f}" for name, bits in others)])]


def _glance(summary: Mapping[str, Any], events: Sequence[Event]) -> dict[str, str]:
    stages = summary["stages"].values()
    facts: dict[str, Any] = {name: fact for stage in stages for name, fact in stage.items()}
    tokens = sum(stage["tokens"] for stage in stages if "tokens_per_s" in stage)
    seconds = sum(_stage_seconds(summary, events).values())
    figures = {
        "Parameters": f"{facts['parameters']:,}" if "parameters" in facts else "",
        "Vocabulary": f"{facts['vocab_size']:,}" if "vocab_size" in facts else "",
        "Training tokens": f"{tokens:,}" if tokens else "",
        "Time": _duration(seconds) if seconds else "",
        "Seed": str(summary.get("seed", "")),
    }
    return {name: text for name, text in figures.items() if text}


def comparison(summary: Mapping[str, Any]) -> list[Row]:
    """The before-and-after table with the best of each row; plain methods are notes in it."""
    if not summary["evaluation"]:
        return []
    rows = []
    for title, *cells in table_rows(summary)[1:]:
        name = title.strip()
        if name.startswith(_PLAIN_METHODS):
            rows.append(Row(f"{name}: {cells[0]}", [], frozenset(), part=True))
        else:
            best = _best(cells, least="bits per byte" in name)
            rows.append(Row(name, cells, best, part=title != name))
    return rows


def _best(cells: Sequence[str], *, least: bool) -> frozenset[int]:
    """Places of the best figures as they are shown; none where all are equal."""
    values = {i: float(cell.rstrip("%")) for i, cell in enumerate(cells) if cell}
    if len(set(values.values())) < 2:
        return frozenset()
    best = (min if least else max)(values.values())
    return frozenset(i for i, value in values.items() if value == best)


def _held_out(summary: Mapping[str, Any]) -> TextTable | None:
    rows = stage_rows(summary)
    label = "Each stage on data it was not trained on"
    return TextTable(label, STAGE_HEAD, rows) if rows else None


def _gate(facts: Mapping[str, Any] | None) -> TextTable | None:
    """The measures of the gate against their thresholds."""
    if facts is None:
        return None
    head = ["measure", "rate", "95% interval", "n", "at most", ""]
    rows = [
        [
            name.replace("_", " "),
            f"{check['rate']:.1%}",
            f"{check['low']:.1%} to {check['high']:.1%}",
            f"{check['n']:,}",
            f"{check['at_most']:.1%}",
            "passed" if check["passed"] else "not passed",
        ]
        for name, check in facts["checks"].items()
    ]
    outcome = "may be served" if facts["passed"] else "is not served without a reason"
    return TextTable(f"The gate: the model {outcome}", head, rows)


def _kinds(models: Mapping[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Shares by kind for each model, below their title."""
    titles = {
        "exact_match_by_kind": "Held-out questions, exact match by kind",
        "preference_accuracy_by_kind": "Held-out preferences by kind",
    }
    found = {}
    for figure, title in titles.items():
        by_model = [facts.get(figure, {}) for facts in models.values()]
        kinds = dict.fromkeys(chain.from_iterable(by_model))
        found[title] = {
            kind.replace("_", " "): [shares.get(kind) for shares in by_model] for kind in kinds
        }
    return {title: rows for title, rows in found.items() if rows}


def _bits(summary: Mapping[str, Any]) -> Plot | None:
    measured = {
        name: facts["bits_per_byte"]
        for name, facts in summary["evaluation"].items()
        if "bits_per_byte" in facts
    }
    baselines = summary["stages"].get("baselines", {})
    named = {title: baselines[key] for key, title in _BASELINES.items() if key in baselines}
    return bits_plot(measured, named) if measured else None


def _side_by_side(
    samples: Mapping[str, Any], what: str, asked: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each prompt, each model's sample."""
    prompts: dict[str, dict[str, dict[str, Any]]] = {}
    for model, found in samples.items():
        for sample in (found or {}).get(what, []):
            prompts.setdefault(sample[asked], {})[model] = sample
    return prompts


def _misses(misses: Iterable[Mapping[str, str]]) -> TextTable | None:
    """Some wrong answers, a few of each kind."""
    by_kind: dict[str, list[list[str]]] = {}
    for miss in misses:
        row = [miss["kind"].replace("_", " "), *(miss[k] for k in ("prompt", "answer", "reply"))]
        by_kind.setdefault(miss["kind"], []).append(row)
    in_turn = [row for turn in zip_longest(*by_kind.values()) for row in turn if row]
    rows = sorted(in_turn[:_SHOWN_MISSES], key=lambda row: row[0])
    head = ["kind", "question", "right answer", "what it said"]
    label = f"{len(rows)} of its {sum(map(len, by_kind.values())):,} wrong answers, of every kind"
    return TextTable(label, head, rows, prose=True) if rows else None


def _stage_seconds(summary: Mapping[str, Any], events: Sequence[Event]) -> dict[str, float]:
    """Wall-clock seconds of each stage, evaluations included, in the order they ran."""
    known = {name: facts["seconds"] for name, facts in summary["stages"].items()}
    judged = {f"evaluate-{name}" for name in summary["evaluation"]}
    ended = {e["stage"]: e["seconds"] for e in events if e["kind"] == "stage_end"}
    known |= {name: seconds for name, seconds in ended.items() if name in known or name in judged}
    order = [
        e["stage"] for e in _last_attempt(events) if e["kind"] in ("stage_start", "stage_skip")
    ]
    return {name: known[name] for name in dict.fromkeys([*order, *known]) if name in known}


def _last_attempt(events: Sequence[Event]) -> Sequence[Event]:
    starts = [i for i, event in enumerate(events) if event["kind"] == "run_start"]
    return events[starts[-1] :] if starts else []


def _timing(
    summary: Mapping[str, Any], events: Sequence[Event], steps: Mapping[str, Sequence[Event]]
) -> TextTable | None:
    seconds = _stage_seconds(summary, events)
    head = ["stage", "time", "of it training", "steps", "tokens", "tokens/s", "MFU"]
    rows = []
    for name, spent in seconds.items():
        facts = summary["stages"].get(name, {})
        figures = [""] * 5
        if "tokens_per_s" in facts:
            figures = [
                _duration(facts["train_seconds"]),
                f"{facts['steps']:,}",
                f"{facts['tokens']:,}",
                f"{facts['tokens_per_s']:,.0f}",
                f"{mean_mfu(steps[name]):.0%}" if name in steps else "",
            ]
        rows.append([name, _duration(spent), *figures])
    foot = ["all", _duration(sum(seconds.values())), *[""] * 5]
    label = "Wall-clock time of each stage, and the speed of its training"
    return TextTable(label, head, rows, foot) if rows else None


def mean_mfu(steps: Sequence[Event]) -> float:
    """Model FLOPs utilisation of a whole stage: its steps' mean, weighted by their seconds."""
    starts = [0.0, *(event["seconds"] for event in steps)]
    spent = [event["seconds"] - start for event, start in zip(steps, starts, strict=False)]
    return sum(e["mfu"] * s for e, s in zip(steps, spent, strict=True)) / sum(spent)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _amounts(card: Mapping[str, Any], tokens: Mapping[str, int]) -> TextTable:
    """Text by source; documents and characters count once, tokens every epoch."""
    head = ["source", "read", "trained on", "characters", "epochs", "tokens", "held out"]
    sources = card["sources"]
    rows = [
        [
            name,
            f"{source['read']['documents']:,}",
            f"{source['train']['documents']:,}",
            f"{source['train']['chars']:,}",
            f"{source['epochs']:g}",
            f"{tokens[name]:,}" if name in tokens else "",
            f"{source['validation']['documents']:,}",
        ]
        for name, source in sources.items()
    ]
    foot = [
        "all",
        f"{sum(s['read']['documents'] for s in sources.values()):,}",
        f"{sum(s['train']['documents'] for s in sources.values()):,}",
        f"{sum(s['train']['chars'] for s in sources.values()):,}",
        "",
        f"{sum(tokens.values()):,}" if tokens else "",
        f"{sum(s['validation']['documents'] for s in sources.values()):,}",
    ]
    return TextTable("Documents, characters and tokens by source", head, rows, foot)


def _dropped(card: Mapping[str, Any]) -> TextTable | None:
    """Documents left out by source and reason, duplicates and evaluation items among them."""
    dropped = {n: source["dropped"] for n, source in card["sources"].items() if source["dropped"]}
    reasons = list(dict.fromkeys(chain.from_iterable(dropped.values())))
    rows = [
        [name, *(f"{counts[r]:,}" if r in counts else "" for r in reasons)]
        for name, counts in dropped.items()
    ]
    foot = ["all", *(f"{sum(c.get(r, 0) for c in dropped.values()):,}" for r in reasons)]
    return TextTable("Documents left out", ["source", *reasons], rows, foot) if rows else None


def _licences(card: Mapping[str, Any]) -> TextTable:
    head = ["source", "what it is", "from", "licence", "credit"]
    keys = ("description", "origin", "licence", "attribution")
    rows = [[name, *(source[key] for key in keys)] for name, source in card["sources"].items()]
    return TextTable("Licences and credits", head, rows, prose=True)


def _card(card: Mapping[str, Any] | None, stages: Mapping[str, Any]) -> dict[str, Any] | None:
    if card is None:
        return None
    tokens: dict[str, int] = {}  # of one corpus, by either stage; a curriculum counts none
    for stage in ("pretrain", "cpt"):
        tokens |= stages.get(stage, {}).get("tokens_by_source", {})
    return {
        "amounts": _amounts(card, tokens),
        "dropped": _dropped(card),
        "contamination": card["contamination"],
        "missing": card["missing"],
        "licences": _licences(card),
    }
