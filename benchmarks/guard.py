"""The guard's heads on sources they never learned from, beside a classifier of n-grams.

Both learn from the same texts in the same run: the head on SmolLM2's hidden states, the peer on
counts of words and of characters (logistic regression, the usual first thing to try). HarmBench is
held out of both. Measured only: XSTest (prompts, and answers of a model with people's labels),
`bastioncorpus`, CyberSecEval's direct injections, self-instruct's seeds, bank customers' questions,
CyberSecEval's borderline requests.

Features are kept in Puna's cache, figures of each task and side in --work: a run that was stopped
goes on. Intervals are percentile bootstraps over harmful and harmless turns (AUC, and recall at 1%
false positives, whose threshold is found anew each time) and Wilson's (shares at the threshold that
training chose).

    python benchmarks/guard.py --data ../shared/data --work /tmp/guard
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from harness import print_table

from puna.core.devices import describe_machine
from puna.core.files import write_json
from puna.core.random import stream
from puna.evaluation.intervals import wilson_interval
from puna.safety.guard import training
from puna.safety.guard.head_guard import load_encoder
from puna.safety.guard.metrics import auc, recall_at, share_from, threshold_at
from puna.safety.guard.sources import Labelled, Task, asked, bastion_corpus
from puna.safety.models import digest_of
from puna.tokenizer import Message

HELD_OUT: Mapping[Task, tuple[str, ...]] = {"hazard": ("harmbench",), "injection": ()}
TASKS: tuple[Task, ...] = ("hazard", "injection")
SIDES = ("head", "n_grams")
RESAMPLES = 1000
N_BUCKETS = 1 << 16
PENALTY = 1e-4  # of squared weights beside the mean loss: scikit-learn's default at this many texts
Scores = dict[str, list[float]]


@dataclass(frozen=True)
class Comparison:
    """Harmful turns of some sets against harmless ones of others."""

    task: Task
    name: str
    unsafe: tuple[str, ...]
    safe: tuple[str, ...]


COMPARISONS = (
    Comparison("hazard", "HarmBench / seeds, bank", ("harmbench",), ("seeds", "bank")),
    Comparison("hazard", "XSTest prompts", ("xstest-unsafe",), ("xstest-safe",)),
    Comparison("hazard", "XSTest unsafe / seeds, bank", ("xstest-unsafe",), ("seeds", "bank")),
    Comparison("hazard", "XSTest answers", ("answers-unsafe",), ("answers-safe",)),
    Comparison("injection", "bastioncorpus", ("bastion-unsafe",), ("bastion-safe",)),
    Comparison(
        "injection", "CyberSecEval direct / seeds, bank", ("injections",), ("seeds", "bank")
    ),
)
FALSE_POSITIVES: Mapping[Task, tuple[str, ...]] = {
    "hazard": ("xstest-safe", "seeds", "bank", "borderline"),
    "injection": ("bastion-safe", "xstest-safe", "seeds", "bank"),
}


def read_measured(data: Path) -> dict[str, list[Labelled]]:
    """What is measured on, by name; nothing of it is learned from."""
    sets: dict[str, list[Labelled]] = {}
    for row in _table(data / "xstest/xstest_prompts.csv"):
        name = f"xstest-{row['label']}"
        sets.setdefault(name, []).append(asked(row["prompt"], row["label"] == "unsafe", name))
    for row in _table(data / "xstest/xstest_v2_completions_mistralinstruct.csv"):
        if row["completion"] and not row["final_label"].startswith("3"):
            # Harmful: a request of the unsafe half that was complied with.
            unsafe = row["type"].startswith("contrast") and row["final_label"].startswith("1")
            name = f"answers-{'unsafe' if unsafe else 'safe'}"
            turns = (Message("user", row["prompt"]), Message("assistant", row["completion"]))
            sets.setdefault(name, []).append(Labelled(turns, unsafe, name))
    for item in bastion_corpus():
        name = f"bastion-{'unsafe' if item.unsafe else 'safe'}"
        sets.setdefault(name, []).append(item)
    injections = _json(data / "cyberseceval/prompt_injection/prompt_injection.json")
    sets["injections"] = [
        asked(row["user_input"], True, "injections")
        for row in injections
        if row["injection_type"] == "direct"
    ]
    borderline = _json(data / "cyberseceval/mitre_frr/mitre_frr.json")[:250]
    sets["borderline"] = [asked(row["mutated_prompt"], False, "borderline") for row in borderline]
    seeds = (data / "self-instruct-seeds/seed_tasks.jsonl").read_text().splitlines()
    sets["seeds"] = [asked(_seed(json.loads(line)), False, "seeds") for line in seeds]
    bank = _table(data / "banking77/test.csv")[::15]
    sets["bank"] = [asked(row["text"], False, "bank") for row in bank]
    return sets


def _seed(row: Mapping[str, Any]) -> str:
    return f"{row['instruction']}\n\n{row['instances'][0]['input']}".strip()


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class NGrams:
    """The peer: logistic regression on hashed counts of words, word pairs and character n-grams."""

    def __init__(self, items: Sequence[Labelled], weights_n: torch.Tensor) -> None:
        counts = self._counts([item.text for item in items])
        turned = counts.to_sparse_coo().T.to_sparse_csr()
        targets_n = torch.tensor([float(item.unsafe) for item in items])
        weight_d, bias = torch.zeros(N_BUCKETS, 1), torch.zeros(1)
        optimizer = torch.optim.LBFGS(
            [weight_d, bias], max_iter=40, history_size=10, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            logits_n = (counts @ weight_d + bias)[:, 0]
            each = torch.nn.functional.binary_cross_entropy_with_logits(
                logits_n, targets_n, reduction="none"
            )
            error_n = (torch.sigmoid(logits_n) - targets_n) * weights_n
            weight_d.grad = turned @ error_n[:, None] + 2 * PENALTY * weight_d
            bias.grad = error_n.sum()[None]
            return (each * weights_n).sum() + PENALTY * weight_d.square().sum()

        optimizer.step(loss)  # type: ignore[arg-type]
        self._weight_d, self._bias = weight_d, bias

    def scores(self, items: Sequence[Labelled]) -> list[float]:
        """Logits."""
        counts = self._counts([item.text for item in items])
        logits: list[float] = (counts @ self._weight_d + self._bias)[:, 0].tolist()
        return logits

    @staticmethod
    def _counts(texts: Sequence[str]) -> torch.Tensor:
        """Rows of length 1: (texts, buckets), sparse."""
        rows, columns = [], []
        for number, text in enumerate(texts):
            grams = _grams(text[:2000])
            rows += [number] * len(grams)
            columns += grams
        ones = torch.ones(len(rows))
        counts = torch.sparse_coo_tensor(
            torch.tensor([rows, columns]), ones, (len(texts), N_BUCKETS)
        ).coalesce()
        values = 1 + counts.values().log()
        squares = torch.zeros(len(texts)).index_add(0, counts.indices()[0], values.square())
        values /= squares.sqrt()[counts.indices()[0]]
        return torch.sparse_coo_tensor(counts.indices(), values, counts.shape).to_sparse_csr()


@cache
def _grams(text: str) -> list[int]:
    lowered = " ".join(text.lower().split())
    words = lowered.split(" ")
    grams = [*words, *(" ".join(pair) for pair in pairwise(words))]
    grams += [f"#{lowered[i : i + n]}" for n in (3, 4, 5) for i in range(len(lowered) - n + 1)]
    return [crc32(gram.encode()) % N_BUCKETS for gram in grams]


def say(name: str, number: int, n: int) -> None:
    """How far the features are."""
    print(f"features of {name} ({number + 1} of {n})", file=sys.stderr, flush=True)


def measure_head(task: Task, model: str, measured: Mapping[str, list[Labelled]]) -> dict[str, Any]:
    """The head, trained without the sources held out: its figures by comparison and by set."""
    encoder, digest = load_encoder(model, None), digest_of(model)
    rows = training.features_of(encoder, digest, training.read_sources(task), say)
    seen = training.features_of(encoder, digest, used_in(task, measured), say)
    started = time.perf_counter()
    encoder.encode([item.messages for item in measured["bank"][:20]])
    per_turn_ms = (time.perf_counter() - started) / 20 * 1000
    about = {"task": task, "model": model, "digest": digest, "layers": encoder.layers}
    head, reports = training.train_head(rows, HELD_OUT[task], about)
    seen |= {name: rows[name] for name in HELD_OUT[task]}
    scores = {n: head.probabilities(part.features_nd).tolist() for n, part in seen.items()}
    return figures(task, scores, head.facts.threshold) | {
        "learned_from": {name: list(counts) for name, counts in head.facts.sources.items()},
        "left_out": {name: vars(report) for name, report in reports.items()},
        "slope": head.facts.slope,
        "ms_per_short_turn": per_turn_ms,
    }


def measure_n_grams(
    task: Task, _model: str, measured: Mapping[str, list[Labelled]]
) -> dict[str, Any]:
    """The peer on the same texts, its threshold by the head's rule."""
    sources = training.read_sources(task)
    held = {name: sources.pop(name) for name in HELD_OUT[task]}
    rows = {n: training.Rows(torch.empty(len(items), 0), items) for n, items in sources.items()}
    safe: list[float] = []
    for fold in training.folds_of(rows):
        fitted = _fitted(training.chosen(rows, {name: ~mask for name, mask in fold.items()}))
        left = [i for part in training.chosen(rows, fold).values() for i in part.labelled]
        safe += fitted.scores([item for item in left if not item.unsafe])
    peer, threshold = _fitted(rows), threshold_at(safe, training.FALSE_POSITIVES)
    wanted = used_in(task, measured) | held
    return figures(task, {name: peer.scores(items) for name, items in wanted.items()}, threshold)


def _fitted(rows: Mapping[str, training.Rows]) -> NGrams:
    """The peer, with the weights that the head's training gives the texts."""
    items = [item for part in rows.values() for item in part.labelled]
    weights_n = training.weights_of(rows)
    return NGrams(items, weights_n / weights_n.sum())


def used_in(task: Task, measured: Mapping[str, list[Labelled]]) -> dict[str, list[Labelled]]:
    """The sets that a task's figures need, but for the sources held out."""
    used = {name for c in COMPARISONS if c.task == task for name in (*c.unsafe, *c.safe)}
    used |= set(FALSE_POSITIVES[task])
    return {name: items for name, items in measured.items() if name in used}


def figures(task: Task, scores: Scores, threshold: float) -> dict[str, Any]:
    """AUC and recall of each comparison, false positives of each set, at the threshold."""
    compared = {}
    for one in (c for c in COMPARISONS if c.task == task):
        unsafe = [score for name in one.unsafe for score in scores[name]]
        safe = [score for name in one.safe for score in scores[name]]
        compared[one.name] = {
            "unsafe": len(unsafe),
            "safe": len(safe),
            "auc": auc(unsafe, safe),
            "auc_interval": resampled(auc, unsafe, safe),
            "recall_at_1_percent": recall_at(unsafe, safe),
            "recall_at_1_percent_interval": resampled(recall_at, unsafe, safe),
            "recall": share_from(unsafe, threshold),
            "recall_interval": _interval(unsafe, threshold),
            "false_positives": share_from(safe, threshold),
        }
    false = {}
    for name in FALSE_POSITIVES[task]:
        n, share = len(scores[name]), share_from(scores[name], threshold)
        low, high = _interval(scores[name], threshold)
        false[name] = {"n": n, "found": round(share * n), "share": share, "low": low, "high": high}
    return {"threshold": threshold, "compared": compared, "false_positives": false}


def resampled(
    figure: Callable[[list[float], list[float]], float], unsafe: list[float], safe: list[float]
) -> tuple[float, float]:
    """95% interval of a figure of two sets, both drawn anew with replacement."""
    rng = stream("guard", len(unsafe), len(safe))
    found = [
        figure(rng.choice(unsafe, len(unsafe)).tolist(), rng.choice(safe, len(safe)).tolist())
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _interval(scores: list[float], threshold: float) -> tuple[float, float]:
    return wilson_interval(round(share_from(scores, threshold) * len(scores)), len(scores))


def show(found: Mapping[str, Any]) -> None:
    """The tables."""
    for task in TASKS:
        table = []
        for who in SIDES:
            for name, row in found[task][who]["compared"].items():
                shares = [
                    f"{row[k]:.3f} ({row[f'{k}_interval'][0]:.2f}-{row[f'{k}_interval'][1]:.2f})"
                    for k in ("auc", "recall_at_1_percent", "recall")
                ]
                table.append([name, who, *shares, f"{row['false_positives']:.3f}"])
        print_table(
            [f"{task}, never learned from", "", "AUC", "recall at 1% FP", "recall", "FP"], table
        )
        table = [
            [name, who, f"{row['found']} of {row['n']}", f"{row['low']:.3f}-{row['high']:.3f}"]
            for who in SIDES
            for name, row in found[task][who]["false_positives"].items()
        ]
        print_table([f"{task}, harmless turns", "", "called harmful", "95% interval"], table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--work", type=Path, required=True, help="Finished figures; a new folder measures anew."
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured = read_measured(options.data)
    options.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": describe_machine()}
    for who, task in product(SIDES, TASKS):
        path = options.work / f"{task}-{who}.json"
        if not path.exists():
            run = measure_head if who == "head" else measure_n_grams
            write_json(path, run(task, options.model, measured))
            print(f"{path} is done", file=sys.stderr, flush=True)
        found.setdefault(task, {})[who] = _json(path)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
