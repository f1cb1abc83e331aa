"""A small head on a language model's features: is a turn harmful, and which hazard is it.

Logistic regression on standardised features with an L2 penalty, and a softmax over hazards. Its
probabilities are calibrated on sources it did not learn from, by a slope and an intercept (Platt
1999).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from puna.core.errors import UsageError
from puna.core.files import new_folder, write_json

WEIGHTS, FACTS = "head.safetensors", "head.json"
FORMAT = 1
_ITERATIONS = 60


@dataclass(frozen=True)
class HeadFacts:
    """What a head's ``head.json`` says.

    Attributes:
        task: ``hazard`` or ``injection``.
        model: what its features come from, as the user called it.
        digest: SHA-256 of that model.
        layers: whose hidden states are its features.
        slope, intercept: from its logit to that of the probability.
        threshold: probability from which a turn is unsafe.
        hazards: codes, in the order of the softmax.
        sources: what it learned from: harmful and harmless turns of each.
        measured: figures on sources it had not learned from when they were taken.
    """

    task: str
    model: str
    digest: str
    layers: tuple[int, ...]
    slope: float
    intercept: float
    threshold: float
    hazards: tuple[str, ...]
    sources: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Linear:
    """A linear map of standardised features: (windows, dim) -> (windows, outputs)."""

    mean_d: Tensor
    scale_d: Tensor
    weight_od: Tensor
    bias_o: Tensor

    def __call__(self, rows_nd: Tensor) -> Tensor:
        return F.linear((rows_nd - self.mean_d) / self.scale_d, self.weight_od, self.bias_o)


def fit_logistic(
    rows_nd: Tensor, targets_n: Tensor, weights_n: Tensor, penalty: float, n_classes: int = 1
) -> Linear:
    """Logistic (``n_classes`` 1) or softmax regression by L-BFGS.

    Args:
        rows_nd: features.
        targets_n: 0 or 1, or numbers of classes.
        weights_n: of each row; they sum to 1 after scaling.
        penalty: of the squared weights on standardised features, added to the weighted mean loss.
    """
    mean_d, scale_d = rows_nd.mean(0), rows_nd.std(0).clamp(min=1e-4)
    x_nd = (rows_nd - mean_d) / scale_d
    weights_n = weights_n / weights_n.sum()
    weight_od = torch.zeros(n_classes, x_nd.shape[1], requires_grad=True)
    bias_o = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_od, bias_o], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(x_nd, weight_od, bias_o)
        if n_classes == 1:
            each = F.binary_cross_entropy_with_logits(
                logits[:, 0], targets_n.float(), reduction="none"
            )
        else:
            each = F.cross_entropy(logits, targets_n, reduction="none")
        value = (each * weights_n).sum() + penalty * weight_od.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Linear(mean_d, scale_d, weight_od.detach(), bias_o.detach())


class Head:
    """A trained head.

    Args:
        facts: what it is.
        unsafe: logit of a window.
        hazards: logits of the facts' hazards; None where they name none.
    """

    def __init__(self, facts: HeadFacts, unsafe: Linear, hazards: Linear | None) -> None:
        self.facts = facts
        self._unsafe = unsafe
        self._hazards = hazards

    def probabilities(self, rows_nd: Tensor) -> Tensor:
        """How sure it is that each window is harmful: (windows,)."""
        logits = self._unsafe(rows_nd)[:, 0]
        return torch.sigmoid(self.facts.slope * logits + self.facts.intercept)

    def hazard_shares(self, rows_nd: Tensor) -> Tensor:
        """Probability of each hazard, should a window be harmful: (windows, hazards)."""
        if self._hazards is None:
            return rows_nd.new_zeros(len(rows_nd), 0)
        return self._hazards(rows_nd).softmax(1)

    def save(self, folder: Path) -> None:
        """Write ``head.safetensors`` and ``head.json``; the folder appears whole or not."""
        parts = {"unsafe": self._unsafe} | ({"hazards": self._hazards} if self._hazards else {})
        tensors = {
            f"{name}.{key}": tensor.contiguous()
            for name, part in parts.items()
            for key, tensor in vars(part).items()
        }
        with new_folder(folder) as building:
            save_file(tensors, building / WEIGHTS)
            write_json(building / FACTS, {"format": FORMAT, **asdict(self.facts)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; raises `UsageError` naming the file that is wrong."""
        facts = _read_facts(folder / FACTS)
        try:
            tensors = load_file(folder / WEIGHTS)
            unsafe = _linear(tensors, "unsafe")
            hazards = _linear(tensors, "hazards") if facts.hazards else None
        except (OSError, SafetensorError, KeyError) as error:
            raise UsageError(f"{folder / WEIGHTS} cannot be read: train the head again") from error
        return cls(facts, unsafe, hazards)


def is_head(folder: Path) -> bool:
    """Whether a folder holds a head."""
    return (folder / FACTS).is_file()


def _linear(tensors: Mapping[str, Tensor], name: str) -> Linear:
    keys = ("mean_d", "scale_d", "weight_od", "bias_o")
    return Linear(**{key: tensors[f"{name}.{key}"] for key in keys})


def _read_facts(path: Path) -> HeadFacts:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("format") != FORMAT:
            raise UsageError(f"{path} is of another version of Puna: train the head again")
        lists: Sequence[str] = ("layers", "hazards")
        return HeadFacts(**value | {key: tuple(value[key]) for key in lists})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: train the head again") from error
