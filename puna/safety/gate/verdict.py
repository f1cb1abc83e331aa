"""The verdict beside the weights, and who may pass in spite of it.

``gate.json`` lies in the model's folder (of a GGUF file: ``NAME.gguf.gate.json``). It names the
weights by a hash, so it holds for these and no others.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from puna.core.config import Config
from puna.core.errors import PunaError, UsageError
from puna.core.files import sha256_file, sha256_folder, write_json, write_text

GATE, CARD = "gate.json", "README.md"
_BEGIN, _END = "<!-- puna gate: begin -->", "<!-- puna gate: end -->"
_MOST_BYTES = 1 << 20  # of a verdict
_LONGEST_REASON = 500


class Check(Config):
    """One measure against its threshold."""

    what: str
    """What was counted, and on which prompts."""
    rate: float = Field(ge=0, le=1)
    """Share of bad outcomes."""
    low: float = Field(ge=0, le=1)
    """Lower end of the 95% interval."""
    high: float = Field(ge=0, le=1)
    """Upper end of the 95% interval."""
    n: int = Field(ge=1)
    """Outcomes it was measured on."""
    at_most: float = Field(ge=0, le=1)
    """The threshold."""
    passed: bool
    """Whether the figure that counts is not above it."""


class Acceptance(Config):
    """Somebody served the model in spite of its verdict."""

    reason: str
    """Their reason."""
    time: str
    """When, in UTC."""
    weights: str
    """Hash of the weights they served."""


class Verdict(Config):
    """What a gate found."""

    passed: bool
    """Whether every check passed."""
    weights: str
    """Hash of the weights it holds for."""
    counted: str
    """Which figure counted: the ``rate`` or the ``high`` end of its interval."""
    checks: dict[str, Check]
    """By measure."""
    puna: str
    """Version that judged."""
    accepted: tuple[Acceptance, ...] = ()
    """Risks that were accepted, oldest first."""

    def failures(self) -> str:
        """The checks that did not pass, in a line."""
        return ", ".join(
            f"{name} {getattr(check, self.counted):.1%} is above {check.at_most:.1%}"
            for name, check in self.checks.items()
            if not check.passed
        )


def place_of(model: str | Path) -> Path | None:
    """Where the verdict of a model is; None for one that is no folder and no file of one's own."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path / GATE
    return path.with_name(f"{path.name}.{GATE}") if path.is_file() else None


def weights_digest(model: str | Path) -> str:
    """SHA-256 over the model's files: weights, configuration, tokenizer, template.

    What the gate itself writes, the verdict and the card, does not count.
    """
    path = Path(model).expanduser()
    return sha256_file(path) if path.is_file() else sha256_folder(path, without=(GATE, CARD))


def read_verdict(place: Path) -> Verdict:
    """The verdict in a file. Raises `PunaError` for one that is not whole."""
    try:
        if place.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        found = json.loads(place.read_text(encoding="utf-8"))
        return Verdict.parse(found, where=str(place))
    except (ValueError, UsageError) as error:
        raise PunaError(f"{place} is no verdict ({error}): run the gate again") from error


def leave(model: str | Path, verdict: Verdict) -> Path | None:
    """Write a verdict beside the model, what was accepted before kept; returns its place."""
    place = place_of(model)
    if place is None:
        return None
    accepted: tuple[Acceptance, ...] = ()
    if place.exists():
        try:
            accepted = read_verdict(place).accepted
        except PunaError:
            accepted = ()
    _write(model, place, verdict.model_copy(update={"accepted": accepted}))
    return place


def admit(model: str | Path, accept_risk: str | None) -> str | None:
    """Whether the model may be served: a line to show where a risk was accepted, else None.

    A model without a verdict was not gated and is let through. Raises `PunaError`, in one line, for
    a bad verdict, one of other weights or one that cannot be read, unless a reason is given: it is
    written to the verdict and to the model card. `UsageError` for an empty reason.
    """
    place = place_of(model)
    if place is None or not place.exists():
        return None
    if accept_risk is not None and not accept_risk.strip():
        raise UsageError("--accept-risk needs a reason: it is written to the model card")
    weights, verdict, problem = weights_digest(model), None, ""
    try:
        verdict = read_verdict(place)
    except PunaError as error:
        problem = str(error)
    if verdict is not None:
        problem = _problem(verdict, weights)
    if not problem:
        return None
    line = f"the gate refuses {model}: {problem}"
    if accept_risk is None:
        raise PunaError(f'{line}; to serve it all the same: --accept-risk "reason"')
    _accept(model, place, verdict, weights, " ".join(accept_risk.split())[:_LONGEST_REASON])
    return f"{line}; accepted, and written to {card_of(model).name}"


def card_of(model: str | Path) -> Path:
    """The model card: ``README.md`` in the folder, or beside a GGUF file by its name."""
    path = Path(model).expanduser()
    return path / CARD if path.is_dir() else path.with_name(f"{path.name}.md")


def _problem(verdict: Verdict, weights: str) -> str:
    if verdict.weights != weights:
        return "its verdict is of other weights: run the gate again"
    return "" if verdict.passed else verdict.failures() or "it did not pass"


def _accept(
    model: str | Path, place: Path, verdict: Verdict | None, weights: str, reason: str
) -> None:
    """Note a reason, once for the same weights and words."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    known = verdict or Verdict(passed=False, weights="", counted="rate", checks={}, puna="")
    if any(one.reason == reason and one.weights == weights for one in known.accepted):
        return
    accepted = (*known.accepted, Acceptance(reason=reason, time=now, weights=weights))
    _write(model, place, known.model_copy(update={"accepted": accepted}))


def _write(model: str | Path, place: Path, verdict: Verdict) -> None:
    """The card first: a reason in the verdict is also in the card."""
    card = card_of(model)
    before = card.read_text(encoding="utf-8") if card.exists() else ""
    section = f"{_BEGIN}\n{_section(verdict)}{_END}"
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.S)
    text = (
        pattern.sub(lambda _: section, before, count=1)
        if pattern.search(before)
        else f"{before.rstrip()}\n\n{section}\n".lstrip()
    )
    write_text(card, text)
    write_json(place, verdict.model_dump(mode="json"))


def _section(verdict: Verdict) -> str:
    """The verdict as Markdown."""
    passed = "passed" if verdict.passed else "did not pass"
    lines = ["## Safety gate", "", f"The model {passed} Puna's gate.", ""]
    if verdict.checks:
        lines += ["| measure | rate | 95% interval | n | at most |", "|---|---|---|---|---|"]
    for name, check in verdict.checks.items():
        interval = f"{check.low:.1%} to {check.high:.1%}"
        row = (f"{name}: {check.what}", f"{check.rate:.1%}", interval, check.n, check.at_most)
        lines.append("| " + " | ".join(map(str, row)) + " |")
    if verdict.accepted:
        lines += ["", "Risks accepted by whoever served it:", ""]
        lines += [f"- {one.time}: {_plain(one.reason)}" for one in verdict.accepted]
    return "\n".join(lines) + "\n\n"


def _plain(text: str) -> str:
    """Words of a person, without what Markdown, HTML or our own marks would make of them."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text).replace("<!--", "").replace("-->", "")
