"""The stages in which a model learns from rewards of its own answers: ppo and grpo."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from puna.alignment import GRPO, PPO, GRPOConfig, PPOConfig, Task, encode_task, train_online
from puna.alignment.experience import Method
from puna.alignment.rollouts import RolloutConfig, Scorer, cache_room, sample_answers
from puna.core.errors import UsageError
from puna.core.files import write_json
from puna.core.random import stable_seed
from puna.data import NamedPrompt, held_out
from puna.data.generators import evaluation_questions
from puna.inference import Engine, EngineConfig, Sampling
from puna.inference.weights import Weights
from puna.model import Llama, LoraConfig
from puna.parallel import here
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.training.loop import compute_dtype
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.rewards import (
    PromptStage,
    open_scorer,
    question_prompt,
    read_stage_prompts,
)
from puna.workflow.stages.training import Given, adapt, check_whole, leave_model, open_base

_BEFORE = "reward-before.json"


class OnlineStage(PromptStage):
    """What both have in common; a step of ``loop`` learns from ``batch_rows`` prompts."""

    together: ClassVar[bool] = True

    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts in ``prompts`` that are never learned from."""
    held_out_prompts: int = Field(default=100, ge=0)
    """Held-out prompts at most; of ``generated_prompts`` as many are made on held-out problems.
    Their rewards, of the likeliest answers, are told before and after."""
    too_long: Literal["error", "drop"] = "error"
    """What becomes of a prompt that leaves no room for an answer."""
    lora: LoraConfig | None = None
    """Train an adapter instead of all weights; without it the model is its own reference."""
    loop: LoopConfig
    """How it is optimised; its rows are prompts."""


class PPOStage(OnlineStage):
    """Proximal policy optimisation with a value model."""

    ppo: PPOConfig = PPOConfig()
    """The method's own knobs."""


class GRPOStage(OnlineStage):
    """GRPO or RLOO: answers to a prompt are each other's baseline."""

    grpo: GRPOConfig = GRPOConfig()
    """The method's own knobs."""


def run_ppo(config: PPOStage, given: Given, folder: Path) -> dict[str, Any]:
    """Learn by PPO from the rewards of sampled answers."""
    return _run(config, config.ppo.rollouts, given, folder)


def run_grpo(config: GRPOStage, given: Given, folder: Path) -> dict[str, Any]:
    """Learn by GRPO or RLOO from the rewards of sampled answers."""
    return _run(config, config.grpo.rollouts, given, folder)


def _method(config: OnlineStage, model: Llama) -> Method:
    if isinstance(config, PPOStage):
        return PPO(config.ppo, model)
    assert isinstance(config, GRPOStage)
    return GRPO(config.grpo)


def _run(
    config: OnlineStage, rollouts: RolloutConfig, given: Given, folder: Path
) -> dict[str, Any]:
    check_whole(config.loop, "answers are sampled from whole weights, the layout spreads them")
    model, tokenizer = open_base(config, given, config.lora)
    scorer = open_scorer(config.reward, given, tokenizer)
    room = model.config.context - rollouts.max_new_tokens
    learned, kept = _sides(config, given)
    tasks = _tasks(config, learned, tokenizer, room)
    judge = _Judge(_tasks(config, kept, tokenizer, room), scorer, rollouts.max_new_tokens)
    text = f"{len(tasks):,} prompts, {len(judge.tasks):,} held out"
    given.events.emit("note", text=text)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    before = here().on_first(partial(judge.before, model, tokenizer, folder))
    adapt(model, config.lora, given)
    progress = train_online(
        model,
        tokenizer,
        _method(config, model),
        tasks,
        scorer,
        config.loop,
        here().on_first(lambda: folder / SCRATCH / "checkpoints"),
        given.events,
        seed=stable_seed(given.seed, folder.name),
        stage=folder.name,
    )
    facts = leave_model(model, tokenizer, progress, given.events, folder, base=given.base)
    facts |= {"prompts": len(tasks)}
    if before is None:
        return facts
    after = here().on_first(partial(judge.mean, model, tokenizer))
    text = f"reward of held-out prompts: {before:.3f} -> {after:.3f}"
    given.events.emit("note", text=text)
    return facts | {
        "held_out_prompts": len(judge.tasks),
        "held_out_reward_before": round(before, 4),
        "held_out_reward": round(after, 4),
    }


def _sides(
    config: OnlineStage, given: Given
) -> tuple[Sequence[NamedPrompt], Sequence[NamedPrompt]]:
    """Prompts that are learned from, and prompts that are not: equal ones stand together."""
    named = read_stage_prompts(config, given)
    n_own = len(named) - config.generated_prompts
    own, made = named[:n_own], named[n_own:]
    most, kept = config.held_out_prompts, np.zeros(n_own, dtype=bool)
    if own and most:
        drawn = np.array([prompt.drawn(given.seed) for prompt in own])
        kept = held_out(drawn, config.held_out_fraction, most)
    learned = [prompt for prompt, aside in zip(own, kept, strict=True) if not aside]
    return [*learned, *made], [
        *(prompt for prompt, aside in zip(own, kept, strict=True) if aside),
        *(_held_out_questions(given, most) if made and most else []),
    ]


def _held_out_questions(given: Given, most: int) -> list[NamedPrompt]:
    """Up to ``most``, as often of each kind as the recipe's weights say."""
    drawn = given.drawn
    total = sum(drawn.kinds.values())
    kinds: dict[str, list[NamedPrompt]] = {}
    for question in evaluation_questions(given.seed, most, drawn.countries, drawn.kinds):
        of_kind = kinds.setdefault(question.kind, [])
        if len(of_kind) < max(1, round(most * drawn.kinds[question.kind] / total)):
            of_kind.append(question_prompt(f"held-out {question.kind}", question))
    return [prompt for of_kind in kinds.values() for prompt in of_kind][:most]


def _tasks(
    config: OnlineStage, prompts: Sequence[NamedPrompt], tokenizer: Tokenizer, room: int
) -> list[Task]:
    tasks = []
    for prompt in prompts:
        task = encode_task(tokenizer, prompt.messages, prompt.record)
        if len(task.prompt) <= room:
            tasks.append(task)
        elif config.too_long == "error":
            raise UsageError(
                f"{prompt.name}: {len(task.prompt)} tokens, and the context has room for {room} "
                "before the answer: lower max_new_tokens, or set too_long to drop"
            )
    return tasks


@dataclass(frozen=True)
class _Judge:
    """The mean reward of the likeliest answers to prompts that are not learned from."""

    tasks: Sequence[Task]
    scorer: Scorer
    max_new_tokens: int

    def before(self, model: Llama, tokenizer: Tokenizer, folder: Path) -> float | None:
        """That of the model as it begins, once for all attempts; None without held-out prompts."""
        if not self.tasks:
            return None
        noted = folder / SCRATCH / _BEFORE
        if noted.exists():
            found: float = json.loads(noted.read_bytes())
            return found
        mean = self.mean(model, tokenizer)
        noted.parent.mkdir(parents=True, exist_ok=True)
        write_json(noted, mean)
        return mean

    def mean(self, model: Llama, tokenizer: Tokenizer) -> float:
        """That of a model of plain weights, computed as it is."""
        bf16 = model.compute_dtype == torch.bfloat16
        rows = min(len(self.tasks), 64)
        longest = max(len(task.prompt) for task in self.tasks) + self.max_new_tokens
        weights: Weights = "bf16" if bf16 else "fp32"
        settings = EngineConfig(
            weights=weights, packed_copy=False, max_rows=rows,
            cache_tokens=cache_room(model, weights, rows, longest),
        )  # fmt: skip
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=0.0)
        engine = Engine(model, tokenizer, settings)
        scores = self.scorer(sample_answers(engine, self.tasks, 1, sampling))
        return float(np.mean(scores))
