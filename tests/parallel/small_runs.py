"""Small runs of each offline method, to be done by one process or several."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from puna.alignment import Comparison, DPOConfig, DPOObjective, PairRows
from puna.alignment.distill import DistillConfig, DistillObjective
from puna.alignment.grpo import GRPO, GRPOConfig
from puna.alignment.online import Online
from puna.alignment.pairs import AnswerTokens
from puna.alignment.ppo import PPO, PPOConfig
from puna.alignment.reward import RankedRows, RewardConfig, RewardModel, RewardObjective
from puna.alignment.rollouts import Answer, RolloutConfig, Task
from puna.core.events import EventLog
from puna.data import Group, MixedRows, MixSource, PackedRows, Share, TokenFile
from puna.model import Llama, LlamaConfig, add_lora
from puna.model.lora import LoraConfig
from puna.parallel import Mesh, here
from puna.training import LoopConfig, Objective, RowSource, Source, next_token, train

VOCAB, ROW, STEPS = 61, 48, 5
METHODS = (
    *("pretrain", "sft", "accumulated", "muon", "lora"),
    *("dpo", "reward", "distill", "ppo", "grpo"),
)
LOOP = LoopConfig(
    steps=STEPS,
    batch_rows=5,  # two processes take two rows and three
    learning_rate=1e-3,
    warmup_steps=2,
    checkpoint_every=1,
    log_every=1,
    precision="fp32",
)
Method = tuple[Llama, Objective, Source, LoopConfig, dict[str, Any]]


def documents() -> list[tuple[list[int], list[bool]]]:
    """Of many lengths, so rows and shares hold unequal numbers of trained tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, ROW, 60)
    return [(rng.integers(0, VOCAB, n).tolist(), (rng.random(n) < 0.5).tolist()) for n in lengths]


def comparisons(n_answers: int) -> list[Comparison]:
    rng = np.random.default_rng(1)

    def some(least: int, most: int) -> list[int]:
        return rng.integers(0, VOCAB, rng.integers(least, most)).tolist()

    def answer() -> AnswerTokens:
        ids = some(2, 12)
        return AnswerTokens(ids, [True] * (len(ids) - 1) + [False])

    return [Comparison(some(3, 12), tuple(answer() for _ in range(n_answers))) for _ in range(23)]


def new_model(seed: int = 1) -> Llama:
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    config = LlamaConfig.parse(fields | {"vocab_size": VOCAB, "context": 64}, where="test")
    model = Llama(config)
    model.init_weights(seed)
    return model


def drawn(_model: Llama, tasks: Sequence[Task], seed: int) -> list[Answer]:
    """Answers by dice, in place of the engine: any process would draw the same."""
    rng = np.random.default_rng(seed)
    return [
        Answer(
            task, rng.integers(0, VOCAB, rng.integers(2, 9)).tolist(), "", bool(rng.random() < 0.8)
        )
        for task in tasks
        for _ in range(2)
    ]


def online(name: str, model: Llama, folder: Path) -> Method:
    """PPO or GRPO with answers by dice; two rollouts within the run."""
    rollouts = RolloutConfig(prompts=10, answers=2, epochs=2, max_new_tokens=8)
    learned: PPO | GRPO = GRPO(GRPOConfig(rollouts=rollouts))
    if name == "ppo":
        learned = PPO(PPOConfig(rollouts=rollouts), model)
    tasks = [Task(comparison.prompt, {}) for comparison in comparisons(2)]

    def score(answers: Sequence[Answer]) -> list[float]:
        return [float(np.mean(answer.ids)) / VOCAB for answer in answers]

    log = EventLog(folder / f"{name}-rollouts-{here().n_processes}.jsonl")
    made = Online(model, learned, tasks, drawn, score, LOOP, log, seed=0, stage=name)
    beside = {"after_step": made.after_step, "beside": learned.critic, "kept": made}
    return model, made.objective, made, LOOP, beside


def method(name: str, folder: Path) -> Method:
    """Model, objective, source and settings of a method, and what it keeps beside the model."""
    tokens = TokenFile(folder / "tokens")
    if name in ("ppo", "grpo"):
        return online(name, new_model(), folder)
    model, rows = new_model(), PackedRows(tokens, ROW)
    if name == "sft":
        half = np.arange(len(tokens)) % 2 == 0
        groups = [Group(np.flatnonzero(half), 2.0), Group(np.flatnonzero(~half))]
        mixed = MixedRows(tokens, groups, ROW, seed=4)
        return model, next_token, MixSource(mixed, LOOP.batch_rows, LOOP.micro_rows), LOOP, {}
    if name == "dpo":
        pairs, config = comparisons(2), DPOConfig(beta=1.0)
        reference = np.random.default_rng(2).normal(-20, 2, (len(pairs), 2))
        source = RowSource(PairRows(pairs, reference, config), 5, LOOP)
        return model, DPOObjective(config), source, LOOP, {}
    if name == "reward":
        ranked = RowSource(RankedRows(comparisons(3)), 5, LOOP)
        return RewardModel.from_policy(model), RewardObjective(RewardConfig()), ranked, LOOP, {}
    if name == "distill":
        objective = DistillObjective(DistillConfig(), new_model(seed=2))
        return model, objective, RowSource(rows, 5, LOOP), LOOP, {}
    changes: dict[str, dict[str, Any]] = {
        "accumulated": {"micro_rows": 2, "batch_rows": 6},  # shares of three rows: two and one
        "muon": {"optimizer": "muon"},
    }
    if name.startswith("lora"):
        add_lora(model, LoraConfig(rank=4, dropout=0.3 if name == "lora-dropout" else 0.0), seed=3)
    loop = LOOP.model_copy(update=changes.get(name, {}))
    return model, next_token, RowSource(rows, 5, loop), loop, {}


def trained(name: str, folder: Path, checkpoints: str, steps: int = STEPS) -> None:
    """Train to ``steps`` and stop there as a kill would; leaves events and weights in ``folder``.

    Those of process n end with ``-n``.
    """
    model, objective, source, loop, beside = method(name, folder)
    log = EventLog(folder / f"{checkpoints}-{here().rank}.jsonl")

    class Killed(Exception):
        pass

    def until(step: int, share: Share) -> list[Any]:
        if step == steps:
            raise Killed
        return source(step, share)

    with suppress(Killed):
        train(model, objective, until, loop, folder / checkpoints, log, stage=name, **beside)
    log.close()
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    save_file(weights, folder / f"{checkpoints}-{here().rank}.safetensors")


def in_turn(folder: Path, runs: list[tuple[str, str, int]]) -> None:
    """Several runs, one after the other."""
    for name, checkpoints, steps in runs:
        trained(name, folder, checkpoints, steps)


def all_of(folder: Path, runs: list[tuple[str, str, int]]) -> None:
    """The runs, and what is small: processes that have come up once do it all."""
    in_turn(folder, runs)
    gradients(folder)
    mesh = here()
    found = mesh.on_first(lambda: (mesh.rank, here(), TokenFile(folder / "tokens")))
    first, place, tokens = found
    assert first == 0  # the others were sent its answer
    assert place == Mesh()  # for which it was by itself
    assert here() == mesh
    assert len(tokens) == len(documents())  # a token file is sent as its name


def fails(folder: Path, how: Callable[[], None], rank: int) -> None:
    """Train; the process ``rank`` does ``how`` in its third step."""
    model, objective, source, loop, _ = method("pretrain", folder)

    def until(step: int, share: Share) -> list[Any]:
        if step == 2 and here().rank == rank:
            how()
        return source(step, share)

    log = EventLog(folder / f"fails-{here().rank}.jsonl")
    train(model, objective, until, loop, folder / "fails", log)


def gradients(folder: Path) -> None:
    """Sum gradients of several kinds over the processes and save the sums."""
    mesh = here()
    generator = torch.Generator().manual_seed(7)
    sizes, dtypes = [(3, 5), (40,), (7,), (64, 3)], [torch.float32, torch.bfloat16] * 2
    parameters = [
        torch.nn.Parameter(torch.zeros(size, dtype=dtype))
        for size, dtype in zip(sizes, dtypes, strict=True)
    ]
    for number, parameter in enumerate(parameters):
        drawn = torch.randn(mesh.n_processes, *parameter.shape, generator=generator)
        if (number, mesh.rank) not in ((2, 1), (3, 0), (3, 1)):  # one lacks a gradient, then all
            parameter.grad = drawn[mesh.rank].to(parameter.dtype)
    mesh.sum_gradients(parameters)
    found = {str(n): p.grad for n, p in enumerate(parameters) if p.grad is not None}
    save_file(found, folder / f"gradients-{mesh.rank}.safetensors")
