"""Looks at a model while it is tuned: its loss on held-out chats, and what it answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core.events import EventLog
from puna.core.files import write_json
from puna.data import PackedRows
from puna.model import Llama
from puna.parallel import here
from puna.parallel.parallelize import as_it_is
from puna.tokenizer import Message, Tokenizer
from puna.training import next_token
from puna.training.look import mean_loss
from puna.training.loop import Objective

_ROWS_AT_ONCE = 4
_ANSWER_TOKENS = 48


@dataclass
class Watch:
    """Called after each step; emits ``validation`` and ``sample`` events at regular steps.

    All processes call it. Where tp, cp or pp divide a forward pass no samples are made.

    It leaves weights and random state alone: what it sees changes nothing of the training.
    """

    tokenizer: Tokenizer
    rows: PackedRows | None
    """Held-out chats; None where there are none."""
    questions: Sequence[Sequence[Message]]
    """Conversations that the model is asked to continue."""
    steps: int
    """Steps of the training."""
    every: int
    """Steps between two looks."""
    events: EventLog
    stage: str
    kept: Path
    """File of the losses measured, so that a run that goes on knows those before."""

    @cached_property
    def losses(self) -> dict[int, float]:
        """Mean loss of the held-out tokens, in nats, by step."""
        found = here().on_first(self._read)  # so that all look, or none
        return {int(step): loss for step, loss in found.items()}

    def _read(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        return found

    def __call__(self, step: int, model: Llama) -> None:
        if step % self.every == 0 or step == self.steps:
            self.look(step, model)

    @torch.no_grad()
    def look(self, step: int, model: Llama) -> None:
        """Measure and ask now."""
        at = {"stage": self.stage, "step": step, "steps": self.steps}
        if self.rows is not None:
            self.losses[step] = held_out_loss(model, self.rows)
            write_json(self.kept, self.losses)
            self.events.emit("validation", **at, held_out_loss=self.losses[step])
        spread = as_it_is(model)
        if spread.mesh.layout.cuts_passes:
            return  # an answer is made by whole passes of one process
        for messages in self.questions:
            answer = greedy_answer(model, self.tokenizer, messages)
            self.events.emit("sample", **at, question=messages[-1].content, answer=answer)
        spread.drop_gathered()


def held_out_loss(model: Llama, rows: PackedRows, objective: Objective = next_token) -> float:
    """Mean loss of the trained tokens of all rows, in nats; of another objective its mean.

    Of a spread model all processes call it.
    """
    return round(mean_loss(model, rows, len(rows), _ROWS_AT_ONCE, objective), 4)


class _Grown:
    """Keys and values of one layer and one text, kept by growing."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def attend(self, queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor) -> Tensor:
        opening = self.kept is None
        if self.kept is not None:
            keys_bgtd = torch.cat([self.kept[0], keys_bgtd], 2)
            values_bgtd = torch.cat([self.kept[1], values_bgtd], 2)
        self.kept = (keys_bgtd, values_bgtd)
        return F.scaled_dot_product_attention(
            queries_bhtd, keys_bgtd, values_bgtd, is_causal=opening, enable_gqa=True
        )


class _GrownCache:
    def __init__(self, n_layers: int) -> None:
        self.layers = [_Grown() for _ in range(n_layers)]


@torch.no_grad()
def greedy_answer(
    model: Llama, tokenizer: Tokenizer, messages: Sequence[Message], most: int = _ANSWER_TOKENS
) -> str:
    """The most probable answer, by the very modules that are trained.

    The engine is faster, but runs a copy of plain weights: here adapters and weights in 4 bits are
    on the model.
    """
    prompt = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
    prompt = prompt[-(model.config.context - most) :]
    cache, ids, answer = _GrownCache(model.config.n_layers), prompt, list[int]()
    while len(answer) < most:
        first = len(prompt) + len(answer) - len(ids)
        positions_bt = torch.arange(first, first + len(ids), device=model.device)[None]
        ids_bt = torch.tensor([ids], device=model.device)
        hidden_btd = model.hidden(ids_bt, positions_bt=positions_bt, cache=cache)
        weight_vd = model.head_weight().to(hidden_btd.dtype)
        token = int(F.linear(hidden_btd[0, -1], weight_vd).argmax())
        if token in tokenizer.stop_ids:
            break
        answer.append(token)
        ids = [token]
    return tokenizer.decode(answer, skip_special=True)
