"""An online method in the one loop: answers are sampled, scored, learned from, and sampled anew.

`Online` is the loop's source. At the start of a rollout it samples with the weights as they are;
the steps that follow learn from those answers, in minibatches of whole prompts. All it holds goes
into checkpoints, so a run that was killed inside a rollout ends with the same weights.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from puna.alignment.experience import (
    CLIPPED,
    MOVED,
    Experience,
    Method,
    TokenBatch,
    grouped,
    look_at,
)
from puna.alignment.kl import Reference
from puna.alignment.losses import kl_k1
from puna.alignment.rollouts import EngineSampler, RunningMoments, Sampler, Scorer, Task
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.core.random import stable_seed, stream
from puna.data import WHOLE, Share, rows_of_step
from puna.inference.weights import Weights
from puna.model import Llama
from puna.parallel import here
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, Outcome, train
from puna.training.checkpoint import Progress
from puna.training.loop import compute_dtype

_COUNTED = (CLIPPED, MOVED, "count")  # sums over the tokens learned from


class Online:
    """Source, objective and memory of a run of an online method.

    Args:
        model: the policy, with the weights it starts from: they are the reference.
        method: PPO, GRPO.
        tasks: prompts, walked through in an order fixed by the seed.
        sample: writes answers.
        score: rewards answers.
        loop: the loop's configuration; its rows are prompts.
        events: receives a ``rollout`` event, a row of the table, when a rollout has been used.

    Raises `UsageError` without tasks, and when minibatches do not divide a rollout.
    """

    def __init__(
        self,
        model: Llama,
        method: Method,
        tasks: Sequence[Task],
        sample: Sampler,
        score: Scorer,
        loop: LoopConfig,
        events: EventLog,
        *,
        seed: int,
        stage: str,
    ) -> None:
        config = method.rollouts
        if not tasks:
            raise UsageError("there are no prompts to answer: give at least one")
        if config.prompts % loop.batch_rows:
            raise UsageError(
                f"rollouts.prompts {config.prompts} is not a multiple of the loop's batch_rows "
                f"{loop.batch_rows}: a step learns from that many prompts"
            )
        self.model, self.method, self.tasks = model, method, tasks
        self.sample, self.score = sample, score
        self.loop, self.seed, self.stage = loop, seed, stage
        self.events = events if here().is_first else EventLog()
        self.reference = Reference(model, compute_dtype(loop, model.device))
        self._scores = RunningMoments()
        self._number = 0  # of the rollout
        self._used = 0  # minibatches of it
        self._experience: Experience | None = None
        self._figures: dict[str, float] = {}
        self._sums: dict[str, float] = {}  # over the updates of this rollout
        self._step_sums = dict.fromkeys(_COUNTED, 0.0)  # over the last update
        self._step_open = False  # whether they are those of this process only

    def __call__(self, step: int, share: Share = WHOLE) -> list[TokenBatch]:
        """Micro-batches of a step; samples first where the last rollout is used up.

        Of several processes the first one samples, all learn.
        """
        self.after_step(step, self.model)
        if self._experience is None:
            self._experience, self._figures, self._scores = here().on_first(self._sampled)
        config, rows = self.method.rollouts, self.loop.batch_rows
        epoch, place = divmod(self._used, config.prompts // rows)
        order = stream(self.seed, "minibatches", self._number, epoch).permutation(config.prompts)
        chosen = order[place * rows : (place + 1) * rows].tolist()
        self._used += 1
        self._step_sums, self._step_open = dict.fromkeys(_COUNTED, 0.0), True
        return [
            self._experience.batch(chosen[part.start : part.stop], share_prompt=config.share_prompt)
            for part in share.micro_batches(rows, self.loop.micro_rows)
        ]

    def objective(self, model: Llama, batch: TokenBatch) -> Outcome:
        """The method's, noting what the table and the early stop need."""
        outcome = self.method(model, batch)
        found = {**outcome.metrics, "count": float(outcome.count)}
        for name in self._step_sums:
            self._step_sums[name] += found[name]
        return outcome

    def after_step(self, step: int, _model: Llama) -> None:
        """Close a rollout that is used up: its row of the table, and the price of a nat."""
        self._close_step()
        if self._experience is None or not self._is_used_up():
            return
        count = self._sums["count"]
        updates = {name: self._sums[name] / count for name in (CLIPPED, MOVED)}
        self.events.emit(
            "rollout",
            stage=self.stage,
            step=step,
            rollout=self._number + 1,
            **self._figures,
            **updates,
            updates=self._used,
        )
        self.method.kl.update(self._figures["kl"])
        self._number, self._used, self._experience, self._sums = self._number + 1, 0, None, {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: counters, moments, coefficient, and the answers in hand."""
        self._close_step()
        numbers = {
            "number": self._number,
            "used": self._used,
            "coefficient": self.method.kl.coefficient,
            **{f"scores.{name}": value for name, value in vars(self._scores).items()},
            **{f"figures.{name}": value for name, value in self._figures.items()},
            **{f"sums.{name}": value for name, value in self._sums.items()},
            **{f"step_sums.{name}": value for name, value in self._step_sums.items()},
        }
        state = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        if self._experience is not None:
            state |= self._experience.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`'s."""

        def numbers(prefix: str) -> dict[str, float]:
            return {
                n.removeprefix(prefix): float(v) for n, v in state.items() if n.startswith(prefix)
            }

        self._number, self._used = int(state["number"]), int(state["used"])
        self.method.kl.coefficient = float(state["coefficient"])
        self._scores = RunningMoments(**numbers("scores."))
        self._figures, self._step_sums = numbers("figures."), numbers("step_sums.")
        self._sums = numbers("sums.")
        if "ids" in state:
            prompts = [task.prompt for task in self._tasks()]
            self._experience = Experience.from_state(state, prompts)

    def _close_step(self) -> None:
        """Add the sums of the last update, over all processes, to those of the rollout."""
        if not self._step_open:
            return
        totals = here().sum(list(self._step_sums.values()))
        self._step_sums, self._step_open = dict(zip(self._step_sums, totals, strict=True)), False
        for name, total in self._step_sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + total

    def _is_used_up(self) -> bool:
        config = self.method.rollouts
        if self._used == config.epochs * config.prompts // self.loop.batch_rows:
            return True
        moved = self._step_sums[MOVED] / max(1.0, self._step_sums["count"])
        return config.stop_kl is not None and moved > config.stop_kl

    def _tasks(self) -> list[Task]:
        """Those of the rollout in hand."""
        places = rows_of_step(
            self.seed, self._number, self.method.rollouts.prompts, len(self.tasks)
        )
        return [self.tasks[place] for place in places]

    def _sampled(self) -> tuple[Experience, dict[str, float], RunningMoments]:
        """Sample, score, look at the answers and give each token its credit."""
        started = time.perf_counter()
        config = self.method.rollouts
        seed = stable_seed(self.seed, "rollout", self._number)
        tasks = self._tasks()
        answers = self.sample(self.model, tasks, seed)
        sampled = time.perf_counter()
        scores = torch.tensor(self.score(answers), dtype=torch.float64)
        ended = torch.tensor([answer.ended for answer in answers])
        rewards = self._scores.normalised(scores) if config.normalise_rewards else scores
        rewards = (rewards - config.missing_end_penalty * ~ended).float()
        groups = grouped([task.prompt for task in tasks], [answer.ids for answer in answers])
        seen = look_at(
            groups,
            self.model,
            self.reference,
            self.method.critic,
            ended,
            config.temperature,
            prompts_at_once=self.loop.micro_rows or self.loop.batch_rows,
            share_prompt=config.share_prompt,
        )
        columns, of_method = self.method.credit(seen, rewards)
        figures = {
            "reward": float(scores.mean()),
            "kl": float(kl_k1(seen.logprobs_at, seen.reference_at).sum(1).mean()),
            "kl_coefficient": self.method.kl.coefficient,
            "entropy": -float(seen.logprobs_at[seen.mask_at].mean()),
            "length": float(seen.mask_at.sum(1).float().mean()),
            "ended": float(ended.float().mean()),
            **of_method,
            "sampling_s": sampled - started,
        }
        return Experience(groups, seen.mask_at, columns), figures, self._scores


def train_online(
    model: Llama,
    tokenizer: Tokenizer,
    method: Method,
    tasks: Sequence[Task],
    score: Scorer,
    loop: LoopConfig,
    checkpoints: Path,
    events: EventLog,
    *,
    seed: int,
    stage: str,
) -> Progress:
    """Train ``model`` in place by ``method``, going on from the newest checkpoint.

    The model as given is the reference, so a resumed run starts from the same. Answers come from
    the engine, in the data type the loop computes in. Raises as `Online` and `train`.
    """
    config = method.rollouts
    weights: Weights = "bf16" if compute_dtype(loop, model.device) == torch.bfloat16 else "fp32"
    longest = max((len(task.prompt) for task in tasks), default=0)
    sample = EngineSampler(model, tokenizer, config, weights, longest)
    online = Online(model, method, tasks, sample, score, loop, events, seed=seed, stage=stage)
    prompt_tokens = sum(len(task.prompt) for task in tasks) // len(tasks)
    return train(
        model,
        online.objective,
        online,
        loop,
        checkpoints,
        events,
        stage=stage,
        attended=(prompt_tokens + config.max_new_tokens) // 2,
        after_step=online.after_step,
        beside=method.critic,
        kept=online,
    )
