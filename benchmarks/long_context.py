"""SmolLM2's context made four times as long: needles found by length and depth, before and after.

    python benchmarks/long_context.py              # trains, judges, draws: about 5 minutes on a GPU
    python benchmarks/long_context.py --prepare    # only makes the text, for a machine without it
    python benchmarks/long_context.py --draw       # only draws what is kept

The model is tuned in rows of its own context, 8,192 tokens, on articles of Wikipedia and short
texts with needles in them (`puna.pretraining.needle`). Then RoPE is scaled by four, and the
curriculum's context stage trains it on texts of 32,768 tokens too, until its gate opens. Needles
are looked for in held-out text by four models: SmolLM2 as it is, the one tuned on short texts, the
same with RoPE scaled, and the one that was trained on. Killed and started again, it goes on where
it was.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from pydantic import Field

from puna.core.config import Config
from puna.core.devices import default_device, describe_machine
from puna.core.errors import PunaError
from puna.core.events import EventLog
from puna.core.files import write_json
from puna.core.random import stream
from puna.data import CorpusConfig, PackedRows, TokenFile, build_corpus, write_tokens
from puna.evaluation.intervals import wilson_interval
from puna.formats import load_model, save_model
from puna.formats.resolve import load_tokenizer
from puna.pretraining.curriculum import CurriculumRun, Texts
from puna.pretraining.held_out import held_out_loss
from puna.pretraining.needle import needles_found, needles_row
from puna.pretraining.recipe import Curriculum
from puna.pretraining.tokens import document_tokens
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.training.loop import compute_dtype

HERE = Path(__file__).parent
KEPT = HERE / "long_context.json"
PICTURE = HERE.parent / "docs" / "pictures" / "long-context.svg"
MODELS = {
    "as it is": "base",
    "tuned on short texts": "short",
    "RoPE scaled": "short",
    "RoPE scaled, trained on": "long",
}
MOST = 8  # needles in a row


class Judge(Config):
    """Where needles are looked for."""

    lengths: list[int]
    """Tokens of a row."""
    depths: int = Field(ge=2, le=8)
    """Needles in a row, spread evenly."""
    rows: int = Field(ge=1)
    """Rows of each length."""


class NeedleRows(Config):
    """Rows with needles to train on."""

    row_length: int
    """Tokens of each."""
    rows: int = Field(ge=1)
    """How many."""


class Settings(Config):
    """What is trained, and what is looked for."""

    seed: int
    """Of text, order and needles."""
    base: str
    """The model whose context grows, as commands take it."""
    max_chars: int
    """Of Wikipedia."""
    needles: dict[str, NeedleRows]
    """By the name the curriculum mixes them under; ``text`` is Wikipedia."""
    loop: LoopConfig
    """How it is trained."""
    curriculum: Curriculum
    """What it is trained on, phase after phase."""
    judge: Judge
    """Where needles are looked for."""


def prepared(settings: Settings, folder: Path) -> tuple[Tokenizer, Texts]:
    """Text, rows with needles, and held-out text as tokens, made once."""
    names = folder / "sources.json"
    if not names.exists():
        corpus = build_corpus(
            CorpusConfig.parse(
                {"sources": {"wikipedia-en": {"max_chars": settings.max_chars}},
                 "validation_fraction": 0.08}, where="long_context.yaml",
            ), settings.seed,
        )  # fmt: skip
        tokenizer = load_tokenizer(settings.base)
        tokenizer.save(folder / "tokenizer")
        natural = document_tokens(tokenizer, [document.text for document in corpus.train])
        held_out = document_tokens(tokenizer, [d.text for d in corpus.validation])
        hay = [token for ids in natural for token in ids]
        with_needles = list(needles(settings, tokenizer, hay))
        items = [*natural, *(ids for _, ids in with_needles)]
        write_tokens(folder / "train", ((ids, None) for ids in items), tokenizer.vocab_size)
        write_tokens(folder / "held-out", ((ids, None) for ids in held_out), tokenizer.vocab_size)
        write_json(names, ["text"] * len(natural) + [name for name, _ in with_needles])
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    sources = json.loads(names.read_text())
    files = [TokenFile(folder / name) for name in ("train", "held-out")]
    return tokenizer, Texts(files[0], sources, files[1])


def needles(
    settings: Settings, tokenizer: Tokenizer, hay: list[int]
) -> Iterator[tuple[str, list[int]]]:
    """Source and ids of rows with needles, one to eight in each."""
    draw = stream(settings.seed, "rows with needles")
    for name, kind in settings.needles.items():
        for _ in range(kind.rows):
            n, seed = int(draw.integers(1, MOST + 1)), int(draw.integers(2**40))
            yield name, needles_row(tokenizer, hay, kind.row_length, n, seed).ids


def trained(settings: Settings, work: Path, tokenizer: Tokenizer, texts: Texts) -> dict[str, Any]:
    """Train what is not trained yet; what the context stages' gates said, and the time taken."""
    facts, began = work / "facts.json", time.perf_counter()
    for name, curriculum in (
        ("short", settings.curriculum.model_copy(update={"long_context": None})),
        ("long", settings.curriculum),
    ):
        if (work / name).exists():
            continue
        model, _ = load_model(settings.base, device=default_device())
        (work / "run").mkdir(exist_ok=True)
        run = CurriculumRun(
            curriculum, settings.loop, texts, settings.seed, work / "run",
            EventLog(work / "events.jsonl", readers=(_told,)), "long-context",
        )  # fmt: skip
        progress = run.run(model, tokenizer)
        write_json(facts, run.facts() | {"seconds": round(progress.seconds)})
        if name == "short":  # the second run finds its last step, and judges it before it goes on
            (work / "run" / "curriculum.json").unlink(missing_ok=True)
        save_model(work / name, model, tokenizer)
    print(f"trained ({time.perf_counter() - began:.0f} s)", flush=True)
    found: dict[str, Any] = json.loads(facts.read_text())
    return found


def _told(event: dict[str, Any]) -> None:
    if event["kind"] in ("note", "warning"):
        print(event["text"], flush=True)
    if event["kind"] == "train_step":
        print(f"  step {event['step']}: loss {event['loss']:.3f}", flush=True)


def judged(settings: Settings, work: Path, tokenizer: Tokenizer, texts: Texts) -> dict[str, Any]:
    """Needles found by each model, at each length, by depth; kept after each length."""
    path = work / "judged.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    judge, long = settings.judge, settings.curriculum.long_context
    assert long is not None
    for name, folder in MODELS.items():
        where = settings.base if folder == "base" else work / folder
        model, _ = load_model(where, device=default_device())
        rope = long.rope if name.startswith("RoPE scaled") else None
        model.stretch(max(judge.lengths), rope)
        model.compute_dtype = compute_dtype(settings.loop, model.device)
        seen = found.setdefault(name, {"found": {}})
        if "short_loss" not in seen:
            rows = PackedRows(texts.held_out, settings.curriculum.short)
            seen["short_loss"] = round(held_out_loss(model, rows, 128), 4)
        for length in judge.lengths:
            if str(length) in seen["found"]:
                continue
            each = [
                needles_found(
                    model,
                    needles_row(tokenizer, texts.hay, length, judge.depths, 10_000 * length + row),
                )
                for row in range(judge.rows)
            ]
            seen["found"][str(length)] = np.sum(each, axis=0).tolist()
            write_json(path, found)
            print(f"{name}, {length:,} tokens: {seen['found'][str(length)]}", flush=True)
    return found


def draw(kept: dict[str, Any], path: Path) -> None:
    """A map for each model: share of needles found, by length and depth."""
    settings = kept["settings"]
    judge, trained_on = settings["judge"], settings["curriculum"]["phases"][0]["row_length"]
    lengths, depths = judge["lengths"], np.linspace(0, 1, judge["depths"])
    reach = settings["curriculum"]["long_context"]["stages"][-1]["row_length"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "puna", "font.size": 9}):
        figure = Figure(figsize=(12, 3), layout="constrained")
        panels = figure.subplots(1, len(kept["models"]), sharey=True)
        for axes, (name, seen) in zip(panels, kept["models"].items(), strict=True):
            share = np.array([seen["found"][str(n)] for n in lengths]).T / judge["rows"]
            image = axes.imshow(share, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
            for (row, column), value in np.ndenumerate(share):
                axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=8)
            for last in (trained_on, reach) if name.endswith("trained on") else (trained_on,):
                axes.axvline(lengths.index(last) + 0.5, color="black", lw=1.5)
            axes.set_xticks(range(len(lengths)), [f"{n // 1024}k" for n in lengths])
            axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
            axes.set(title=name, xlabel="tokens in the row")
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("depth of the needle")
        figure.colorbar(image, ax=panels, label="needles found", format=lambda v, _: f"{v:.0%}")
        figure.savefig(path, metadata={"Date": None})


def table(kept: dict[str, Any]) -> Iterator[str]:
    """Rows of all depths together, with intervals."""
    judge = kept["settings"]["judge"]
    n = judge["rows"] * judge["depths"]
    yield f"n = {n} needles at each length; 95% intervals"
    for name, seen in kept["models"].items():
        cells = []
        for length in judge["lengths"]:
            count = sum(seen["found"][str(length)])
            low, high = wilson_interval(count, n)
            cells.append(f"{count / n:.0%} ({low:.0%} to {high:.0%})")
        yield " | ".join([name, *cells, f"short loss {seen['short_loss']}"])


def main() -> None:
    """Train, judge and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=Path, default=HERE / "long_context.yaml")
    parser.add_argument("--work", type=Path, default=Path("runs/long-context"))
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--prepare", action="store_true", help="only make the text")
    parser.add_argument("--draw", action="store_true", help="only draw what is kept")
    asked = parser.parse_args()
    if not asked.draw:
        given = yaml.safe_load(asked.settings.read_text())
        settings = Settings.parse(given, where=str(asked.settings))
        asked.work.mkdir(parents=True, exist_ok=True)
        tokenizer, texts = prepared(settings, asked.work)
        if asked.prepare:
            return
        facts = trained(settings, asked.work, tokenizer, texts)
        models = judged(settings, asked.work, tokenizer, texts)
        write_json(
            asked.out,
            {"settings": given, "machine": describe_machine(), "trained": facts, "models": models},
        )
    kept = json.loads(asked.out.read_text())
    draw(kept, asked.picture)
    print("\n".join(table(kept)))


if __name__ == "__main__":
    try:
        main()
    except PunaError as error:
        raise SystemExit(str(error)) from None
