"""Settings of rounds: what each of them does, and which preferences it learns from."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.workflow.stages.dpo import DPOStage
from puna.workflow.stages.pairs import PairStage
from puna.workflow.stages.reward import RewardStage
from puna.workflow.stages.sample import SampleStage
from puna.workflow.stages.sft import SFTStage
from puna.workflow.stages.training import FromModel

Stage = TypeVar("Stage", bound=PairStage)


class PreferenceBatch(Config):
    """Preferences collected before a round, between answers of the model of that time."""

    files: tuple[Path, ...] = ()
    """Pairs of your own, as for stages.dpo."""
    generated_pairs: int = Field(default=0, ge=0)
    """Pairs made by the generators; each batch has others."""

    @model_validator(mode="before")
    @classmethod
    def _files_alone(cls, given: Any) -> Any:
        return {"files": given} if isinstance(given, list | tuple) else given

    @model_validator(mode="after")
    def _some_pairs(self) -> Self:
        if not (self.files or self.generated_pairs):
            raise ValueError("a batch without pairs: set files or generated_pairs")
        return self


class RoundReward(RewardStage):
    """The reward model of a round: it learns from all batches of preferences so far."""

    @model_validator(mode="after")
    def _some_pairs(self) -> Self:
        return without_pairs(self)


class RoundDPO(DPOStage):
    """The DPO of a round: it learns from the newest batches of preferences."""

    @model_validator(mode="after")
    def _some_pairs(self) -> Self:
        return without_pairs(self)


def without_pairs(stage: Stage) -> Stage:
    """Raise `ValueError` for pairs that a round's stage names itself."""
    if stage.files or stage.generated_pairs:
        raise ValueError("the pairs of rounds are named in rounds.preferences: move them there")
    return stage


class RoundsStage(FromModel):
    """Reward model, rejection sampling, SFT, DPO, average of models: again and again.

    "The Llama 3 Herd of Models" section 4.1 does it six times.
    """

    usual_base: ClassVar[str] = "pretrain"

    count: int = Field(ge=1)
    """Rounds in all; when it is raised later, those that are done are kept."""
    sampler: str = ""
    """Model that answers in round 1, as ``base``; empty takes the stage before, else the base. In
    later rounds it is the model that the round before left."""
    sft_from: Literal["base", "round"] = "base"
    """Where a round's SFT starts: at ``base``, as in Llama 3, or at the model that answered."""
    preferences: tuple[PreferenceBatch, ...] = ()
    """A batch for each round, or fewer. Files may be missing until their round begins."""
    newest: int = Field(default=1, ge=1)
    """Batches that DPO learns from, the newest; the reward model learns from all so far."""
    reward: RoundReward | None = None
    """The reward model, trained from ``base``; leave it out where a function scores answers."""
    sample: SampleStage
    """Rejection sampling; ``reward: reward`` is the round's reward model."""
    sft: SFTStage
    """Tuning; ``from_sample: true`` adds the best answers."""
    dpo: tuple[RoundDPO, ...] = ()
    """DPO from the round's SFT; of several settings each leaves a model, and they are averaged."""
    average: tuple[float, ...] = ()
    """How much each of them counts; empty: all alike."""
    best_by: Literal["", "exact_match", "preference_accuracy", "full_sentences"] = ""
    """A figure of stages.evaluate: of the rounds' models the one with the highest answers in the
    next round, and is left at the end. Empty takes the newest."""

    @model_validator(mode="before")
    @classmethod
    def _one_dpo(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("dpo"), dict):
            return given | {"dpo": [given["dpo"]]}
        return given

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.preferences) > self.count:
            raise ValueError(
                f"{len(self.preferences)} batches of preferences for {self.count} rounds: raise "
                "count, or join batches"
            )
        if self.reward and not self.preferences:
            raise ValueError("rounds.reward has no pairs: set rounds.preferences")
        if not (self.preferences or all(dpo.from_sample for dpo in self.dpo)):
            raise ValueError("rounds.dpo has no pairs: set rounds.preferences or dpo.from_sample")
        if self.average and len(self.average) != len(self.dpo):
            raise ValueError(
                f"rounds.average weighs {len(self.average)} models, rounds.dpo leaves "
                f"{len(self.dpo)}: give each a weight"
            )
        return self
