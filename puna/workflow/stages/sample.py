"""The stage of rejection sampling: best answers become chats, best and worst become pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from puna.alignment import Prompt, RejectionConfig, sample_best
from puna.core.random import stable_seed
from puna.inference import EngineConfig, load_engine
from puna.tokenizer import FORMATS
from puna.workflow.stages.rewards import PromptStage, open_scorer, read_stage_prompts
from puna.workflow.stages.training import Given


class SampleStage(PromptStage):
    """Rejection sampling: many answers to each prompt, of which the best are kept.

    ``sft.jsonl`` holds the best as chats, ``pairs.jsonl`` best and worst as pairs, ``scored.jsonl``
    all of them.
    """

    leaves_policy: ClassVar[bool] = False

    generated_from: int = Field(default=0, ge=0)
    """The first of the generated prompts, when earlier ones were answered before."""
    weights: Literal["auto", "fp32", "bf16", "int8", "int4", "w8a8"] = "auto"
    """Format of the weights that answer; auto is bf16 where the hardware has it."""
    rejection: RejectionConfig = RejectionConfig()
    """How many answers, how they are drawn, and which are kept."""


def run_sample(config: SampleStage, given: Given, folder: Path) -> dict[str, Any]:
    """Answer every prompt, score the answers and keep the best."""
    prompts = _prompts(config, given)
    engine = load_engine(str(given.base), EngineConfig(weights=config.weights))
    if config.chat_format != "auto":
        engine.tokenizer = engine.tokenizer.with_chat(FORMATS[config.chat_format])
    scorer = open_scorer(config.reward, given, engine.tokenizer)
    seed = stable_seed(given.seed, "sample", config.rejection.seed)
    rejection = config.rejection.model_copy(update={"seed": seed})
    report = sample_best(engine, prompts, scorer, rejection, folder, given.events, origin={})
    best = {str(k): round(score, 4) for k, score in report.best_of.items()}
    given.events.emit(
        "note",
        text=f"{report.prompts:,} prompts with {rejection.answers} answers each: "
        f"{report.sft_rows:,} chats, {report.pairs:,} pairs; mean score of the best of "
        + ", ".join(f"{k}: {score:.3g}" for k, score in best.items()),
    )
    return {
        "prompts": report.prompts,
        "answers": report.prompts * rejection.answers,
        "sft_rows": report.sft_rows,
        "pairs": report.pairs,
        "mean_score": round(report.mean_score, 4),
        "best_of": best,
    }


def _prompts(config: SampleStage, given: Given) -> Sequence[Prompt]:
    last = config.generated_from + config.generated_prompts
    named = read_stage_prompts(config.model_copy(update={"generated_prompts": last}), given)
    own = len(named) - last
    kept = [*named[:own], *named[own + config.generated_from :]]
    return [Prompt(prompt.messages, prompt.record) for prompt in kept]
