"""Training of a head: features once, a fit without each source, a fit with all.

What a head scores on the source it learned from says little: a classifier of words scores 0.99
there and finds a sixth of another author's attacks. So slope, threshold and every figure come from
heads that had not seen the source they are measured on; of sources that alone show a kind of turn
(answers, contrasts), not the topic: else such a head is asked what nothing told it of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from puna.core.errors import UsageError
from puna.core.files import sha256_value, write_bytes
from puna.core.random import stable_seed
from puna.core.wheels import cache_folder
from puna.data.chats import parse_messages
from puna.data.records import read_records
from puna.safety.guard.features import CONTEXT, WINDOW, Encoder
from puna.safety.guard.hazards import CODES
from puna.safety.guard.head import Head, HeadFacts, Linear, fit_logistic
from puna.safety.guard.metrics import auc, share_from, threshold_at
from puna.safety.guard.sources import FAMILIES, SOURCES, Labelled, Task
from puna.tokenizer import Message

FALSE_POSITIVES = 0.01
"""Share of harmless turns, of sources or topics not learned from, that the threshold may stop."""
PENALTY = 1e-2
_LEAST_FOLDS = 5
_OWN = 2.0  # weight of our own pairs beside a collected source
_LEAST_HAZARD = 20  # turns of a hazard from which on it is learned


@dataclass(frozen=True)
class Rows:
    """A source with its features, one row a turn: of a long turn its first window."""

    features_nd: Tensor
    labelled: Sequence[Labelled]

    @property
    def unsafe_n(self) -> Tensor:
        """1 where harmful, else 0."""
        return torch.tensor([float(item.unsafe) for item in self.labelled])


@dataclass(frozen=True)
class SourceReport:
    """How a head that had not learned from a source does on it.

    Attributes:
        unsafe, safe: turns.
        auc: harmful against harmless turns; those of the other sources where it has one kind.
        recall: share of harmful turns found at the head's threshold; None without any.
        false_positives: share of harmless turns called harmful; None without any.
    """

    unsafe: int
    safe: int
    auc: float
    recall: float | None
    false_positives: float | None


def read_sources(task: Task, files: Sequence[Path] = ()) -> dict[str, list[Labelled]]:
    """Labelled turns by source: the task's own, and files of rows as `read_labelled` takes them.

    A text that stands in two sources stays in the first; one with two labels is left out.
    """
    found = {name: list(read()) for name, read in SOURCES[task].items()}
    for path in files:
        found.setdefault(path.name.partition(".")[0], []).extend(read_labelled(path))
    labels: dict[str, set[bool]] = {}
    for item in (item for items in found.values() for item in items):
        labels.setdefault(_key(item), set()).add(item.unsafe)
    seen: set[str] = set()
    kept: dict[str, list[Labelled]] = {}
    for name, items in found.items():
        for item in items:
            key = _key(item)
            if key not in seen and len(labels[key]) == 1 and item.text.strip():
                seen.add(key)
                kept.setdefault(name, []).append(item)
    return kept


def read_labelled(path: Path) -> list[Labelled]:
    """Rows with ``text`` or ``messages``, ``label`` (``safe``, ``unsafe``) and perhaps ``hazards``.

    Raises `UsageError` naming file and line of a row that is none.
    """
    rows = []
    for record in read_records(path):
        fields, label = record.fields, record.fields.get("label")
        if label not in ("safe", "unsafe"):
            raise UsageError(f'{record.where}: "label" must be "safe" or "unsafe"')
        hazards = fields.get("hazards") or []
        if not isinstance(hazards, list) or any(code not in CODES for code in hazards):
            raise UsageError(f'{record.where}: "hazards" must be a list of S1 to S14')
        if isinstance(fields.get("text"), str):
            messages: tuple[Message, ...] = (Message("user", fields["text"]),)
        else:
            messages = tuple(parse_messages(fields, record.where, "messages"))
        rows.append(Labelled(messages, label == "unsafe", path.name, tuple(hazards)))
    return rows


def features_of(
    encoder: Encoder,
    digest: str,
    sources: Mapping[str, Sequence[Labelled]],
    progress: Callable[[str, int, int], None],
) -> dict[str, Rows]:
    """Features of every source, kept in the cache: a run that was stopped goes on from there."""
    rows = {}
    for number, (name, items) in enumerate(sources.items()):
        progress(name, number, len(sources))
        texts = [[(m.role, m.content) for m in item.messages] for item in items]
        key = sha256_value([digest, encoder.layers, WINDOW, CONTEXT, texts])
        path = cache_folder() / "guard" / f"{key}.safetensors"
        if not path.exists():
            features_nd, owners = encoder.encode([item.messages for item in items])
            first = [owners.index(owner) for owner in range(len(items))]
            write_bytes(path, save({"features": features_nd[first].half()}))
        rows[name] = Rows(load_file(path)["features"].float(), items)
    return rows


def train_head(
    rows: Mapping[str, Rows], held_out: Sequence[str], about: Mapping[str, Any]
) -> tuple[Head, dict[str, SourceReport]]:
    """A head, and how heads that had not seen a source do on it, by source.

    Args:
        rows: features by source.
        held_out: sources the head does not learn from.
        about: ``task``, ``model``, ``digest`` and ``layers`` of its facts.

    Raises `UsageError` for an unknown source, and where too little is left to learn from.
    """
    for name in held_out:
        if name not in rows:
            raise UsageError(f"no source '{name}' to hold out: there is {', '.join(rows)}")
    learned = {name: part for name, part in rows.items() if name not in held_out}
    logits = _left_out_logits(learned)
    slope, intercept = _calibrated(logits, learned)
    logits |= {name: _fit(_without(learned, name))(rows[name].features_nd)[:, 0]
               for name in held_out}  # fmt: skip
    scores = {
        name: torch.sigmoid(slope * values + intercept).tolist() for name, values in logits.items()
    }
    safe = _of_kind({name: scores[name] for name in learned}, learned, unsafe=False)
    threshold = threshold_at(safe, FALSE_POSITIVES)
    reports = {name: _report(name, scores, rows, threshold) for name in rows}
    hazards, softmax = _hazards(learned) if about["task"] == "hazard" else ((), None)
    counts = {
        name: (int(part.unsafe_n.sum()), int((1 - part.unsafe_n).sum()))
        for name, part in learned.items()
    }
    measured = {name: vars(report) for name, report in reports.items()}
    facts = HeadFacts(
        **about,
        slope=slope,
        intercept=intercept,
        threshold=threshold,
        hazards=hazards,
        sources=counts,
        measured=measured,
    )
    return Head(facts, _fit(learned), softmax), reports


def _key(item: Labelled) -> str:
    """What a turn says, whatever its case and spacing, after what was said before."""
    return "\0".join(" ".join(m.content.lower().split()) for m in item.messages)


def _without(rows: Mapping[str, Rows], name: str) -> dict[str, Rows]:
    """The other sources, without those that share texts with it."""
    return {other: part for other, part in rows.items() if _family(other) != _family(name)}


def folds_of(rows: Mapping[str, Rows]) -> list[dict[str, Tensor]]:
    """What a fit leaves out at a time: of every source which turns, (turns,) bool.

    A fold is a family of sources, and a share of the topics of the sources whose turns have topics;
    every turn is in one fold.
    """
    whole = list(dict.fromkeys(_family(name) for name in rows if not _has_topics(rows[name])))
    n_folds = max(_LEAST_FOLDS, len(whole))
    numbers = {
        name: torch.tensor(
            [
                stable_seed("fold", item.topic) % n_folds
                if _has_topics(part)
                else whole.index(_family(name))
                for item in part.labelled
            ]
        )
        for name, part in rows.items()
    }
    folds = [{name: of == fold for name, of in numbers.items()} for fold in range(n_folds)]
    return [fold for fold in folds if any(mask.any() for mask in fold.values())]


def chosen(rows: Mapping[str, Rows], masks: Mapping[str, Tensor]) -> dict[str, Rows]:
    """The turns under the masks; a source without any is left out."""
    return {
        name: Rows(
            part.features_nd[masks[name]],
            [item for item, keep in zip(part.labelled, masks[name].tolist(), strict=True) if keep],
        )
        for name, part in rows.items()
        if masks[name].any()
    }


def _family(name: str) -> str:
    return FAMILIES.get(name, name)


def _has_topics(part: Rows) -> bool:
    return all(item.topic for item in part.labelled)


def _left_out_logits(rows: Mapping[str, Rows]) -> dict[str, Tensor]:
    """Logits of every turn, each by a head that learned neither from its source nor its topic."""
    logits = {name: torch.empty(len(part.labelled)) for name, part in rows.items()}
    for fold in folds_of(rows):
        head = _fit(chosen(rows, {name: ~mask for name, mask in fold.items()}))
        for name, part in chosen(rows, fold).items():
            logits[name][fold[name]] = head(part.features_nd)[:, 0]
    return logits


def _fit(rows: Mapping[str, Rows]) -> Linear:
    """Logistic regression in which sources count alike, and both kinds."""
    if not rows:
        raise UsageError("nothing is left to learn from: hold out fewer sources")
    unsafe_n = torch.cat([part.unsafe_n for part in rows.values()])
    weights_n = weights_of(rows)
    features_nd = torch.cat([part.features_nd for part in rows.values()])
    return fit_logistic(features_nd, unsafe_n, weights_n, PENALTY)


def weights_of(rows: Mapping[str, Rows]) -> Tensor:
    """Weights of all turns: sources count alike, harmful and harmless turns too.

    Raises `UsageError` where one kind is missing.
    """
    unsafe_n = torch.cat([part.unsafe_n for part in rows.values()])
    weights_n = torch.cat([_weights(name, part) for name, part in rows.items()])
    for kind in (0, 1):
        chosen = unsafe_n == kind
        if not chosen.any():
            raise UsageError("only one kind of turn is left to learn from: hold out fewer sources")
        weights_n[chosen] /= weights_n[chosen].sum()
    return weights_n


def _weights(name: str, part: Rows) -> Tensor:
    unsafe_n = part.unsafe_n
    counts = torch.where(unsafe_n == 1, unsafe_n.sum(), (1 - unsafe_n).sum())
    return (_OWN if name.startswith("own-") else 1.0) / counts


def _calibrated(logits: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> tuple[float, float]:
    """Slope and intercept that make sources not learned from likely (Platt 1999)."""
    values_n = torch.cat([logits[name] for name in rows])[:, None]
    unsafe_n = torch.cat([part.unsafe_n for part in rows.values()])
    weights_n = weights_of(rows)
    fitted = fit_logistic(values_n, unsafe_n, weights_n, 0.0)
    slope = float(fitted.weight_od[0, 0] / fitted.scale_d[0])
    return slope, float(fitted.bias_o[0] - slope * fitted.mean_d[0])


def _of_kind(
    scores: Mapping[str, Sequence[float]], rows: Mapping[str, Rows], *, unsafe: bool
) -> list[float]:
    return [
        score
        for name, values in scores.items()
        for score, item in zip(values, rows[name].labelled, strict=True)
        if item.unsafe == unsafe
    ]


def _report(
    name: str, scores: Mapping[str, Sequence[float]], rows: Mapping[str, Rows], threshold: float
) -> SourceReport:
    own = {name: scores[name]}
    unsafe, safe = (_of_kind(own, rows, unsafe=kind) for kind in (True, False))
    against = [
        unsafe or _of_kind(scores, rows, unsafe=True),
        safe or _of_kind(scores, rows, unsafe=False),
    ]
    return SourceReport(
        len(unsafe),
        len(safe),
        auc(*against),
        share_from(unsafe, threshold) if unsafe else None,
        share_from(safe, threshold) if safe else None,
    )


def _hazards(rows: Mapping[str, Rows]) -> tuple[tuple[str, ...], Linear | None]:
    """A softmax over the hazards of harmful turns, where they name any."""
    pairs = [
        (features_d, item.hazards[0])
        for part in rows.values()
        for features_d, item in zip(part.features_nd, part.labelled, strict=True)
        if item.unsafe and item.hazards
    ]
    counts = {code: sum(named == code for _, named in pairs) for code in CODES}
    codes = tuple(code for code, n in counts.items() if n >= _LEAST_HAZARD)
    chosen = [(features_d, codes.index(code)) for features_d, code in pairs if code in codes]
    if len(codes) < 2:
        return (), None
    targets_n = torch.tensor([target for _, target in chosen])
    weights_n = torch.tensor([counts[codes[t]] ** -0.5 for t in targets_n.tolist()])
    features_nd = torch.stack([features_d for features_d, _ in chosen])
    return codes, fit_logistic(features_nd, targets_n, weights_n, PENALTY, len(codes))
