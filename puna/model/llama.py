"""Llama: embedding, blocks of attention and feed-forward, norm, head.

Parameter names are Hugging Face's, so a model folder loads here and there without conversion.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.core.errors import UsageError
from puna.model.attention import (
    Attention,
    Mask,
    additive,
    document_mask,
    packed_mask,
    plain_is_faster,
)
from puna.model.cache import Cache, LayerCache
from puna.model.config import LlamaConfig, RopeScaling
from puna.model.linear import Linear, RMSNorm
from puna.model.recompute import Recompute
from puna.model.rope import rope_frequencies, rope_tables

INIT_STD = 0.02


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` (Shazeer 2020)."""
    return F.silu(gate) * up


class FeedForward(nn.Module):
    """SwiGLU feed-forward: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.dim, config.ffn_dim)
        self.up_proj = Linear(config.dim, config.ffn_dim)
        self.down_proj = Linear(config.ffn_dim, config.dim)

    def project(self, x_btd: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and up: two of (batch, time, ffn_dim)."""
        return self.gate_proj(x_btd), self.up_proj(x_btd)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.down_proj(swiglu(*self.project(x_btd)))


class Block(nn.Module):
    """One layer: pre-norm attention and pre-norm feed-forward, each added to the stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x_btd: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask | None,
        cache: LayerCache | None,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x_btd), cos, sin, mask, cache)
        x_btd = x_btd + attended
        return x_btd + self.mlp(self.post_attention_layernorm(x_btd))


class Trunk(nn.Module):
    """Everything below the head; called ``model`` in Hugging Face's names."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        # its own constructor would draw weights, which loading and `init_weights` replace
        table = torch.empty(config.vocab_size, config.dim)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)


def fresh_weights(
    shapes: Mapping[str, tuple[int, ...]], n_layers: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Name and fresh fp32 weight of each parameter, one at a time, in the order of ``shapes``.

    Normal with std 0.02, projections into the stream scaled down; norms are ones. The scale
    1 / sqrt(2 * layers) of ``o_proj`` and ``down_proj`` is GPT-2's: it keeps the stream's variance
    independent of depth.
    """
    generator = torch.Generator().manual_seed(seed)
    into_stream = INIT_STD / math.sqrt(2 * n_layers)
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield name, torch.ones(shape)
            continue
        small = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = into_stream if small else INIT_STD
        yield name, torch.empty(shape).normal_(0.0, std, generator=generator)


class Llama(nn.Module):
    """A Llama language model.

    Args:
        config: its shape. Build under ``torch.device("meta")`` to get shapes without memory.

    Attributes:
        compute_dtype: data type of activations and products; None means that of the weights.
        recompute: which activations training forgets and computes again; None keeps them all.
        make_mask: from documents and prefixes to what `Attention.attend` takes; replaced with it.
        architecture: what transformers calls this class.
    """

    architecture: ClassVar[str] = "LlamaForCausalLM"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.recompute: Recompute | None = None
        self.make_mask: Callable[[Tensor, Tensor | None], Any] = packed_mask
        self._frequencies: Tensor | None = None  # of RoPE, kept: they cost more than a small call
        self.model = Trunk(config)
        self.lm_head = None if config.tie_embeddings else Linear(config.dim, config.vocab_size)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights, see `fresh_weights`."""
        named = dict(self.named_parameters())
        shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        for name, drawn in fresh_weights(shapes, self.config.n_layers, seed):
            named[name].copy_(drawn)

    def stretch(self, context: int, scaling: RopeScaling | None) -> None:
        """Read rows of another length from now on, with RoPE scaled so."""
        changed = {"context": context, "rope_scaling": scaling}
        self.config, self._frequencies = self.config.model_copy(update=changed), None

    def compile_blocks(self) -> None:
        """Compile the blocks: all share one graph, so the cost is that of a single block."""
        for block in self.model.layers.children():
            block.compile()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of activations."""
        return self.compute_dtype or next(self.parameters()).dtype

    def head_weight(self) -> Tensor:
        """Weight of the head: (vocab_size, dim); the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def rope(self, positions_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of RoPE at each position: two of (batch, 1, time, head_dim / 2)."""
        if self._frequencies is None or self._frequencies.device != positions_bt.device:
            self._frequencies = rope_frequencies(self.config).to(positions_bt.device)
        cos, sin = rope_tables(self._frequencies, positions_bt)
        return cos.to(self.dtype), sin.to(self.dtype)

    def hidden(
        self,
        ids_bt: Tensor,
        *,
        positions_bt: Tensor | None = None,
        documents_bt: Tensor | None = None,
        prefixes_bt: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Final hidden states (batch, time, dim), before the head; arguments as in `forward`."""
        length = ids_bt.shape[1]
        if length > self.config.context and positions_bt is not None:
            length = int(positions_bt.max()) + 1  # a long row of documents that each fit
        if length > self.config.context:
            raise UsageError(
                f"{length} tokens do not fit this model's context of "
                f"{self.config.context}: shorten the input"
            )
        if positions_bt is None:
            positions_bt = torch.arange(length, device=ids_bt.device).expand_as(ids_bt)
        mask = None if documents_bt is None else self.make_mask(documents_bt, prefixes_bt)
        x_btd = self.model.embed_tokens(ids_bt).to(self.dtype)
        if cache is None and plain_is_faster(x_btd) and self.make_mask is packed_mask:
            seen = document_mask(torch.zeros_like(ids_bt[:1])) if mask is None else mask
            assert isinstance(seen, Tensor)
            mask = additive(seen, x_btd.dtype)
        cos, sin = self.rope(positions_bt)
        layers = repeat(None) if cache is None else cache.layers
        recompute = self.recompute if cache is None and torch.is_grad_enabled() else None
        blocks = self.model.layers._modules.items()  # some of them, in a stage of a pipeline
        for (number, block), layer in zip(blocks, layers, strict=False):
            run = block if recompute is None else recompute.wrap(int(number), block)
            x_btd = run(x_btd, cos, sin, mask, layer)
        return self.model.norm(x_btd)

    def forward(
        self,
        ids_bt: Tensor,
        *,
        positions_bt: Tensor | None = None,
        documents_bt: Tensor | None = None,
        prefixes_bt: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab_size) of the token after each position.

        Args:
            ids_bt: token ids.
            positions_bt: position of each token in its document; default 0, 1, 2, ...
            documents_bt: number of each token's document, for packed rows: tokens attend within
                their document only. Padding is -1.
            prefixes_bt: with ``documents_bt``, the number of a document before its own that each
                token reads too, such as the prompt that several answers share; else its own.
            cache: keys and values of earlier calls, and where those of this call go.
        """
        hidden = self.hidden(
            ids_bt,
            positions_bt=positions_bt,
            documents_bt=documents_bt,
            prefixes_bt=prefixes_bt,
            cache=cache,
        )
        return F.linear(hidden, self.head_weight().to(hidden.dtype))
