"""Preferences of people: does DPO teach SmolLM2 some that it was not shown?

SmolLM2-135M gets a LoRA adapter on the chosen answers (SFT), then one on the pairs (DPO, as in
Llama 3.1); after each stage the held-out pairs, split by prompt, are judged. Data: ``pyrit``,
answers to harmful requests whose severity people scored (fetched), or ``hh``, pairs of HH-RLHF in a
file. Settings are chosen with ``--choose``, which holds out a part of the training pairs instead.
With ``--keep FOLDER`` a run that was stopped goes on there, started again with the same settings.

    python benchmarks/preferences.py pyrit
    python benchmarks/preferences.py hh --file ../shared/data/hh-rlhf/test.jsonl.gz
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import print_table

from puna.alignment import (
    Comparison,
    DPOConfig,
    DPOObjective,
    PairRows,
    RankedRows,
    RewardConfig,
    RewardModel,
    RewardObjective,
    encode_pair,
)
from puna.alignment.reference import text_logprobs
from puna.alignment.reward import score_comparisons
from puna.core.devices import describe_machine
from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.core.files import new_folder, sha256_value
from puna.data import NamedPair, PackedRows, held_out, read_pairs, write_tokens
from puna.data.human_scores import scored_pairs
from puna.evaluation.intervals import bootstrap_interval
from puna.formats import load_model
from puna.model import LoraConfig, add_lora, merge
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, RowSource, next_token, train
from puna.training.loop import compute_dtype

SEED = 1
HH = Path("../shared/data/hh-rlhf/test.jsonl.gz")
CHOOSE_FRACTION = 0.3  # of the training prompts, where settings are chosen
PIECE = 32  # held-out pairs between two points at which judging can go on
LORA = LoraConfig(rank=16)
SETTINGS = {
    "row-length": 256, "held-out": 0.4, "pairs": 112, "sft-rate": 1e-4, "sft-epochs": 1.0,
    "rate": 2e-4, "epochs": 1.0, "beta": 0.1, "nll": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Pairs as tokens on two sides, and of each held-out one its prompt."""

    train: list[Comparison]
    held_out: list[Comparison]
    prompts: list[Hashable]


def split_by_prompt(
    pairs: Sequence[NamedPair], fraction: float, seed: int
) -> tuple[list[NamedPair], list[NamedPair]]:
    """(train, held out): all pairs of a prompt stand on one side."""
    aside = held_out(np.array([pair.drawn(seed) for pair in pairs]), fraction, most=len(pairs))
    train_side = [pair for pair, out in zip(pairs, aside, strict=True) if not out]
    return train_side, [pair for pair, out in zip(pairs, aside, strict=True) if out]


def prepare(pairs: Sequence[NamedPair], tokenizer: Tokenizer, asked: argparse.Namespace) -> Split:
    """The pairs that fit a row, split; with ``--choose`` only training pairs."""
    fitting: list[NamedPair] = []
    encoded: dict[NamedPair, Comparison] = {}
    for pair in pairs:
        try:
            tokens = encode_pair(
                tokenizer, pair.prompt, pair.chosen, pair.rejected, asked.row_length, pair.name
            )
        except UsageError:  # too long: counted below
            continue
        encoded[pair] = tokens
        fitting.append(pair)
    trained, judged = split_by_prompt(fitting, asked.held_out, SEED)
    if asked.choose:
        trained, judged = split_by_prompt(trained, CHOOSE_FRACTION, SEED + 1)
    trained = sorted(trained, key=lambda pair: pair.drawn(SEED + 2))[: asked.pairs]
    print(
        f"{len(pairs)} pairs, {len(fitting)} of at most {asked.row_length} tokens a conversation; "
        f"train {len(trained)} of {len({p.prompt for p in trained})} prompts, "
        f"judge {len(judged)} of {len({p.prompt for p in judged})}",
        flush=True,
    )
    sides = [[encoded[pair] for pair in side] for side in (trained, judged)]
    return Split(sides[0], sides[1], [pair.prompt for pair in judged])


def ahead(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """For each pair 1 where the chosen answer has more, 0 where less, a half for a tie."""
    return (chosen > rejected) + 0.5 * (chosen == rejected)


def verdicts(
    logprobs_p2: np.ndarray, lengths_p2: np.ndarray, reference_p2: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Which pairs a policy judges as people did, by each measure: 1, 0, or a half for a tie.

    Args:
        logprobs_p2: log-probabilities of the chosen and the rejected texts, summed over tokens.
        lengths_p2: tokens of the texts.
        reference_p2: log-probabilities under a reference; gives DPO's implicit rewards.
    """
    per_token_p2 = logprobs_p2 / np.maximum(lengths_p2, 1)
    found = {"sum": ahead(*logprobs_p2.T), "per token": ahead(*per_token_p2.T)}
    if reference_p2 is not None:
        found["implicit reward"] = ahead(*(logprobs_p2 - reference_p2).T)
    return found


def text_lengths(pairs: Sequence[Comparison]) -> np.ndarray:
    """Tokens of the text of both answers of each pair: (pairs, 2)."""
    return np.array([[sum(answer.content) for answer in pair.answers] for pair in pairs])


class Run:
    """One sitting: stages in turn, each judged on the held-out pairs."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        pairs = scored_pairs() if asked.data == "pyrit" else hh_pairs(asked.file)
        self.model, self.tokenizer = load_model("smollm2")
        self.split = prepare(pairs, self.tokenizer, asked)
        self.lengths_p2 = text_lengths(self.split.held_out)
        self.found: dict[tuple[str, str], np.ndarray] = {}
        self.events = EventLog(readers=(self._tell,))

    def _tell(self, event: dict[str, Any]) -> None:
        names = ("step", "loss", "reward_accuracy", "accuracy")
        if event["kind"] == "train_step":
            told = ", ".join(f"{name} {event[name]:.3g}" for name in names if name in event)
            print(f"  {event['stage']} {told}", flush=True)

    def note(self, stage: str, judged: dict[str, np.ndarray]) -> None:
        """Keep verdicts under the stage's name, and say their shares."""
        self.found |= {(stage, measure): right for measure, right in judged.items()}
        told = ", ".join(f"{measure} {self.share(right)}" for measure, right in judged.items())
        print(f"{time.strftime('%X')} {stage}: {told}", flush=True)

    def loop(self, rows: int, batch: int, rate: float, epochs: float) -> LoopConfig:
        """Steps for so many epochs over ``rows``."""
        steps = max(1, round(epochs * rows / batch))
        return LoopConfig(
            steps=steps, batch_rows=batch, learning_rate=rate, weight_decay=0.0,
            warmup_steps=max(1, steps // 10), precision="auto", log_every=max(1, steps // 4),
            checkpoint_every=min(steps, 5),
        )  # fmt: skip

    def sft(self) -> None:
        """An adapter on the chosen answers, merged."""
        distinct = {tuple(pair.prompt + pair.answers[0].ids): pair for pair in self.split.train}
        items = [
            (list(ids), [False] * len(pair.prompt) + [True] * (len(ids) - len(pair.prompt)))
            for ids, pair in distinct.items()
        ]
        length = max(len(ids) for ids, _ in items)
        tokens = write_tokens(self.folder / "tokens", items, self.tokenizer.vocab_size)
        rows = PackedRows(tokens, length)
        loop = self.loop(len(rows), 8, self.asked.sft_rate, self.asked.sft_epochs)
        self.train("sft", self.model, next_token, rows, loop)
        merge(self.model)

    def dpo(self) -> None:
        """An adapter on the pairs; what SFT left is the reference."""
        config = DPOConfig(beta=self.asked.beta, nll_weight=self.asked.nll)
        reference = self.logprobs("reference", self.split.train)
        rows = PairRows(self.split.train, reference, config)
        loop = self.loop(len(rows), 8, self.asked.rate, self.asked.epochs)
        self.train("dpo", self.model, DPOObjective(config), rows, loop)

    def reward(self) -> None:
        """A reward model on the same pairs."""
        model = RewardModel.from_policy(deepcopy(self.model))
        rows = RankedRows(self.split.train)
        loop = self.loop(len(rows), 8, self.asked.rate, self.asked.epochs)
        self.train("reward", model, RewardObjective(RewardConfig()), rows, loop)
        scores = np.array(score_comparisons(model, self.split.held_out))
        self.note("reward model", {"score": ahead(*scores.T)})

    def logprobs(self, name: str, pairs: Sequence[Comparison]) -> np.ndarray:
        """Log-probabilities of both texts of each pair under the model as it is, kept on disk."""
        parts = []
        for start in range(0, len(pairs), PIECE):
            kept = self.folder / f"{name}-{start}"
            if not kept.exists():
                found = text_logprobs(self.model, pairs[start : start + PIECE])
                with new_folder(kept) as building:
                    np.save(building / "logprobs.npy", found)
            parts.append(np.load(kept / "logprobs.npy", allow_pickle=False))
        return np.concatenate(parts)

    def train(
        self, stage: str, model: Any, objective: Callable[..., Any], rows: Any, loop: LoopConfig
    ) -> None:
        """Train an adapter that is new on ``model``."""
        add_lora(model, LORA, seed=SEED)
        model.compute_dtype = compute_dtype(loop, model.device)
        source = RowSource(rows, SEED, loop)
        train(model, objective, source, loop, self.folder / stage, self.events, stage=stage)

    def all_stages(self) -> None:
        """Base, SFT, DPO, and the reward model where it is asked for."""
        self.model.compute_dtype = compute_dtype(self.loop(1, 1, 1, 1), self.model.device)
        self.note("no model", {"the shorter answer": ahead(*-self.lengths_p2.T)})
        logprobs = self.logprobs("base", self.split.held_out)
        self.note("base", verdicts(logprobs, self.lengths_p2))
        if self.asked.reward:
            self.reward()
        if self.asked.sft_epochs:
            self.sft()
            logprobs = self.logprobs("sft", self.split.held_out)
            self.note("SFT", verdicts(logprobs, self.lengths_p2))
        self.dpo()
        after = self.logprobs("dpo", self.split.held_out)
        self.note("DPO", verdicts(after, self.lengths_p2, logprobs))

    def rows(self) -> list[list[str]]:
        """The table: accuracies, and what they gained over the base, with 95% intervals."""
        table = []
        for (stage, measure), right in self.found.items():
            cells = [stage, measure, str(len(right)), self.share(right)]
            before = self.found.get(("base", measure))
            gained = before is not None and stage != "base"
            table.append([*cells, self.share(right - before) if gained else ""])
        return table

    def share(self, values: np.ndarray) -> str:
        """A mean in percent with its 95% interval, prompts drawn anew."""
        low, high = bootstrap_interval(values.tolist(), self.split.prompts)
        return f"{100 * values.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def hh_pairs(path: Path) -> list[NamedPair]:
    """Pairs of HH-RLHF; raises `UsageError` where the file is not there."""
    if not path.exists():
        raise UsageError(f"no HH-RLHF pairs at {path}: name their file with --file")
    return list(read_pairs(path, unfit=lambda error: print(f"left out: {error}")))


def kept_folder(asked: argparse.Namespace) -> Path:
    """A folder of these settings below ``--keep``: others never go on there."""
    settings = {name: str(value) for name, value in vars(asked).items() if name != "keep"}
    folder: Path = asked.keep / sha256_value(settings)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def parser() -> argparse.ArgumentParser:
    """The arguments, with the settings that were chosen."""
    made = argparse.ArgumentParser(description="What people prefer, before and after each stage.")
    made.add_argument("data", choices=("pyrit", "hh"))
    made.add_argument("--file", type=Path, default=HH, help="pairs of HH-RLHF")
    made.add_argument("--choose", action="store_true", help="judge training pairs held out")
    made.add_argument("--reward", action="store_true", help="a reward model besides")
    made.add_argument("--keep", type=Path, help="folder in which a stopped run goes on")
    for name, chosen in SETTINGS.items():
        made.add_argument(f"--{name}", type=type(chosen), default=chosen)
    return made


def main() -> None:
    """Run the stages, print the table."""
    asked, began = parser().parse_args(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(asked, kept_folder(asked) if asked.keep else Path(folder))
            run.all_stages()
    except PunaError as error:
        raise SystemExit(f"error: {error}") from error
    print()
    print_table(["stage", "measure", "pairs", "right, %", "gain over base"], run.rows())
    seconds = {"seconds": round(time.monotonic() - began)}
    print(json.dumps({k: str(v) for k, v in vars(asked).items()} | describe_machine() | seconds))


if __name__ == "__main__":
    main()
