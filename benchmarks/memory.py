"""The memory ladder: what each rung takes, in a process of its own, and what the loss needs.

    python benchmarks/memory.py
    python benchmarks/memory.py --only methods

A model of SmolLM2-135M's shape with random weights, packed rows of random tokens, bf16 activations,
the training loop itself. Peak is the most the process held while training, less what it held before
the model; building the model does not count. The C library is told to give back what is freed
(MALLOC_MMAP_THRESHOLD_), so that the peak is of what is in use. The estimate is what
`puna.training.estimate` foretold. Losses show which rungs are exact.

The methods beside SFT: a row of DPO or of a reward model is a prompt of 256 tokens with two answers
of 256, one of PPO or GRPO a prompt of 64 tokens with answers of up to 64; a row a pass. What they
hold besides, `puna.alignment.memory` foretells.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import Claim, Side, answer_questions, finish, print_table

from puna.alignment import (
    GRPO,
    PPO,
    Comparison,
    DPOConfig,
    DPOObjective,
    GRPOConfig,
    PairRows,
    PPOConfig,
    RankedRows,
    RewardConfig,
    RewardModel,
    RewardObjective,
    RolloutConfig,
    Task,
    train_online,
)
from puna.alignment.memory import Critic, online_estimate, pair_estimate
from puna.alignment.pairs import AnswerTokens
from puna.alignment.rollouts import Answer
from puna.core.devices import describe_machine
from puna.core.events import EventLog
from puna.data import Batch, PackedRows, write_tokens
from puna.formats import load_tokenizer
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora, cross_entropy_sum
from puna.training import LoopConfig, Outcome, RowSource, next_token, train
from puna.training.estimate import estimate

SHAPE: dict[str, Any] = {
    "vocab_size": 49_152,
    "dim": 576,
    "n_layers": 30,
    "n_heads": 9,
    "n_kv_heads": 3,
    "ffn_dim": 1536,
    "tie_embeddings": True,
}
TINY = {"dim": 144, "n_layers": 1, "ffn_dim": 96, "vocab_size": 64}
ROWS, LENGTH, STEPS = 4, 512, 2
LOOP = {"steps": STEPS, "batch_rows": ROWS, "learning_rate": 1e-4, "precision": "bf16"}
FULL = {"recompute": "full"}
QLORA = {"base": "nf4", "rank": 16}
# name: (loop, adapter, whether logits of all tokens are made)
RUNGS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, bool]] = {
    "full tuning, full logits": ({}, None, True),
    "full tuning": ({}, None, False),
    "+ selective recomputation": ({"recompute": "selective"}, None, False),
    "+ full recomputation": (FULL, None, False),
    "+ optimizer in backward": (FULL | {"optimizer_in_backward": True}, None, False),
    "+ 8-bit AdamW": (
        FULL | {"optimizer_in_backward": True, "optimizer": "adamw8bit"}, None, False,
    ),
    "LoRA 16, fp32 base": ({}, {"rank": 16}, False),
    "LoRA 16, bf16 base, recomputation": (FULL, {"rank": 16, "base": "bf16"}, False),
    "QLoRA 16": ({}, QLORA, False),
    "QLoRA 16, recomputation": (FULL, QLORA, False),
    "QLoRA 16, recomputation, a row a pass": (FULL | {"micro_rows": 1}, QLORA, False),
}  # fmt: skip
ROW_A_PASS = {"batch_rows": 2, "micro_rows": 1}
PAIR_PART, PROMPT, ANSWER = 256, 64, 64  # tokens: of a pair's three parts, of a rollout's two
# name: (method, loop, adapter, value model)
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None, Critic]] = {
    "DPO": ("dpo", {}, None, "none"),
    "DPO, LoRA 16, bf16 base": ("dpo", {}, {"rank": 16, "base": "bf16"}, "none"),
    "reward model": ("reward", {}, None, "none"),
    "PPO, shared trunk": ("ppo", {}, None, "shared"),
    "PPO, a value model": ("ppo", {}, None, "own"),
    "GRPO, 8 answers": ("grpo", {}, None, "none"),
    "GRPO, 8 answers, LoRA 16, bf16 base": ("grpo", {}, {"rank": 16, "base": "bf16"}, "none"),
}
BASE, PACKED = "full tuning", "QLoRA 16, recomputation"
LOSS_TOKENS, LOSS_VOCAB, LOSS_DIM = 8192, 128_256, 256


def held(key: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def with_full_logits(model: Llama, batch: Batch) -> Outcome:
    logits = model(batch.ids, positions_bt=batch.positions, documents_bt=batch.documents)
    loss = F.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten(), reduction="sum")
    return Outcome(loss, int((batch.labels != -100).sum()))


def train_rung(name: str, shape: dict[str, Any]) -> dict[str, float]:
    """Train a few steps; peak bytes, seconds of the last step, its loss."""
    changes, adapter, full_logits = RUNGS[name]
    config, loop = LlamaConfig(**shape), LoopConfig(**LOOP | changes, log_every=1)
    told: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (4 * ROWS, LENGTH)).tolist()
        tokens = write_tokens(Path(folder) / "t", [(i, None) for i in ids], config.vocab_size)
        before = held("VmRSS")
        model = Llama(config)
        model.init_weights(seed=1)
        if adapter is not None:
            add_lora(model, LoraConfig(**adapter))
        forget_peak()
        source = RowSource(PackedRows(tokens, LENGTH), 1, loop)
        objective = with_full_logits if full_logits else next_token
        events = EventLog(readers=(told.append,))
        train(model, objective, source, loop, Path(folder) / "checkpoints", events)
    steps = [event for event in told if event["kind"] == "train_step"]
    seconds = steps[-1]["seconds"] - steps[-2]["seconds"]
    peak = held("VmHWM") - before
    return {"peak_bytes": peak, "seconds": seconds, "loss": steps[-1]["loss"]}


def rollouts_of(method: str) -> RolloutConfig:
    answers = 8 if method == "grpo" else 1
    return RolloutConfig(prompts=2, answers=answers, max_new_tokens=ANSWER)


def train_method(name: str, shape: dict[str, Any]) -> dict[str, float]:
    """Train a few steps by a method beside SFT; peak bytes and seconds of a step."""
    method, changes, adapter, critic = METHODS[name]
    config, loop = LlamaConfig(**shape), LoopConfig(**LOOP | ROW_A_PASS | changes, log_every=1)
    rng, told = np.random.default_rng(0), []
    events = EventLog(readers=(told.append,))
    draw: Callable[[int], list[int]] = lambda n: rng.integers(0, config.vocab_size, n).tolist()  # noqa: E731
    tokenizer = load_tokenizer("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, before = Path(folder) / "checkpoints", held("VmRSS")
        model = Llama(config)
        model.init_weights(seed=1)
        if adapter is not None:
            add_lora(model, LoraConfig(**adapter))
        forget_peak()
        if method in ("dpo", "reward"):
            pairs = [
                Comparison(
                    draw(PAIR_PART),
                    tuple(AnswerTokens(draw(PAIR_PART), [True] * PAIR_PART) for _ in range(2)),
                )
                for _ in range(4)
            ]
            learn_pairs(model, method, pairs, loop, checkpoints, events)
        else:
            model.compute_dtype = torch.bfloat16
            rollouts = rollouts_of(method)
            made: Any
            if method == "ppo":
                made = PPO(PPOConfig(rollouts=rollouts, shared_trunk=critic == "shared"), model)
            else:
                made = GRPO(GRPOConfig(rollouts=rollouts))
            tasks = [Task(draw(PROMPT), {}) for _ in range(4)]
            train_online(
                model, tokenizer, made, tasks, variety, loop, checkpoints, events, seed=1,
                stage=method,
            )  # fmt: skip
    steps = [event for event in told if event["kind"] == "train_step"]
    seconds = steps[-1]["seconds"] - steps[-2]["seconds"]
    return {"peak_bytes": held("VmHWM") - before, "seconds": seconds}


def variety(answers: Sequence[Answer]) -> list[float]:
    """A reward that tells random answers apart."""
    return [len(set(answer.ids)) / len(answer.ids) for answer in answers]


def learn_pairs(
    model: Llama, method: str, pairs: list[Comparison], loop: LoopConfig, folder: Path,
    events: EventLog,
) -> None:  # fmt: skip
    """DPO, its reference's log-probabilities already known, or a reward model."""
    if method == "reward":
        judge = RewardModel.from_policy(model)
        del model
        source = RowSource(RankedRows(pairs), 1, loop)
        train(judge, RewardObjective(RewardConfig()), source, loop, folder, events)
        return
    dpo = DPOConfig()
    reference = np.full((len(pairs), 2), -10.0 * PAIR_PART, np.float32)
    source = RowSource(PairRows(pairs, reference, dpo), 1, loop)
    train(model, DPOObjective(dpo), source, loop, folder, events)


def loss_memory(trained: bool) -> dict[str, float]:
    """Bytes that head and loss take beyond their inputs and the gradients they return."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, LOSS_TOKENS, LOSS_DIM, generator=generator).bfloat16()
    weight = torch.randn(LOSS_VOCAB, LOSS_DIM, generator=generator).bfloat16()
    labels = torch.randint(0, LOSS_VOCAB, (1, LOSS_TOKENS), generator=generator)
    hidden.requires_grad_()
    weight.requires_grad_(trained)
    before = held("VmRSS")
    forget_peak()
    cross_entropy_sum(hidden, weight, labels)[0].backward()
    returned = sum(t.grad.nbytes for t in (hidden, weight) if t.grad is not None)
    return {"bytes": held("VmHWM") - before - returned}


def answer(what: str, **question: Any) -> dict[str, float]:
    """What a side answers: a rung, or the loss alone."""
    if what == "loss":
        cross_entropy_sum(torch.randn(1, 8, 8, requires_grad=True), torch.randn(9, 8),
                          torch.zeros(1, 8, dtype=torch.int64))[0].backward()  # fmt: skip
        return loss_memory(**question)
    if what == "method":
        train_method(question["name"], SHAPE | TINY | {"vocab_size": SHAPE["vocab_size"]})
        return train_method(question["name"], SHAPE)
    train_rung(question["name"], SHAPE | TINY)  # loads what torch loads when it is needed
    return train_rung(question["name"], SHAPE)


def ask(**question: Any) -> dict[str, Any]:
    """The answer of a fresh process."""
    side = Side(__file__, "--side")
    try:
        return side.ask(**question)
    finally:
        side.close()


def foretold(name: str) -> int:
    changes, adapter, _ = RUNGS[name]
    lora = None if adapter is None else LoraConfig(**adapter)
    return estimate(LlamaConfig(**SHAPE), LoopConfig(**LOOP | changes), LENGTH, lora).peak


def method_foretold(name: str) -> int:
    method, changes, adapter, critic = METHODS[name]
    lora = None if adapter is None else LoraConfig(**adapter)
    config, loop = LlamaConfig(**SHAPE), LoopConfig(**LOOP | ROW_A_PASS | changes)
    if method in ("dpo", "reward"):
        return pair_estimate(config, loop, 3 * PAIR_PART, lora, scores=method == "reward").peak
    return online_estimate(config, loop, rollouts_of(method), PROMPT, lora, critic=critic).peak


def methods() -> dict[str, dict[str, float]]:
    """Each method measured, beside what was foretold."""
    found = {name: ask(what="method", name=name) for name in METHODS}
    table = []
    for name, it in found.items():
        it["foretold_bytes"] = method_foretold(name)
        table.append([
            name, f"{it['peak_bytes'] / 1e9:.2f}", f"{it['foretold_bytes'] / 1e9:.2f}",
            f"{it['foretold_bytes'] / it['peak_bytes'] - 1:+.0%}", f"{it['seconds']:.1f}",
        ])  # fmt: skip
    print_table(["", "peak GB", "estimate GB", "off by", "s a step"], table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("methods",), help="leave out the ladder and the loss")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    arguments = parser.parse_args()
    if arguments.side:
        answer_questions(answer)
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    found_of = methods()
    if arguments.only:
        finish({"machine": describe_machine(), "methods": found_of}, [], arguments.json)
        return
    found = {name: ask(what="rung", name=name) for name in RUNGS}
    base = found[BASE]["peak_bytes"]
    cell: Callable[[float], str] = lambda n_bytes: f"{n_bytes / 1e9:.2f}"  # noqa: E731
    print_table(
        ["", "peak GB", "of full tuning", "estimate GB", "s a step", "loss of step 2"],
        [
            [name, cell(it["peak_bytes"]), f"{it['peak_bytes'] / base:.0%}",
             "" if RUNGS[name][2] else cell(foretold(name)), f"{it['seconds']:.1f}",
             f"{it['loss']:.6f}"]
            for name, it in found.items()
        ],
    )  # fmt: skip
    logits = 4 * LOSS_TOKENS * LOSS_VOCAB
    losses = {kind: ask(what="loss", trained=kind == "trained") for kind in ("trained", "frozen")}
    claims = [
        Claim(f"loss memory, {kind} head, {LOSS_TOKENS:,} x {LOSS_VOCAB:,}, bytes",
              it["bytes"], 0.05, logits, "fp32 logits", at_most=True)
        for kind, it in losses.items()
    ]  # fmt: skip
    claims.append(
        Claim("QLoRA's working memory, bytes", found[PACKED]["peak_bytes"], 0.15, base,
              "full tuning", at_most=True)
    )  # fmt: skip
    report = {"machine": describe_machine(), "rungs": found, "methods": found_of, "loss": losses}
    finish(report, claims, arguments.json)


if __name__ == "__main__":
    main()
