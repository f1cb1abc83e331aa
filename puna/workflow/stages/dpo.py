"""The stage that teaches preferences directly."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from puna.alignment import DPOConfig, DPOObjective, PairRows, reference_logprobs
from puna.alignment.reference import text_logprobs
from puna.alignment.rejection import PAIRS
from puna.core.random import stable_seed
from puna.parallel import here
from puna.training import RowSource
from puna.training.loop import compute_dtype
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.pairs import PairStage, read_stage_pairs
from puna.workflow.stages.training import Given, adapt, open_base, sampled_files, train_and_save


class DPOStage(PairStage):
    """Preferences: make the better of two answers more likely."""

    from_sample: bool = False
    """Whether the pairs of stages.sample, best and worst answers, are learned from."""
    from_safety: bool = False
    """Whether the pairs of stages.safety are learned from: refusals and answers."""
    dpo: DPOConfig = DPOConfig()
    """The method's own knobs."""

    def sampled(self) -> bool:
        """Whether pairs of stages.sample or stages.safety are learned from too."""
        return self.from_sample or self.from_safety

    def needs(self) -> list[str]:
        """What was sampled, where it is learned from."""
        asked = {"sample": self.from_sample, "safety": self.from_safety}
        return [stage for stage, is_asked in asked.items() if is_asked]


@dataclass(frozen=True)
class Preferences:
    """What a policy prefers in pairs: the text's log-probabilities, no end of turn."""

    accuracy: float
    """Share in which the better answer is the likelier one."""
    margin: float
    """By how many nats it leads, on average."""


def run_dpo(config: DPOStage, given: Given, folder: Path) -> dict[str, Any]:
    """Teach preferences; the model it starts from, its adapter off, is the frozen reference."""
    model, tokenizer = open_base(config, given, config.lora)
    more = sampled_files(given, PAIRS) if config.from_sample else []
    more += sampled_files(given, PAIRS, "safety") if config.from_safety else []
    pairs = read_stage_pairs(config, given, tokenizer, more)
    adapt(model, config.lora, given)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    refer = partial(reference_logprobs, model, kept=folder / SCRATCH)
    reference = here().on_first(partial(refer, pairs.train))
    text = f"{len(pairs.train):,} pairs, reference log-probabilities kept"
    given.events.emit("note", text=text)
    at_first = here().on_first(partial(refer, pairs.held_out))
    before = _tell(given, folder.name, "before", at_first)
    rows = PairRows(pairs.train, reference, config.dpo)
    source = RowSource(rows, stable_seed(given.seed, "dpo"), config.loop)
    after: list[Preferences | None] = []

    def judge() -> None:
        after.append(_tell(given, folder.name, "after", text_logprobs(model, pairs.held_out)))

    facts = train_and_save(
        model, tokenizer, DPOObjective(config.dpo), source, config.loop, config.row_length,
        given.events, folder, base=given.base, trained=judge,
    )  # fmt: skip
    facts |= {"pairs": len(pairs.train)}
    if before is None or after[0] is None:
        return facts
    return facts | {
        "held_out_pairs": len(pairs.held_out),
        "held_out_accuracy_before": before.accuracy,
        "held_out_accuracy": after[0].accuracy,
        "held_out_margin_before": before.margin,
        "held_out_margin": after[0].margin,
    }


def _tell(given: Given, stage: str, when: str, logprobs_p2: np.ndarray) -> Preferences | None:
    """Judge the policy by the log-probabilities of held-out pairs, where there are any."""
    n = len(logprobs_p2)
    if not n:
        return None
    leads = logprobs_p2[:, 0].astype(np.float64) - logprobs_p2[:, 1]
    found = Preferences(float((leads > 0).mean()), float(leads.mean()))
    given.events.emit("held_out_pairs", stage=stage, when=when, n=n, **asdict(found))
    return found
