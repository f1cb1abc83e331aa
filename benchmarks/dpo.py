"""DPO beside TRL's DPOTrainer: the same weights and pairs, each in its own training loop.

    python benchmarks/dpo.py                                  # all of it: about 8 minutes
    python benchmarks/dpo.py --quick --vocabulary 8192        # two steps of each side
    python benchmarks/dpo.py --shape 1b --vocabulary 128256 --precision bf16   # on a GPU

A Llama of 23.6M parameters besides its tied embedding, or one of Llama 3.2's shapes on a GPU; 4
pairs a step, 16 on a GPU, prompts of 64 to 192 tokens and answers of 32 to 128. Tokens are those of
both conversations of each pair, written out in full, on both sides, so a token that is computed
once for two answers counts twice. TRL runs with its defaults in bf16; in fp32 without activation
checkpointing, which suits it better there. Puna's reference is computed once before the first step,
TRL's in each step, as each does by default; ``with_reference`` is Puna's speed with that pass
added, as in a run of a single epoch. In bf16 TRL computes activations again in all blocks and Puna
in every second one, on a GPU in all, which takes less than half of TRL's memory; in fp32 both keep
them. ``--recompute`` and ``--recompute-every`` say otherwise.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import tuning
from harness import Claim

PAIRS = 16 if tuning.on_gpu() else 4  # in a step
STEPS = 64
LEAST = {(8192, "fp32"): 2.5, (8192, "bf16"): 3.0, (128_256, "fp32"): 4.0, (128_256, "bf16"): 4.0}


def token_pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected of every pair."""
    rng = np.random.default_rng(1)
    return [
        (
            tuning.random_ids(rng, 64, 192),
            tuning.random_ids(rng, 32, 128),
            tuning.random_ids(rng, 32, 128),
        )
        for _ in range(PAIRS * STEPS)
    ]


def run_puna(folder: Path, precision: str, recompute: str, every: int) -> None:
    from puna.alignment import Comparison, DPOConfig, DPOObjective, PairRows
    from puna.alignment.pairs import AnswerTokens
    from puna.alignment.reference import text_logprobs
    from puna.core.events import EventLog
    from puna.formats import load_model
    from puna.training import LoopConfig, train
    from puna.training.loop import compute_dtype

    turns = tuning.Turns()
    model, _ = load_model(folder, device=tuning.device())
    loop = LoopConfig.parse(
        {
            "steps": STEPS,
            "batch_rows": PAIRS,
            "learning_rate": tuning.LEARNING_RATE,
            "precision": precision,
            "recompute": recompute,
            "recompute_every": 1 if recompute == "none" else every,  # else it is refused
            "compile": tuning.on_gpu(),
            "log_every": STEPS,
            "checkpoint_every": STEPS,
        },
        where="loop",
    )
    pairs = [
        Comparison(prompt, tuple(AnswerTokens(a, [True] * (len(a) - 1) + [False]) for a in answers))
        for prompt, *answers in token_pairs()
    ]
    model.compute_dtype = compute_dtype(loop, model.device)
    text_logprobs(model, pairs[4 * PAIRS : 8 * PAIRS])  # what is compiled is compiled here
    started = time.perf_counter()
    text_logprobs(model, pairs[: 4 * PAIRS])
    per_pair = (time.perf_counter() - started) / (4 * PAIRS)
    config = DPOConfig()
    rows = PairRows(pairs, np.full((len(pairs), 2), -700.0), config)
    at = [0]

    def source(step: int, _share: object) -> list[Any]:
        turns.begin()
        at[0] = step
        return [rows.rows(np.arange(step * PAIRS, (step + 1) * PAIRS))]

    def after_step(_done: int, _model: object) -> None:
        shown = pairs[at[0] * PAIRS : (at[0] + 1) * PAIRS]
        tokens = sum(2 * len(p.prompt) + sum(len(a.ids) for a in p.answers) for p in shown)
        turns.end(tokens, reference_seconds=per_pair * PAIRS, tokens=tokens)

    train(
        model, DPOObjective(config), source, loop, folder / "dpo-points", EventLog(),
        after_step=after_step,
    )  # fmt: skip


def run_trl(folder: Path, precision: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    turns = tuning.Turns()
    counts: list[int] = []
    bf16 = precision == "bf16"

    class TokenisedTrainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
            return dataset  # it is tokenised

    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in token_pairs()
    ]
    trainer = TokenisedTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=not tuning.on_gpu(),
            bf16=bf16,
            gradient_checkpointing=bf16,
            per_device_train_batch_size=PAIRS,
            learning_rate=tuning.LEARNING_RATE,
            max_steps=STEPS,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[tuning.turn_taking(turns, counts)],
    )
    collate = trainer.data_collator

    def counting(examples: list[Any]) -> Any:
        made = collate(examples)
        counts.append(int(made["attention_mask"].sum()))
        return made

    trainer.data_collator = counting
    trainer.train()


def compare(
    folder: Path, shape: str, vocab_size: int, precision: str, flags: list[str], repeats: int
) -> tuple[dict[str, Any], list[Claim]]:
    """Both sides' figures, and what must hold of them."""
    n_params = tuning.build_folder(folder, vocab_size, shape)
    common = ["--folder", str(folder), "--precision", precision, *flags]
    sides = {side: [__file__, "--side", side, *common] for side in ("puna", "trl")}
    found: dict[str, Any] = dict(tuning.measure(sides, repeats))
    name = f"{shape}, vocabulary {vocab_size:,}, {precision}"
    if found.keys() != sides.keys():
        return {"name": name, **found}, []
    ours, theirs = found["puna"], found["trl"]
    found["with_reference"] = ours["tokens"] / (ours["seconds"] + ours["reference_seconds"])
    least = LEAST[vocab_size, precision]
    memory = [tuning.working_bytes(side, n_params) / 1e9 for side in (ours, theirs)]
    claims = [
        tuning.speed_claim(f"{name}: tokens/s", ours, theirs, least, "TRL"),
        Claim(f"{name}: working GB", memory[0], 0.5, memory[1], "TRL", at_most=True),
    ]
    return {"name": name, **found}, claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("puna", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the model here, or use the one that is")
    parser.add_argument("--shape", choices=tuning.SHAPES, default="small")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[8192, 128_256])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--recompute", choices=("none", "selective", "full"), help="Puna's side")
    every = 1 if tuning.on_gpu() else 2
    parser.add_argument("--recompute-every", type=int, default=every, help="in which blocks")
    parser.add_argument("--quick", action="store_true", help="two steps in place of five")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    if arguments.side:
        if arguments.side == "trl":
            run_trl(arguments.folder, arguments.precision[0])
        else:
            run_puna(
                arguments.folder, arguments.precision[0], arguments.recompute,
                arguments.recompute_every,
            )  # fmt: skip
        return
    report: dict[str, Any] = {"machine": tuning.machine(), "runs": []}
    claims: list[Claim] = []
    repeats = 2 if arguments.quick else 5
    for vocab_size, precision in itertools.product(arguments.vocabulary, arguments.precision):
        kind = arguments.recompute or ("selective" if precision == "bf16" else "none")
        flags = ["--recompute", kind, "--recompute-every", str(arguments.recompute_every)]
        with tempfile.TemporaryDirectory() as scratch:
            figures, held = compare(
                arguments.folder or Path(scratch), arguments.shape, vocab_size, precision,
                flags, repeats,
            )  # fmt: skip
        tuning.show(figures)
        report["runs"].append(figures | {"puna_flags": flags})
        claims += held
    harness.finish(report, claims, arguments.json)


if __name__ == "__main__":
    main()
