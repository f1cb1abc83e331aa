"""Answers of the model being trained, sampled by the engine and scored.

A score is a plain Python function's, named ``module:function`` in a recipe, or a reward model's.
"""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import Field
from torch import Tensor

from puna.core.config import Config
from puna.core.errors import PunaError, UsageError
from puna.core.random import stable_seed
from puna.inference import Engine, EngineConfig, Request, Sampling, generate
from puna.inference.cache import PagedStore
from puna.inference.weights import Weights
from puna.model import Llama, merged_copy
from puna.model.lora import lora_layers
from puna.tokenizer import Message, Tokenizer

_MAX_ROWS = 256  # answers decoded together
_PAGE = 32  # tokens of a page of the cache


class RolloutConfig(Config):
    """How answers are sampled, and how long they are learned from."""

    prompts: int = Field(default=64, ge=1)
    """Prompts answered in one rollout; a multiple of the loop's ``batch_rows``."""
    answers: int = Field(default=1, ge=1)
    """Answers to each prompt."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens after which an answer is cut off."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits, in sampling and in every log-probability."""
    missing_end_penalty: float = Field(default=1.0, ge=0)
    """Taken from the reward of an answer that was cut off."""
    normalise_rewards: bool = False
    """Shift and scale scores by the mean and spread of all so far."""
    epochs: int = Field(default=1, ge=1)
    """How often each answer is learned from."""
    stop_kl: float | None = Field(default=None, gt=0)
    """Sample anew as soon as a step saw the policy this far, in nats per token, from the one that
    sampled; None learns from every answer ``epochs`` times."""
    share_prompt: bool = True
    """Compute a prompt once for its answers in a row; better off where many long ones make rows
    wide. The numbers are the same."""


@dataclass(frozen=True)
class Task:
    """A prompt to be answered, and what its answers are judged by."""

    prompt: list[int]
    """Tokens; they end with the header of the answer's turn."""
    record: Mapping[str, Any]
    """The row of data it is from, for the scoring function."""


@dataclass(frozen=True)
class Answer:
    """What the model answered to a task."""

    task: Task
    ids: list[int]
    """Its tokens, with the end of turn where it came to one."""
    text: str
    """Without the end of turn."""
    ended: bool
    """Whether it ended by itself; else it was cut off."""


Scorer = Callable[[Sequence[Answer]], Sequence[float]]
"""Rewards of answers, in their order: a reward model, or `each_by` a scoring function."""
ScoringFunction = Callable[[str, Mapping[str, Any]], float]
"""``(text of the answer, row of data) -> reward``, as reasoning-gym's ``score_answer``."""
Sampler = Callable[[Llama, Sequence[Task], int], list[Answer]]
"""``(model, tasks, seed)`` -> its answers, those of a task side by side."""


def encode_task(
    tokenizer: Tokenizer, messages: Sequence[Message], record: Mapping[str, Any]
) -> Task:
    """The task of answering a conversation that ends with the user."""
    tokens = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True)
    return Task(tokens.ids, record)


def each_by(function: ScoringFunction) -> Scorer:
    """Scores every answer by itself.

    A function that has a method ``score_all(texts, records)`` too is given all answers at once, so
    that it may look at several side by side.

    Raises `PunaError` for a score that is no finite number.
    """
    score_all = getattr(function, "score_all", None) or (
        lambda texts, records: map(function, texts, records)
    )

    def score(answers: Sequence[Answer]) -> list[float]:
        texts = [answer.text for answer in answers]
        values = score_all(texts, [answer.task.record for answer in answers])
        scores = []
        for answer, value in zip(answers, values, strict=True):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise PunaError(
                    f"the scoring function gave {value!r} for the answer {answer.text[:40]!r}: "
                    "it must return a finite number"
                )
            scores.append(float(value))
        return scores

    return score


def reach(module_name: str) -> None:
    """Let a module of the working directory be imported, as ``python -m`` does; others win."""
    first, here = module_name.partition(".")[0], Path.cwd()
    beside = (here / f"{first}.py").is_file() or (here / first / "__init__.py").is_file()
    if beside and importlib.util.find_spec(first) is None:
        sys.path.append(str(here))
        importlib.invalidate_caches()


def load_scorer(name: str) -> Scorer:
    """The scoring function called ``name``, e.g. ``my_rewards:short_and_right``.

    The module is found as Python's import finds it, or in the working directory. Raises
    `UsageError` when there is none.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UsageError(f"scoring function '{name}': write it as module:function")
    reach(module_name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"scoring function '{name}': no module '{error.name}': start where it lies, install "
            "it, or put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(
            f"scoring function '{name}': {module_name} has no function '{function_name}': "
            f"it has {', '.join(known) or 'none'}"
        )
    return each_by(function)


@dataclass
class RunningMoments:
    """Mean and spread of all scores so far (Chan et al. 1979: moments of two parts combined)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def normalised(self, scores: Tensor) -> Tensor:
        """Take scores into account, then shift and scale them."""
        count, mean = len(scores), float(scores.mean())
        total, gap = self.count + count, mean - self.mean
        self.squares += float((scores - mean).square().sum()) + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total
        return (scores - self.mean) / ((self.squares / total) ** 0.5 + 1e-8)


def engine_rows(config: RolloutConfig) -> int:
    """Answers that are decoded together."""
    return min(config.prompts * config.answers, _MAX_ROWS)


def cache_tokens(rows: int, longest: int) -> int:
    """Tokens of a cache in which so many answers, ``longest`` with their prompts, find room.

    The engine by itself would take a quarter of the free memory, which training needs.
    """
    return rows * -(-(longest + 1) // _PAGE) * _PAGE


def cache_room(model: Llama, weights: Weights, rows: int, longest: int) -> int:
    """`cache_tokens`, but no more than a quarter of the free memory holds; then answers wait."""
    wanted = cache_tokens(rows, longest)
    each = PagedStore.bytes_per_token(model.config, _dtype_of(weights))
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    return max(cache_tokens(1, longest), min(wanted, free // 4 // each))


class EngineSampler:
    """Samples with the weights as they stand: shared where their format is the engine's.

    Only the end of turn ends an answer, so that its last token is the one that was drawn.

    Args:
        model: the policy; one with adapters is merged anew for each rollout.
        tokenizer: its tokenizer.
        config: how to sample.
        weights: their format in the engine, that in which the policy computes.
        longest_prompt: tokens of the longest prompt; 0 makes room for whole contexts.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        config: RolloutConfig,
        weights: Weights,
        longest_prompt: int = 0,
    ) -> None:
        self.config, self._weights = config, weights
        rows = engine_rows(config)
        longest = longest_prompt + config.max_new_tokens
        settings = EngineConfig(
            weights=weights, max_rows=rows, packed_copy=False, page_size=_PAGE,
            cache_tokens=cache_room(model, weights, rows, longest) if longest_prompt else None,
        )  # fmt: skip
        self.engine = Engine(_dense(model, weights), tokenizer, settings)

    def __call__(self, model: Llama, tasks: Sequence[Task], seed: int) -> list[Answer]:
        """Answers of ``model``, a pure function of its weights and the arguments.

        Raises `UsageError` for a prompt that leaves no room for an answer.
        """
        self.engine.load_weights(_dense(model, self._weights))
        return sample_answers(
            self.engine,
            tasks,
            self.config.answers,
            Sampling(
                max_new_tokens=self.config.max_new_tokens,
                temperature=self.config.temperature,
                seed=seed,
            ),
        )


def sample_answers(
    engine: Engine, tasks: Sequence[Task], n_answers: int, sampling: Sampling
) -> list[Answer]:
    """``n_answers`` to each task, those of a task side by side; their prompt is computed once.

    Every answer draws from a stream of its own, seeded by ``sampling.seed`` and its place.
    """
    end = engine.tokenizer.eot_id
    asked = [task for task in tasks for _ in range(n_answers)]
    requests = [
        Request(
            task.prompt,
            sampling.model_copy(update={"seed": stable_seed(sampling.seed, "answer", place)}),
            frozenset({end}),
        )
        for place, task in enumerate(asked)
    ]
    return [
        Answer(task, [*made.ids, end] if made.stopped else made.ids, made.text, made.stopped)
        for task, made in zip(asked, generate(engine, requests), strict=True)
    ]


def _dense(model: Llama, weights: Weights) -> Llama:
    """The policy as plain weights, merged in the engine's own data type."""
    adapted = next(iter(lora_layers(model)), None) is not None
    return merged_copy(model, _dtype_of(weights)) if adapted else model


def _dtype_of(weights: Weights) -> torch.dtype:
    return torch.bfloat16 if weights == "bf16" else torch.float32
