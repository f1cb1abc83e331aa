"""What a language model makes of a turn: hidden states of some layers, pooled over the turn.

A turn is read as the model reads it in a conversation, the earlier turns of user and assistant
before it. A long one is read in windows, each of which is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.core.errors import UsageError
from puna.model import Llama
from puna.tokenizer import LLAMA3, Message, Tokenizer
from puna.tokenizer.llama31 import Llama31Format

WINDOW = 384
"""Tokens of a turn that are read together."""
CONTEXT = 256
"""Most tokens of the conversation before it."""
BATCH_TOKENS = 8192  # padded tokens of one forward pass


@dataclass(frozen=True)
class Window:
    """A part of a turn with what stands before it.

    Attributes:
        ids: tokens, the end of turn last.
        start: where the part begins in them.
    """

    ids: list[int]
    start: int


def windows_of(
    tokenizer: Tokenizer, messages: Sequence[Message], most: int, room: int = WINDOW + CONTEXT + 1
) -> list[Window]:
    """The last turn of a conversation in windows, at most ``most``, the first and last among them.

    A window with what stands before it has at most ``room`` tokens, the model's context.

    Raises `UsageError` for an empty conversation and a tokenizer without chat tokens.
    """
    chat = tokenizer.chat
    if isinstance(chat, Llama31Format):
        chat = LLAMA3  # else the day's date would stand before every text
    # Else some formats would open with a system turn of their own, the same before every text.
    ids = chat.encode(tokenizer, [Message("system", ""), *as_spoken(messages)]).ids
    content = tokenizer.encode(messages[-1].content.strip())
    after = [tokenizer.special_id(chat.end_of_turn)]
    end = len(ids) - len(after) - len(tokenizer.encode(chat.separator))
    size = min(WINDOW, room // 2)
    before = ids[: end - len(content)][-min(CONTEXT, room - size - 1) :]
    starts = list(range(0, max(1, len(content)), size))
    if len(starts) > most:
        starts = [*starts[: most - 1], starts[-1]]
    return [Window(before + content[s : s + size] + after, len(before)) for s in starts]


def as_spoken(messages: Sequence[Message]) -> list[Message]:
    """The turns of users and assistants as plain text; what tools say comes from outside too."""
    roles = {"user": "user", "tool": "user", "assistant": "assistant"}
    return [Message(roles[m.role], m.content) for m in messages if m.role in roles]


class Encoder:
    """Pooled hidden states of turns.

    Args:
        model: nothing else may use it; layers above those asked for are taken off.
        tokenizer: its own.
        layers: which hidden states: 1 is the output of the first block.
        most_windows: windows read of one turn.

    Attributes:
        dim: numbers for each window: for each layer the mean over the turn, and the state at its
            end.
    """

    def __init__(
        self, model: Llama, tokenizer: Tokenizer, layers: Sequence[int], *, most_windows: int = 8
    ) -> None:
        n_layers = model.config.n_layers
        if not layers or min(layers) < 1 or max(layers) > n_layers:
            raise UsageError(f"layers {list(layers)}: this model's are 1 to {n_layers}")
        model.model.layers = model.model.layers[: max(layers)]
        self.tokenizer = tokenizer
        self.layers = tuple(layers)
        self.dim = 2 * len(layers) * model.config.dim
        self._model = model
        self._most_windows = most_windows

    def encode(self, conversations: Sequence[Sequence[Message]]) -> tuple[Tensor, list[int]]:
        """Features of every window, (windows, dim) fp32, and the conversation of each."""
        windows, owners = [], []
        for number, messages in enumerate(conversations):
            room = self._model.config.context
            found = windows_of(self.tokenizer, messages, self._most_windows, room)
            windows += found
            owners += [number] * len(found)
        rows = torch.empty(len(windows), self.dim)
        for members in _batches([len(window.ids) for window in windows]):
            rows[members] = self._pooled([windows[member] for member in members])
        return rows, owners

    @torch.inference_mode()
    def _pooled(self, windows: Sequence[Window]) -> Tensor:
        """Features of windows read together: (windows, dim)."""
        device = self._model.device
        width = max(len(window.ids) for window in windows)
        ids_bt = torch.zeros(len(windows), width, dtype=torch.int64)
        inside_bt = torch.zeros(len(windows), width)
        for row, window in enumerate(windows):
            ids_bt[row, : len(window.ids)] = torch.tensor(window.ids)
            # Of an empty turn the end is all there is.
            start = min(window.start, len(window.ids) - 1)
            inside_bt[row, start : max(start + 1, len(window.ids) - 1)] = 1
        share_bt = (inside_bt / inside_bt.sum(1, keepdim=True)).to(device)
        ends_b = torch.tensor([len(window.ids) - 1 for window in windows], device=device)
        rows_b = torch.arange(len(windows), device=device)
        parts = []
        # Padding stands on the right of every row, where a causal model cannot see it.
        for hidden_btd in self._hidden(ids_bt.to(device)):
            hidden_btd = hidden_btd.float()
            parts += [torch.einsum("bt,btd->bd", share_bt, hidden_btd), hidden_btd[rows_b, ends_b]]
        return torch.cat(parts, dim=1).cpu()

    def _hidden(self, ids_bt: Tensor) -> list[Tensor]:
        """Outputs of the blocks asked for, each (batch, time, dim)."""
        found: dict[int, Tensor] = {}
        blocks = self._model.model.layers
        hooks = [
            blocks[layer - 1].register_forward_hook(
                lambda _block, _inputs, output, layer=layer: found.__setitem__(layer, output)
            )
            for layer in self.layers
        ]
        try:
            self._model.hidden(ids_bt)
        finally:
            for hook in hooks:
                hook.remove()
        return [found[layer] for layer in self.layers]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of similar lengths, as many as `BATCH_TOKENS` allow when padded; at least one."""
    batches: list[list[int]] = [[]]
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return [batch for batch in batches if batch]
