"""A tiny model, and short ways to ask an engine for texts."""

from collections.abc import Callable, Sequence

import torch

from puna.inference import Engine, Request, Sampling
from puna.model import Llama, LlamaConfig

CONTEXT = 96
Build = Callable[..., Engine]
Reference = Callable[[Sequence[int], int], list[int]]


def tiny_llama(
    vocab_size: int, seed: int = 3, context: int = CONTEXT, *, dim: int = 32, noise: float = 0.2
) -> Llama:
    """A model whose next token hangs on all it has read, with ``noise`` on its fresh weights."""
    fields = {"dim": dim, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 2 * dim}
    shape = {"vocab_size": vocab_size, "context": context}
    model = Llama(LlamaConfig.parse(fields | shape, where="test"))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def run(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """Ids of all requests, submitted at once."""
    order = [engine.submit(request) for request in requests]
    found: dict[int, list[int]] = {handle: [] for handle in order}
    while not engine.idle:
        for handle, delta in engine.step():
            assert delta.error is None, delta.error
            found[handle].extend(delta.ids)
    return [found[handle] for handle in order]


def greedy(prompt: Sequence[int], n: int, **settings: object) -> Request:
    """A request for the ``n`` most probable tokens."""
    return Request(prompt, Sampling.parse({"max_new_tokens": n, **settings}, where="test"))
