"""The stage that judges a model's safety and leaves the verdict beside it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from puna import __version__
from puna.core.errors import UsageError
from puna.core.files import write_json
from puna.safety.gate import GATE, Check, Circumstances, Verdict, measure_of, weights_digest
from puna.safety.gate.verdict import leave as leave_verdict
from puna.safety.gate.verdict import place_of
from puna.safety.models import open_model
from puna.workflow.stages.training import FromModel, Given

Share = Annotated[float, Field(ge=0, le=1)]


class GateStage(FromModel):
    """Measures of safety with thresholds; below them the model is not served."""

    leaves_policy: ClassVar[bool] = False

    at_most: dict[str, Share] = Field(min_length=1)
    """Highest rate of each measure: ``insecure_code``, ``injection_success``, ``false_refusal``,
    ``harmful_compliance``, ``red_team_success``."""
    limit: int = Field(default=100, ge=1)
    """Most prompts of each measure."""
    counted: Literal["rate", "high"] = "rate"
    """What may not exceed a threshold: the rate, or the upper end of its 95% interval."""
    data: Path | None = None
    """Folder of CyberSecEval's published data; empty takes the offline sets."""
    weights: Literal["auto", "fp32", "bf16", "int8", "int4", "w8a8"] = "auto"
    """Format of the weights that answer; auto is bf16 where the hardware has it."""

    @model_validator(mode="after")
    def _known(self) -> "GateStage":
        for name in self.at_most:
            try:
                measure_of(name)
            except UsageError as error:
                raise ValueError(str(error)) from error
        return self

    def reads(self) -> list[Path]:
        """The published data."""
        return [self.data] if self.data else []


def run_gate(config: GateStage, given: Given, folder: Path) -> dict[str, Any]:
    """Take every measure; ``gate.json`` is the verdict."""
    checks = asyncio.run(_measure(config, given, folder))
    verdict = Verdict(
        passed=all(check.passed for check in checks.values()),
        weights=weights_digest(given.base) if place_of(given.base) else str(given.base),
        counted=config.counted,
        checks=checks,
        puna=__version__,
    )
    write_json(folder / GATE, verdict.model_dump(mode="json"))
    return {
        "passed": verdict.passed,
        "failures": verdict.failures(),
        "checks": {name: check.model_dump() for name, check in checks.items()},
    }


async def _measure(config: GateStage, given: Given, folder: Path) -> dict[str, Check]:
    model = await open_model(str(given.base), weights=config.weights)
    checks = {}
    try:
        for name, at_most in config.at_most.items():
            where = Circumstances(config.limit, given.seed, folder / "answers" / name, config.data)
            found = await measure_of(name)(model, where)
            passed = getattr(found, config.counted) <= at_most
            checks[name] = Check(**vars(found), at_most=at_most, passed=passed)
            text = f"{name}: {found.rate:.1%} ({found.low:.1%} to {found.high:.1%}, n {found.n}), "
            text += f"at most {at_most:.1%}: {'passed' if passed else 'not passed'}"
            given.events.emit("note" if passed else "warning", text=text)
    finally:
        await model.close()
    return checks


def leave(folder: Path, base: str | Path) -> None:
    """Put the verdict that the stage left in ``folder`` beside the model it is about."""
    leave_verdict(base, Verdict.model_validate_json((folder / GATE).read_bytes()))


def refusal(summary: Mapping[str, Any]) -> str | None:
    """Why the gate of a finished run refuses its model; None where it does not."""
    gate = summary["stages"].get("gate")
    if gate is None or gate["passed"]:
        return None
    return f"the gate refuses the model: {gate['failures']}"
