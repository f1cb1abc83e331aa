"""A head on a Puna model as a classifier: one pass over the turn, no text is generated."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from puna.core.devices import default_device, fast_dtype
from puna.core.files import sha256_value
from puna.formats import load_model
from puna.safety.guard.features import Encoder
from puna.safety.guard.hazards import INJECTION
from puna.safety.guard.head import Head
from puna.safety.guard.judgement import Judgement
from puna.tokenizer import Message

LEAST_SHARE = 0.25
"""A hazard is named from this probability on; the likeliest always."""


REMEMBERED = 4096
"""Judgements kept, by hashes of what was judged."""
DEPTHS = (0.4, 0.6, 0.8)
"""Which hidden states are features where nobody says, as shares of the model's depth."""


def load_encoder(model: str, layers: Sequence[int] | None) -> Encoder:
    """The encoder of a model by name, in the data type the machine computes fastest.

    Args:
        model: what `load_model` takes.
        layers: whose hidden states; None are those at `DEPTHS`.
    """
    device = default_device()
    loaded, tokenizer = load_model(model, dtype=torch.float32, device=device)
    loaded.compute_dtype = fast_dtype(device.type)
    if layers is None:
        depth = loaded.config.n_layers
        layers = sorted({max(1, round(share * depth)) for share in DEPTHS})
    return Encoder(loaded, tokenizer, layers)


class HeadGuard:
    """Judges with a head; the model's passes run in a thread of their own.

    Args:
        name: the head's folder.
        head: what judges.
        encoder: its features; nothing else may use it.
    """

    def __init__(self, name: str, head: Head, encoder: Encoder) -> None:
        self.name = name
        self.head = head
        self._encoder = encoder
        self._known: dict[str, Judgement] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="puna-guard")

    async def judge(self, messages: Sequence[Message]) -> Judgement:
        """See `Classifier.judge`; of a long turn the most harmful window counts."""
        # A conversation comes again with each of its turns: what was judged is remembered.
        key = sha256_value([[m.role, m.content] for m in messages])
        if key not in self._known:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, self.judge_all, [messages])
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = found[0]
        return self._known[key]

    def judge_all(self, conversations: Sequence[Sequence[Message]]) -> list[Judgement]:
        """Judgements of many conversations, in this thread."""
        rows_nd, owners = self._encoder.encode(conversations)
        probabilities = self.head.probabilities(rows_nd)
        worst = [0] * len(conversations)
        seen: set[int] = set()
        for row, owner in enumerate(owners):
            if owner not in seen or probabilities[row] > probabilities[worst[owner]]:
                worst[owner] = row
                seen.add(owner)
        shares = self.head.hazard_shares(rows_nd[worst]).tolist()
        scores = probabilities[worst].tolist()
        return [self._judgement(*found) for found in zip(scores, shares, strict=True)]

    async def close(self) -> None:
        """See `Classifier.close`."""
        await asyncio.to_thread(self._thread.shutdown)

    def _judgement(self, score: float, shares: list[float]) -> Judgement:
        facts = self.head.facts
        if score < facts.threshold:
            return Judgement(False, score)
        if facts.task == "injection":
            return Judgement(True, score, (INJECTION,))
        ranked = sorted(zip(shares, facts.hazards, strict=True), reverse=True)
        named = [code for share, code in ranked[1:] if share >= LEAST_SHARE]
        return Judgement(True, score, (*(code for _, code in ranked[:1]), *named))
