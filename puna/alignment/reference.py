"""Log-probabilities of answers under a frozen reference, computed once and kept.

They are named by a hash of the answers and of the reference's weights, so other data or another
model never meet numbers that are not theirs.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from puna.alignment.pairs import Comparison, lay_out
from puna.core.files import new_folder, sha256_value
from puna.model import Llama

_TOKENS_AT_ONCE = 8192  # in one forward pass


@torch.inference_mode()
def reference_logprobs(model: Llama, pairs: Sequence[Comparison], kept: Path) -> np.ndarray:
    """Log-probability of the text of both answers of each pair under ``model``: (pairs, 2) fp32.

    The sum over the text's tokens, in nats; the end of turn is no part of it. What is computed is
    saved in a folder below ``kept`` and read from there the next time.
    """
    folder = kept / f"reference-{_key(model, pairs)}"
    path = folder / "logprobs.npy"
    if path.exists():
        found: np.ndarray = np.load(path, allow_pickle=False)
        return found
    result = np.zeros((len(pairs), 2), np.float32)
    for members in _batches([len(pair) for pair in pairs]):
        batch = lay_out([pairs[member] for member in members]).to(model.device)
        sums = batch.by_answer(batch.logprobs(model) * batch.content)
        result[members] = sums.view(-1, 2).cpu().numpy()
    with new_folder(folder) as building:
        np.save(building / path.name, result)
    return result


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Pairs of similar lengths, as many as `_TOKENS_AT_ONCE` allow; at least one."""
    batches: list[list[int]] = [[]]
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[number] > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(number)
    return batches


def _key(model: Llama, pairs: Sequence[Comparison]) -> str:
    data = [[pair.prompt, [[a.ids, a.content] for a in pair.answers]] for pair in pairs]
    return sha256_value([weights_hash(model), str(model.dtype), data])[:16]


def weights_hash(model: Llama) -> str:
    """Hex SHA-256 over the names, types and bytes of the weights, whatever device they are on."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{weight.dtype}\0{tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
