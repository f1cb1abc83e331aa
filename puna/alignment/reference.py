"""Log-probabilities of answers under a frozen reference, computed once and kept.

They are named by a hash of the answers and of the reference's weights, so other data or another
model never meet numbers that are not theirs.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from puna.alignment.pairs import Comparison, batches_of, lay_out
from puna.core.files import new_folder, sha256_value
from puna.model import Llama, adapter_disabled

_ADAPTER = ("lora_A", "lora_B", "magnitude")


def reference_logprobs(model: Llama, pairs: Sequence[Comparison], kept: Path) -> np.ndarray:
    """Log-probability of the text of both answers of each pair under ``model``: (pairs, 2) fp32.

    The sum over the text's tokens, in nats; the end of turn is no part of it. What is computed is
    saved in a folder below ``kept`` and read from there the next time. Of a model with an adapter
    the reference is the base.
    """
    folder = kept / f"reference-{_key(model, pairs)}"
    path = folder / "logprobs.npy"
    if path.exists():
        found: np.ndarray = np.load(path, allow_pickle=False)
        return found
    with adapter_disabled(model):
        result = text_logprobs(model, pairs)
    with new_folder(folder) as building:
        np.save(building / path.name, result)
    return result


@torch.inference_mode()
def text_logprobs(model: Llama, pairs: Sequence[Comparison]) -> np.ndarray:
    """Log-probability of the text of both answers of each pair as the model stands: (pairs, 2)."""
    result = np.zeros((len(pairs), 2), np.float32)
    for members in batches_of(pairs):
        batch = lay_out([pairs[member] for member in members]).to(model.device)
        sums = batch.by_answer(batch.logprobs(model) * batch.content)
        result[members] = sums.view(-1, 2).cpu().numpy()
    return result


def _key(model: Llama, pairs: Sequence[Comparison]) -> str:
    data = [[pair.prompt, [[a.ids, a.content] for a in pair.answers]] for pair in pairs]
    return sha256_value([weights_hash(model), str(model.dtype), data])[:16]


def weights_hash(model: Llama) -> str:
    """Hex SHA-256 over the names, types and bytes of the weights; an adapter's are left out."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if name.endswith(_ADAPTER):
            continue
        digest.update(f"{name}\0{weight.dtype}\0{tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
