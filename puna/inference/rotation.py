"""Rotations that leave what a model says as it is and spread its outliers over all channels.

A few channels of a Llama's activations are far larger than the rest, so 8 bits a row resolve the
others badly. An orthogonal matrix applied to the residual stream, and its inverse folded into the
weights that read it, costs nothing at run time and evens the channels out (QuaRot, Ashkboos et al.
2024, arXiv 2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406, its R1 and R2, not learned).
"""

import torch
from torch import Tensor

from puna.model import Llama

_HADAMARD = 128  # the largest such factor: a product with it costs little for any width


class Rotation:
    """An orthogonal matrix of order ``size``, always the same one, applied in factors.

    Random signs, then a Kronecker product of a Hadamard matrix and, for the rest of the size, the
    orthogonal part of a random matrix.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(size)
        self._signs = (torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1).to(device)
        power = min(size & -size, _HADAMARD)
        hadamard = torch.ones(1, 1)
        while len(hadamard) < power:
            hadamard = torch.cat((torch.cat((hadamard, hadamard), 1),
                                  torch.cat((hadamard, -hadamard), 1)))  # fmt: skip
        self._hadamard = (hadamard / power**0.5).to(device)
        rest = torch.randn(size // power, size // power, dtype=torch.float64, generator=generator)
        self._rest = torch.linalg.qr(rest).Q.float().to(device)

    def apply(self, x: Tensor) -> Tensor:
        """``x`` (..., size) rotated, in fp32."""
        factors = (x.float() * self._signs).unflatten(-1, (len(self._rest), -1))
        return (self._rest @ factors @ self._hadamard).flatten(-2)

    def undo(self, x: Tensor) -> Tensor:
        """What `apply` made ``x`` from, in fp32."""
        factors = x.float().unflatten(-1, (len(self._rest), -1))
        return (self._rest.T @ factors @ self._hadamard.T).flatten(-2) * self._signs


def rotated(model: Llama) -> Llama:
    """A model with the same logits whose residual stream and values are rotated, fp32.

    The weights of its norms are 1: they are folded into the products behind them. Its head is its
    own, since the norm before it is folded into it.
    """
    config = model.config
    stream = Rotation(config.dim, model.device)
    values = Rotation(config.head_dim, model.device)
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}

    def reads(names: list[str], norm: str) -> None:
        for name in names:
            state[name] = stream.apply(state[name] * state[norm])
        state[norm] = torch.ones_like(state[norm])

    def writes(name: str) -> None:
        state[name] = stream.apply(state[name].T).T.contiguous()

    embedding = "model.embed_tokens.weight"
    state["lm_head.weight"] = model.head_weight().detach().float()
    state[embedding] = stream.apply(state[embedding])
    reads(["lm_head.weight"], "model.norm.weight")
    for number in range(config.n_layers):
        layer = f"model.layers.{number}"
        attention = [f"{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
        reads(attention, f"{layer}.input_layernorm.weight")
        by_head = state[attention[2]].unflatten(0, (-1, config.head_dim))
        state[attention[2]] = values.apply(by_head.mT).mT.flatten(0, 1)
        out = f"{layer}.self_attn.o_proj.weight"
        state[out] = values.apply(state[out].unflatten(1, (-1, config.head_dim))).flatten(1)
        writes(out)
        reads(
            [f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"],
            f"{layer}.post_attention_layernorm.weight",
        )
        writes(f"{layer}.mlp.down_proj.weight")
    with torch.device("meta"):
        turned = Llama(config.model_copy(update={"tie_embeddings": False}))
    turned.load_state_dict(state, assign=True)
    return turned.requires_grad_(requires_grad=False)


def unrotated_hidden(norm_weight: Tensor, hidden_btd: Tensor) -> Tensor:
    """Final hidden states of a model, fp32, from those of the same model `rotated`.

    ``norm_weight`` is that of the model's last norm.
    """
    turn = Rotation(len(norm_weight), hidden_btd.device)
    return turn.undo(hidden_btd) * norm_weight.float()
