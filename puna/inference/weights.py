"""The model as the engine runs it: weights in the format asked, products by the kernel that fits.

On CPU a product with one row is bound by memory. There a compiled multiply-and-sum reads the
weight at the speed of memory, which matrix-product libraries do not (docs/log.md).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.core.devices import fast_dtype
from puna.core.errors import UsageError
from puna.inference.attention import fusion_barrier
from puna.inference.int4 import GROUP, PANEL, Int4
from puna.inference.integers import full_scales, integer_kernel, scaled_rows
from puna.inference.packed import Product, pack
from puna.inference.rotation import rotated, spread, spreading
from puna.model import Llama, LlamaConfig
from puna.model.attention import Attention
from puna.model.llama import FeedForward

Weights = Literal["fp32", "bf16", "int8", "int4", "w8a8"]
# whether compiled code turns bytes into fp32 at the speed of memory: with AVX2 at a fifth of it
_WIDENS_BYTES = torch.backends.cpu.get_cpu_capability() == "AVX512"
PACKED_ROWS = 8  # with more rows a dense bf16 product beats the integer kernels


def _matrix_vector(weight_oi: Tensor, x: Tensor) -> Tensor:
    """Products of one row, (..., i) -> (..., o), summed in fp32.

    Without the barrier what made ``x``, a norm or an activation, is recomputed for every output.
    """
    x = fusion_barrier(x)
    products = weight_oi.float() * x.reshape(1, -1).float()
    return products.sum(-1).view(*x.shape[:-1], -1)


def _one_row(x: Tensor) -> bool:
    return torch.compiler.is_compiling() and not x.is_cuda and x.numel() == x.shape[-1]


class Dense(nn.Module):
    """A product with weights as they are, in the data type of its input.

    Attributes:
        packed: the same by weights that are kept a second time, see `pack`.
    """

    packed: Product | None = None

    def __init__(self, weight_oi: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_oi, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if _one_row(x):
            return _matrix_vector(self.weight, x).to(x.dtype)
        if self.packed is not None and not torch.compiler.is_compiling():
            return self.packed(x)
        return F.linear(x, self.weight.to(x.dtype))


class Int8(nn.Module):
    """A product with 8-bit weights and one scale for each output.

    Args:
        weight_oi: to be rounded.
        scale_o: what stands for 1 in the integers; None takes the finest.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_oi: Tensor, scale_o: Tensor | None = None) -> None:
        super().__init__()
        scale = full_scales(weight_oi) if scale_o is None else scale_o
        self.register_buffer("weight", (weight_oi.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        if _WIDENS_BYTES and _one_row(x):
            return (_matrix_vector(self.weight, x) * self.scale).to(x.dtype)
        if not x.is_cuda and x.shape[:-1].numel() <= PACKED_ROWS:
            # fp32 is far slower in this kernel, which a compiler gives no unfinished inputs
            rows = fusion_barrier(x.reshape(-1, x.shape[-1]).bfloat16())
            scale = fusion_barrier(self.scale.bfloat16())
            out = torch.ops.aten._weight_int8pack_mm(rows, self.weight, scale)
            return out.view(*x.shape[:-1], -1).to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


class Int8Rows(Int8):
    """A product of 8-bit weights with rows rounded to integers too.

    Args:
        weight_oi: to be rounded.
        compiles: whether a kernel may be compiled for it.

    Attributes:
        rounding: of the rows that `multiply` takes.
        packed_bytes: of weights that are in the kernel alone. No compiled function can hold it.
    """

    def __init__(self, weight_oi: Tensor, *, compiles: bool = False) -> None:
        result = activation_dtype("w8a8", "cpu")
        kernel = integer_kernel(weight_oi.shape, result, compiles=compiles)
        super().__init__(weight_oi, kernel.scales(weight_oi))
        self.multiply = kernel(self.weight, self.scale, result)
        self.rounding = self.multiply.rounding
        self.packed_bytes = 0
        if self.multiply.keeps_weight:
            self.packed_bytes = self.weight.nbytes
            del self.weight

    def extra_repr(self) -> str:
        return f"{tuple(self.rounding)}"

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = self.rounding.apply(x.reshape(-1, x.shape[-1]))
        if _one_row(x):  # the same numbers as below, read as fast as memory gives them
            return super().forward(self.rounding.undo(rows, scale).to(x.dtype).view_as(x))
        return scaled_rows(self.multiply(rows), scale).to(x.dtype).view(*x.shape[:-1], -1)


class SpreadInt8Rows(Int8Rows):
    """`Int8Rows` for what SwiGLU makes: its outliers are spread before they are rounded."""

    factor: Tensor

    def __init__(self, weight_oi: Tensor, *, compiles: bool = False) -> None:
        factor = spreading(weight_oi.shape[1]).to(weight_oi.device)
        super().__init__(spread(weight_oi.float(), factor), compiles=compiles)
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(spread(fusion_barrier(x).float(), self.factor)).to(x.dtype)


def _layer(weight_oi: Tensor, weights: Weights, *, compiles: bool) -> nn.Module:
    if weights == "int8":
        return Int8(weight_oi)
    if weights == "w8a8":
        return Int8Rows(weight_oi, compiles=compiles)
    if weights == "int4":
        return Int4(weight_oi, compiles=compiles)
    return Dense(weight_oi)


def activation_dtype(weights: Weights, device_type: str) -> torch.dtype:
    """Data type of activations: bf16, but for weights in fp32 or where bf16 has no hardware."""
    return torch.float32 if weights == "fp32" else fast_dtype(device_type)


class JoinedAttention(Attention):
    """Attention with one product for queries, keys and values."""

    def __init__(self, config: LlamaConfig, qkv_proj: nn.Module) -> None:
        with torch.device("meta"):
            super().__init__(config)
        del self.q_proj, self.k_proj, self.v_proj
        self.qkv_proj = qkv_proj
        keys = config.n_kv_heads * config.head_dim
        self._widths = (config.n_heads * config.head_dim, keys, keys)

    def project(self, x_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.project`."""
        return self.split(self.qkv_proj(x_btd))

    def split(self, joined_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the joined product."""
        queries, keys, values = joined_btd.split(self._widths, -1)
        return queries, keys, values


class JoinedFeedForward(FeedForward):
    """SwiGLU with one product for gate and up."""

    def __init__(self, config: LlamaConfig, gate_up_proj: nn.Module) -> None:
        with torch.device("meta"):
            super().__init__(config)
        del self.gate_proj, self.up_proj
        self.gate_up_proj = gate_up_proj

    def project(self, x_btd: Tensor) -> tuple[Tensor, Tensor]:
        """As `FeedForward.project`."""
        gate, up = self.gate_up_proj(x_btd).chunk(2, -1)
        return gate, up


def ready_for_inference(
    model: Llama,
    weights: Weights,
    *,
    packed_copy: bool,
    head: Tensor | None = None,
    compiles: bool = False,
) -> tuple[Llama, nn.Module]:
    """A twin of ``model`` with weights in the format asked, and its head.

    Weights that are in that format already are shared, not copied: training that updates them in
    place updates the twin. The head of int4 is int8: it decides the tokens.

    Args:
        packed_copy: whether dense weights are kept a second time, see `Dense`.
        head: weights (rows, dim) to make the head of in place of the model's own.
        compiles: whether a kernel may be compiled for products with weights in integers.

    The twin of w8a8 is `rotated`: its hidden states are in another basis.

    Raises `UsageError` for int4 and w8a8 where their kernels cannot run.
    """
    if weights == "int4":
        check_int4(model.config, model.device)
    if weights == "w8a8":
        _check_w8a8(model)
        model = rotated(model)
    dense = weights in ("fp32", "bf16")
    stored = torch.float32 if weights == "fp32" else torch.bfloat16
    activations = activation_dtype(weights, model.device.type)
    with torch.device("meta"):
        twin = Llama(model.config)
    twin.compute_dtype = activations
    state = {name: tensor.detach().to(stored) for name, tensor in model.state_dict().items()}
    twin.load_state_dict(state, assign=True)
    twin.requires_grad_(requires_grad=False).eval()

    # integers come from the model's own weights, not from their bf16 rounding
    own = state if dense else model.state_dict()

    def layer(*names: str) -> nn.Module:
        parts = [own[f"{name}.weight"].detach() for name in names]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return _layer(joined, weights, compiles=compiles)

    shared = dense and not packed_copy
    block: Any
    for number, block in enumerate(twin.model.layers):
        attention, mlp = f"model.layers.{number}.self_attn", f"model.layers.{number}.mlp"
        if shared:
            for part in "qkv":
                setattr(block.self_attn, f"{part}_proj", layer(f"{attention}.{part}_proj"))
            block.mlp.gate_proj = layer(f"{mlp}.gate_proj")
            block.mlp.up_proj = layer(f"{mlp}.up_proj")
        else:
            qkv = layer(*(f"{attention}.{part}_proj" for part in "qkv"))
            block.self_attn = JoinedAttention(model.config, qkv)
            gate_up = layer(f"{mlp}.gate_proj", f"{mlp}.up_proj")
            block.mlp = JoinedFeedForward(model.config, gate_up)
        block.self_attn.o_proj = layer(f"{attention}.o_proj")
        if weights == "w8a8":
            down = own[f"{mlp}.down_proj.weight"].detach()
            block.mlp.down_proj = SpreadInt8Rows(down, compiles=compiles)
        else:
            block.mlp.down_proj = layer(f"{mlp}.down_proj")
    rows = (twin if dense else model).head_weight().detach() if head is None else head
    # a head of 4 bits would decide tokens too roughly
    made = _layer(rows, "int8" if weights == "int4" else weights, compiles=compiles)
    twin.lm_head = None
    if packed_copy:
        products = [each for each in (*twin.modules(), made) if isinstance(each, Dense)]
        copies = pack([product.weight for product in products], activations)
        for product, copy in zip(products, copies, strict=True):
            product.packed = copy
    return twin, made


def _check_w8a8(model: Llama) -> None:
    if model.device.type != "cpu":
        raise UsageError("w8a8 weights run on CPU only: use bf16 or int8 on this device")


def check_int4(config: LlamaConfig, device: torch.device) -> None:
    """Raise `UsageError` where the kernels of int4 cannot run."""
    if device.type != "cpu":
        raise UsageError("int4 weights run on CPU only: use bf16 or int8 on this device")
    inputs = {config.dim, config.ffn_dim, config.n_heads * config.head_dim}
    outputs = inputs | {config.n_kv_heads * config.head_dim}
    if any(size % GROUP for size in inputs) or any(size % PANEL for size in outputs):
        raise UsageError(
            f"int4 weights need widths that are multiples of {GROUP}; this model has "
            f"{sorted(outputs)}: use int8"
        )
