"""Prompts to be answered, and what rewards the answers: what sample, ppo and grpo share."""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from puna.alignment import RewardModel, by_reward_model, load_scorer
from puna.alignment.rollouts import Scorer, reach
from puna.core.devices import default_device
from puna.core.errors import UsageError
from puna.data import NamedPrompt, read_prompts
from puna.data.generators import Question, generate_questions
from puna.formats import load_model
from puna.tokenizer import Message, Tokenizer
from puna.workflow.stages.training import MODEL, FromModel, Given, digest_of

REWARD = "reward"  # the stage, and what its model is called where a reward is named
# What tokenizers split in ways of their own.
_PROBE = "The 3 llamas' wool weighs 1234.5 kg, naïvely.\n\n\tdef shear(llama): return llama.wool"


class PromptStage(FromModel):
    """What stages in which the model answers prompts have in common."""

    prompts: tuple[Path, ...] = ()
    """Files of rows with ``messages`` that end with the user's turn, or ``prompt``, or
    ``question``; a scoring function gets the whole row."""
    generated_prompts: int = Field(default=0, ge=0)
    """Questions of the generators, with their answers, on problems that are not held out."""
    reward: str = Field(min_length=1)
    """What rewards an answer: a scoring function ``module:function``, ``reward`` for the model of
    stages.reward, or the folder of a reward model."""

    @model_validator(mode="after")
    def _some_prompts(self) -> Self:
        if not (self.prompts or self.generated_prompts):
            raise ValueError("no prompts: set prompts or generated_prompts")
        return self

    def reads(self) -> Sequence[Path]:
        """Its files, and the folder of a reward model."""
        folder = Path(self.reward)
        return [*self.prompts, *([folder] if self.reward != REWARD and folder.is_dir() else [])]

    def needs(self) -> Sequence[str]:
        """The stage that trains the reward model."""
        return [REWARD] if self.reward == REWARD else []

    def circumstances(self) -> Sequence[str]:
        """The source of the scoring function's module: another version gives other rewards."""
        source = _source_of(self.reward)
        return [digest_of(source)] if source else []


def read_stage_prompts(config: PromptStage, given: Given) -> list[NamedPrompt]:
    """Prompts of the user's files, then those of the generators; raises `UsageError`."""
    drawn = given.drawn
    named = [prompt for path in config.prompts for prompt in read_prompts(path)]
    made = generate_questions(given.seed, config.generated_prompts, drawn.countries, drawn.kinds)
    return named + [question_prompt(f"question {i}", each) for i, each in enumerate(made)]


def question_prompt(name: str, question: Question) -> NamedPrompt:
    """A generated question as a prompt; its record holds the fields of `Question`."""
    record = asdict(question) | {"rivals": list(question.rivals)}
    return NamedPrompt(name, (Message("user", question.prompt),), record)


def open_scorer(reward: str, given: Given, tokenizer: Tokenizer) -> Scorer:
    """What ``reward`` names in a recipe; see `PromptStage`.

    Args:
        tokenizer: the policy's; a reward model must have the same.

    Raises `UsageError` where there is no such thing.
    """
    if reward == REWARD:
        if REWARD not in given.earlier:
            raise UsageError("reward: reward is the model of stages.reward: add that stage")
        return _model_scorer(given.earlier[REWARD].folder / MODEL, tokenizer)
    if Path(reward).is_dir():
        return _model_scorer(Path(reward), tokenizer)
    if ":" not in reward:
        raise UsageError(
            f"reward '{reward}' is no folder of a reward model: name one, or a scoring function "
            "as module:function"
        )
    return load_scorer(reward)


def _model_scorer(folder: Path, tokenizer: Tokenizer) -> Scorer:
    model, its_own = load_model(folder, device=default_device(), cls=RewardModel)
    if its_own.vocab_size != tokenizer.vocab_size or its_own.encode(_PROBE) != tokenizer.encode(
        _PROBE
    ):
        raise UsageError(
            f"the reward model {folder} has another tokenizer than the model that answers: train "
            "it from a model of the same family"
        )
    return by_reward_model(model.eval())


def _source_of(reward: str) -> Path | None:
    """The file of a scoring function's module, where it has one."""
    module, colon, _ = reward.partition(":")
    if not colon:
        return None
    reach(module)
    try:
        found: Any = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None  # what is wrong is said when it is loaded
    origin = found.origin if found else None
    return Path(origin) if origin and Path(origin).is_file() else None
