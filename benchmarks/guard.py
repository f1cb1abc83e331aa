"""The guard's heads on sources they never learned from, beside a classifier of n-grams.

Both learn from the same texts in the same run: the head on SmolLM2's hidden states, the peer on
counts of words and of characters (logistic regression, the usual first thing to try). HarmBench is
held out of both. Measured only: XSTest (prompts, and answers of a model with people's labels),
`bastioncorpus`, CyberSecEval's direct injections, self-instruct's seeds, bank customers' questions,
CyberSecEval's borderline requests.

    python benchmarks/guard.py --data ../shared/data
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from harness import print_table

from puna.core.devices import describe_machine
from puna.evaluation.intervals import wilson_interval
from puna.safety.guard import training
from puna.safety.guard.head_guard import load_encoder
from puna.safety.guard.metrics import auc, recall_at, share_from, threshold_at
from puna.safety.guard.sources import Labelled, Task, asked, bastion_corpus
from puna.safety.models import digest_of
from puna.tokenizer import Message

HELD_OUT: Mapping[Task, tuple[str, ...]] = {"hazard": ("harmbench",), "injection": ()}
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


def measure(task: Task, model: str, measured: Mapping[str, list[Labelled]]) -> dict[str, Any]:
    """Head and peer, trained on the same texts: figures by comparison and by set."""
    say = lambda name, n, of: print(f"{task}: {name} ({n + 1}/{of})", file=sys.stderr)  # noqa: E731
    encoder, digest = load_encoder(model, None), digest_of(model)
    rows = training.features_of(encoder, digest, training.read_sources(task), say)
    about = {"task": task, "model": model, "digest": digest, "layers": encoder.layers}
    head, reports = training.train_head(rows, HELD_OUT[task], about)
    used = {name for c in COMPARISONS if c.task == task for name in (*c.unsafe, *c.safe)}
    used |= set(FALSE_POSITIVES[task])
    wanted = {name: items for name, items in measured.items() if name in used}
    seen = training.features_of(encoder, digest, wanted, say)
    started = time.perf_counter()
    encoder.encode([item.messages for item in measured["bank"][:20]])
    per_turn_ms = (time.perf_counter() - started) / 20 * 1000
    ours: Scores = {n: head.probabilities(part.features_nd).tolist() for n, part in seen.items()}
    held = {name: list(rows[name].labelled) for name in HELD_OUT[task]}
    ours |= {n: head.probabilities(rows[n].features_nd).tolist() for n in held}
    learned = {n: list(part.labelled) for n, part in rows.items() if n not in held}
    peer, peer_threshold = train_peer(learned)
    theirs: Scores = {name: peer.scores(items) for name, items in (wanted | held).items()}
    return {
        "learned_from": {name: list(counts) for name, counts in head.facts.sources.items()},
        "left_out": {name: vars(report) for name, report in reports.items()},
        "ms_per_short_turn": per_turn_ms,
        "head": figures(task, ours, head.facts.threshold),
        "n_grams": figures(task, theirs, peer_threshold),
    }


def train_peer(learned: Mapping[str, list[Labelled]]) -> tuple[NGrams, float]:
    """The peer, and its threshold by the head's rule: 1% of harmless turns of sources left out."""
    safe: list[float] = []
    for name, items in learned.items():
        if any(not item.unsafe for item in items):
            others = {n: part for n, part in learned.items() if n != name}
            fitted = NGrams(*_weighted(others))
            harmless = [item for item in items if not item.unsafe]
            safe += fitted.scores(harmless)
    return NGrams(*_weighted(learned)), threshold_at(safe, training.FALSE_POSITIVES)


def _weighted(learned: Mapping[str, list[Labelled]]) -> tuple[list[Labelled], torch.Tensor]:
    """All texts with the weights that the head's training gives them."""
    items = [item for part in learned.values() for item in part]
    parts = {name: training.Rows(torch.empty(0), part) for name, part in learned.items()}
    weights_n = training.weights_of(parts)
    return items, weights_n / weights_n.sum()


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
            "recall_at_1_percent": recall_at(unsafe, safe),
            "recall": share_from(unsafe, threshold),
            "false_positives": share_from(safe, threshold),
        }
    false = {}
    for name in FALSE_POSITIVES[task]:
        n, share = len(scores[name]), share_from(scores[name], threshold)
        low, high = wilson_interval(round(share * n), n)
        false[name] = {"n": n, "found": round(share * n), "share": share, "low": low, "high": high}
    return {"threshold": threshold, "compared": compared, "false_positives": false}


def show(found: Mapping[str, Any]) -> None:
    """The tables."""
    for task in ("hazard", "injection"):
        table = []
        for who in ("head", "n_grams"):
            for name, row in found[task][who]["compared"].items():
                shares = [f"{row[k]:.3f}" for k in ("auc", "recall_at_1_percent", "recall")]
                table.append([name, who, *shares, f"{row['false_positives']:.3f}"])
        print_table(
            [f"{task}, never learned from", "", "AUC", "recall at 1% FP", "recall", "FP"], table
        )
        table = [
            [name, who, f"{row['found']} of {row['n']}", f"{row['low']:.3f}-{row['high']:.3f}"]
            for who in ("head", "n_grams")
            for name, row in found[task][who]["false_positives"].items()
        ]
        print_table([f"{task}, harmless turns", "", "called harmful", "95% interval"], table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured = read_measured(options.data)
    tasks: tuple[Task, ...] = ("hazard", "injection")
    found: dict[str, Any] = {task: measure(task, options.model, measured) for task in tasks}
    found["machine"] = describe_machine()
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
