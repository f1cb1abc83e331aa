"""The recipe: one YAML file that says a model's whole life."""

from collections.abc import Iterator
from typing import Self

from pydantic import Field, PositiveFloat, model_validator

from puna.core.config import Config
from puna.data.generators.kinds import EXERCISES, GEOGRAPHY_KINDS, WEIGHTS
from puna.workflow.stages.corpus import DataStage, TokenizerStage
from puna.workflow.stages.cpt import CPTStage
from puna.workflow.stages.distill import DistillStage
from puna.workflow.stages.dpo import DPOStage
from puna.workflow.stages.evaluate import EvaluateStage
from puna.workflow.stages.gate import GateStage
from puna.workflow.stages.online import GRPOStage, PPOStage
from puna.workflow.stages.pretrain import PretrainStage
from puna.workflow.stages.qat import QATStage
from puna.workflow.stages.refusal import RefusalStage
from puna.workflow.stages.reward import RewardStage
from puna.workflow.stages.rewards import REWARD, PromptStage
from puna.workflow.stages.rounds import RoundsStage
from puna.workflow.stages.safety import SafetyStage
from puna.workflow.stages.sample import SampleStage
from puna.workflow.stages.sft import SFTStage
from puna.workflow.stages.training import FromModel
from puna.workflow.track import Tracker


class Stages(Config):
    """The stages, in the order they run; leave one out and it is not run."""

    data: DataStage | None = None
    tokenizer: TokenizerStage | None = None
    pretrain: PretrainStage | None = None
    cpt: CPTStage | None = None
    safety: SafetyStage | None = None
    sft: SFTStage | None = None
    refusal: RefusalStage | None = None
    reward: RewardStage | None = None
    sample: SampleStage | None = None
    dpo: DPOStage | None = None
    ppo: PPOStage | None = None
    grpo: GRPOStage | None = None
    distill: DistillStage | None = None
    qat: QATStage | None = None
    rounds: RoundsStage | None = None
    gate: GateStage | None = None
    evaluate: EvaluateStage | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.tokenizer and not self.data:
            raise ValueError("stages.tokenizer learns from text: add stages.data")
        if self.pretrain and not self.tokenizer:
            raise ValueError("stages.pretrain needs tokens: add stages.tokenizer and stages.data")
        if self.cpt and not self.data:
            raise ValueError("stages.cpt reads the corpus: add stages.data")
        if self.sft and self.sft.replay and not self.data:
            raise ValueError("stages.sft.replay repeats documents: add stages.data")
        if self.sft and self.sft.from_sample:
            raise ValueError("stages.sft runs before stages.sample: from_sample is for rounds.sft")
        for name, learner in (("sft", self.sft), ("dpo", self.dpo)):
            if learner and learner.from_safety and not self.safety:
                raise ValueError(f"stages.{name}.from_safety learns from stages.safety: add it")
        if self.dpo and self.dpo.from_sample and not self.sample:
            raise ValueError("stages.dpo.from_sample learns from stages.sample: add it")
        if self.rounds and self.rounds.best_by and not self.evaluate:
            raise ValueError("stages.rounds.best_by compares evaluations: add stages.evaluate")
        for name, stage in self.tuning():
            if isinstance(stage, PromptStage) and stage.reward == REWARD and not self.reward:
                raise ValueError(f"stages.{name}.reward is the model of stages.reward: add it")
        self._check_bases()
        return self

    def tuning(self) -> Iterator[tuple[str, FromModel]]:
        """The stages that start from a model, by name, in order."""
        for name, stage in self:
            if isinstance(stage, FromModel):
                yield name, stage

    def work(self) -> dict[str, tuple[int, int]]:
        """By stage, in order: steps, and tokens at most; stages that sample are left out."""
        found = {}
        for name, stage in self:
            loop, length = getattr(stage, "loop", None), getattr(stage, "row_length", None)
            curriculum = getattr(stage, "curriculum", None)
            if curriculum is not None:
                found[name] = curriculum.work
            elif loop is not None and length is not None:
                found[name] = loop.steps, loop.steps * loop.batch_rows * length
        return found

    def _check_bases(self) -> None:
        """Raise `ValueError` where a stage has no model, or names a stage that left it none."""
        policies = ["pretrain"] if self.pretrain else []
        for name, stage in self.tuning():
            if not (stage.base or policies):
                raise ValueError(
                    f"stages.{name} has no model: set stages.{name}.base or add stages.pretrain"
                )
            if stage.base in type(self).model_fields and stage.base not in policies:
                raise ValueError(
                    f"stages.{name}.base: no stage {stage.base!r} leaves a model before it: name "
                    "an earlier stage or a model"
                )
            if stage.leaves_policy:
                policies.append(name)


class Recipe(Config):
    """A run: its name, its seed, its stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the folder below ``runs/``."""
    seed: int = Field(default=0, ge=0)
    """Fixes everything drawn at random, order of the data included."""
    date: str = Field(default="", pattern=r"^(\d\d [A-Z][a-z]{2} \d{4})?$")
    """What chats name as today, as ``26 Jul 2024``, where their format does (Llama 3.2's). Empty:
    the day of the run's first start, which its ``recipe.yaml`` keeps for later ones."""
    track: Tracker = "none"
    """Also report to ``wandb`` or ``tensorboard``."""
    kinds: dict[str, PositiveFloat] = WEIGHTS
    """How often the generators draw each kind of exercise; a kind not named is not drawn."""
    stages: Stages
    """What is done, in order."""

    @model_validator(mode="after")
    def _mixes_are_drawn(self) -> Self:
        """Raise `ValueError` for a mix of exercises that the generators will not write."""
        written = self.stages.data and self.stages.data.generated
        for stage in ("pretrain", "cpt"):
            training = getattr(self.stages, stage)
            for source in (
                sorted(training.curriculum.sources) if training and training.curriculum else ()
            ):
                kind = source.removeprefix("generated-")
                if kind == source or kind not in (*EXERCISES, *GEOGRAPHY_KINDS):
                    continue
                if kind not in self.kinds or not (written and written.exercises):
                    raise ValueError(
                        f"stages.{stage}.curriculum has '{source}' in a mix, which is not drawn: "
                        f"add {kind} to kinds and exercises to stages.data.generated, or leave it "
                        "out of the mix"
                    )
        return self
