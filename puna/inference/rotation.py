"""Rotations that leave what a model says as it is and spread its outliers over all channels.

A few channels of a Llama's activations are far larger than the rest, so 8 bits a row resolve the
others badly. An orthogonal matrix applied to the residual stream, and its inverse folded into the
weights that read it, costs nothing at run time and evens the channels out (QuaRot, Ashkboos et al.
2024, arXiv 2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406, its R1 and R2, not learned).
"""

import torch
from torch import Tensor

from puna.inference.attention import fusion_barrier
from puna.model import Llama

_HADAMARD = 128  # the largest such factor: a product with it costs little for any width
_SPREAD, _VECTOR = 8, 16  # channels mixed at a time, and numbers side by side that stay so


def hadamard(order: int) -> Tensor:
    """The symmetric orthogonal matrix of entries of one magnitude; ``order`` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / order**0.5


def spreading(size: int) -> Tensor:
    """The factor that `spread` mixes ``size`` channels with."""
    return hadamard(min(size & -size, _SPREAD))


def spread(x: Tensor, factor: Tensor) -> Tensor:
    """``x`` (..., size), fp32, turned at run time so that an outlier is shared by 64 channels.

    Two passes mix eight channels each, far apart and then close together: far less work than a
    product with a matrix of order 64. A weight turned alike gives the same product. Sizes that are
    no multiple of 64 have shorter passes, or one.

    Args:
        factor: from `spreading`.
    """
    order = len(factor)
    far = x.shape[-1] // order
    near = min(far & -far, _VECTOR)
    while near > 1 and order * near > far:  # channels that met in one pass must not in the other
        near //= 2
    for apart in (far, near) if order * near <= far else (far,):
        blocks = x.unflatten(-1, (-1, order, apart))
        if torch.compiler.is_compiling():  # a loop over whole vectors
            mixed = fusion_barrier((factor[:, :, None] * blocks.unsqueeze(-3)).sum(-2))
        else:
            mixed = factor @ blocks
        x = mixed.flatten(-3)
    return x


class Rotation:
    """An orthogonal matrix of order ``size``, always the same one, applied in factors.

    Random signs, then a Kronecker product of a Hadamard matrix and, for the rest of the size, the
    orthogonal part of a random matrix.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(size)
        self._signs = (torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1).to(device)
        power = min(size & -size, _HADAMARD)
        self._hadamard = hadamard(power).to(device)
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


class Basis:
    """The basis that `rotated` puts a model in: what becomes of each product's two sides.

    Args:
        model: in its own basis. Its norms are kept: they are folded into the products behind them.
    """

    def __init__(self, model: Llama) -> None:
        config = model.config
        self._head_dim = config.head_dim
        self._stream = Rotation(config.dim, model.device)
        self._values = Rotation(config.head_dim, model.device)
        self._norms = {
            name: tensor.detach().float()
            for name, tensor in model.state_dict().items()
            if name.endswith("norm.weight")
        }

    def from_stream(self, tensor_ni: Tensor, norm: str) -> Tensor:
        """``tensor_ni``, which reads what the norm of this name leaves, for the rotated stream."""
        return self._stream.apply(tensor_ni.float() * self._norms[norm])

    def to_stream(self, tensor_on: Tensor) -> Tensor:
        """``tensor_on``, which writes into the stream, for the rotated one."""
        return self._stream.apply(tensor_on.T).T

    def inputs(self, product: str, tensor_ni: Tensor) -> Tensor:
        """The rows of a weight, or of LoRA's ``A``, as ``product`` of the rotated model has them.

        ``product`` is a name such as ``model.layers.0.mlp.up_proj``; the result is fp32.
        """
        module, _, part = product.rpartition(".")
        layer = module.rpartition(".")[0]
        if part in ("q_proj", "k_proj", "v_proj"):
            return self.from_stream(tensor_ni, f"{layer}.input_layernorm.weight")
        if part in ("gate_proj", "up_proj"):
            return self.from_stream(tensor_ni, f"{layer}.post_attention_layernorm.weight")
        if part == "o_proj":
            by_head = tensor_ni.unflatten(1, (-1, self._head_dim))
            return self._values.apply(by_head).flatten(1)
        return tensor_ni.float()  # down_proj reads what SwiGLU makes, which is not rotated

    def outputs(self, product: str, tensor_on: Tensor) -> Tensor:
        """The columns of a weight, or of LoRA's ``B``, likewise."""
        if product.endswith(("o_proj", "down_proj")):
            return self.to_stream(tensor_on)
        if product.endswith("v_proj"):
            by_head = tensor_on.unflatten(0, (-1, self._head_dim))
            return self._values.apply(by_head.mT).mT.flatten(0, 1)
        return tensor_on.float()


def rotated(model: Llama) -> Llama:
    """A model with the same logits whose residual stream and values are rotated, fp32.

    The weights of its norms are 1: they are folded into the products behind them. Its head is its
    own, since the norm before it is folded into it.
    """
    basis = Basis(model)
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    embedding = "model.embed_tokens.weight"
    for name, tensor in state.items():
        product = name.removesuffix(".weight")
        if product.endswith("_proj"):
            turned_inputs = basis.inputs(product, tensor)
            state[name] = basis.outputs(product, turned_inputs).contiguous()
        elif product.endswith("norm"):
            state[name] = torch.ones_like(tensor)
        elif name == embedding:
            state[name] = basis.to_stream(tensor.T).T.contiguous()
    head = model.head_weight().detach()
    state["lm_head.weight"] = basis.from_stream(head, "model.norm.weight")
    with torch.device("meta"):
        turned = Llama(model.config.model_copy(update={"tie_embeddings": False}))
    turned.load_state_dict(state, assign=True)
    return turned.requires_grad_(requires_grad=False)


def unrotated_hidden(norm_weight: Tensor, hidden_btd: Tensor) -> Tensor:
    """Final hidden states of a model, fp32, from those of the same model `rotated`.

    ``norm_weight`` is that of the model's last norm.
    """
    turn = Rotation(len(norm_weight), hidden_btd.device)
    return turn.undo(hidden_btd) * norm_weight.float()
