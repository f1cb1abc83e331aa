"""Products with 4-bit weights on CPU: torch's kernel, and one for processors that multiply bf16.

torch's widens every weight to fp32, which takes longer than to read it (docs/log.md). Here a table
in a register makes bf16 of 32 weights at a time, which one instruction multiplies and adds up.
"""

import torch
from torch import Tensor, nn

from puna.core.devices import avx512
from puna.inference.kernels import Kernel, cpu_operator

GROUP = 32
"""Inputs that share a scale."""
PANEL = 16
"""Outputs that are computed at a time."""
_BYTES = GROUP * PANEL // 2 + 4 * PANEL  # of a group of a panel: codes, scales and zeros
_TEXT = """
// bytes before they are needed: further brought no more, nearer less (docs/log.md)
constexpr int64_t AHEAD = 4096;
// products that take a millisecond; reading a weight takes as long as to multiply it once
constexpr int64_t LENGTHY = 200'000'000;

// ROWS rows (inputs,) in bf16 by one panel
template <int ROWS>
void multiply(const uint16_t* rows, const float* sums, const uint8_t* panel, at::BFloat16* out,
              int64_t outputs, int64_t inputs, __m512i steps) {
    const int64_t groups = inputs / GROUP;
    __m512 total[ROWS];
    for (auto& sum : total) sum = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++, panel += BYTES) {
        __m512 even[ROWS], odd[ROWS];  // two chains: an instruction need not wait for the last one
        for (auto& sum : even) sum = _mm512_setzero_ps();
        for (auto& sum : odd) sum = _mm512_setzero_ps();
        for (int64_t quarter = 0; quarter < 4; quarter++) {
            const __m512i codes = _mm512_loadu_si512(panel + 64 * quarter);
            #pragma GCC unroll 4
            for (int pair = 0; pair < 4; pair++) {
                const auto weights = (__m512bh)_mm512_permutexvar_epi16(
                    _mm512_srli_epi16(codes, 4 * pair), steps);
                const int64_t input = GROUP * group + 8 * quarter + 2 * pair;
                #pragma GCC unroll 8
                for (int row = 0; row < ROWS; row++) {
                    int32_t inputs_of_pair;
                    std::memcpy(&inputs_of_pair, rows + row * inputs + input, 4);
                    auto& sum = pair % 2 ? odd[row] : even[row];
                    sum = _mm512_dpbf16_ps(
                        sum, weights, (__m512bh)_mm512_set1_epi32(inputs_of_pair));
                }
            }
        }
        if (ROWS <= 2)  // memory is what these wait for
            for (int64_t at = 0; at < BYTES; at += 64)
                _mm_prefetch((const char*)panel + AHEAD + at, _MM_HINT_T0);
        const __m512i pairs = _mm512_loadu_si512(panel + GROUP * PANEL / 2);
        const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        const __m512 zero = _mm512_castsi512_ps(
            _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)));
        for (int row = 0; row < ROWS; row++) {
            total[row] = _mm512_fmadd_ps(
                _mm512_add_ps(even[row], odd[row]), scale, total[row]);
            total[row] = _mm512_fmadd_ps(
                _mm512_set1_ps(sums[row * groups + group]), zero, total[row]);
        }
    }
    for (int row = 0; row < ROWS; row++)
        _mm256_storeu_si256((__m256i*)(out + row * outputs),
                            (__m256i)_mm512_cvtneps_pbh(total[row]));
}

extern "C" void kernel(const uint16_t* rows, const uint8_t* panels, at::BFloat16* out, int64_t n,
                       int64_t outputs, int64_t inputs, int64_t threads) {
    Released released((n + 1) * outputs * inputs > LENGTHY);
    const int64_t groups = inputs / GROUP;
    std::unique_ptr<float[]> sums(new float[n * groups]);
    alignas(64) at::BFloat16 codes[32];  // twice, for the instruction looks at five bits
    for (int code = 0; code < 32; code++) codes[code] = float(code % 16 - 8);
    const __m512i steps = _mm512_load_si512(codes);
    const auto one = (__m512bh)_mm512_set1_epi16(0x3f80);
    #pragma omp parallel num_threads(threads)
    {
        #pragma omp for
        for (int64_t at = 0; at < n * groups; at++)
            sums[at] = _mm512_reduce_add_ps(_mm512_dpbf16_ps(
                _mm512_setzero_ps(), (__m512bh)_mm512_loadu_si512(rows + at * GROUP), one));
        #pragma omp for
        for (int64_t output = 0; output < outputs; output += PANEL) {
            const uint8_t* panel = panels + output / PANEL * groups * BYTES;
            int64_t row = 0;
            auto in_steps_of = [&](auto count) {
                for (; n - row >= count; row += count)
                    multiply<count>(rows + row * inputs, sums.get() + row * groups, panel,
                                    out + row * outputs + output, outputs, inputs, steps);
            };
            in_steps_of(std::integral_constant<int, 8>());
            in_steps_of(std::integral_constant<int, 4>());
            in_steps_of(std::integral_constant<int, 3>());
            in_steps_of(std::integral_constant<int, 2>());
            in_steps_of(std::integral_constant<int, 1>());
        }
    }
}
"""


def _text() -> str:
    sizes = f"constexpr int64_t GROUP = {GROUP}, PANEL = {PANEL}, BYTES = {_BYTES};"
    return f"#include <immintrin.h>\n#include <cstring>\n{sizes}\n{_TEXT}"


# of bf16 rows (n, i), `panels`, the products (n, o) in bf16 that it writes, and n, o, i, threads
_KERNEL = Kernel(
    "int4", ["const uint16_t*", "const uint8_t*", "at::BFloat16*", *["int64_t"] * 4], _text
)


def has_kernel(*, compiles: bool) -> bool:
    """Whether the kernel is here: the processor multiplies bf16 and something could compile it.

    Args:
        compiles: whether it may be compiled, which takes seconds; else it is there once it was.
    """
    return avx512("avx512_bf16") and _KERNEL.find(compiles=compiles) is not None


def panels(codes_oi: Tensor, scale_og: Tensor, zero_og: Tensor) -> Tensor:
    """What the kernel reads, bytes (o / 16, groups, 320): codes, then scales and zeros in bf16.

    Args:
        codes_oi: 0 to 15; one stands for ``(code - 8) * scale + zero``.
        scale_og: for each group of inputs.
        zero_og: likewise.
    """
    # of input 8 * quarter + 2 * pair + which: the four pairs are the nibbles of 16 bits
    codes = codes_oi.to(torch.int32).view(len(codes_oi) // PANEL, PANEL, -1, GROUP // 8, 4, 2)
    by_place = codes.permute(0, 2, 3, 1, 5, 4) << torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    words = by_place.sum(-1, dtype=torch.int32).to(torch.uint16).flatten(2)
    pairs = torch.stack((scale_og, zero_og), -1).bfloat16().unflatten(0, (-1, PANEL))
    numbers = pairs.transpose(1, 2).flatten(2)
    return torch.cat([each.contiguous().view(torch.uint8) for each in (words, numbers)], -1)


def _check(rows: Tensor, panels: Tensor, out: Tensor) -> None:
    """Raise `ValueError` where a product would read or write anything else than these tensors."""
    (n, inputs), outputs = rows.shape, out.shape[1]
    fit = (
        panels.shape == (outputs // PANEL, inputs // GROUP, _BYTES)
        and out.shape == (n, outputs)
        and inputs % GROUP == outputs % PANEL == 0
        and rows.dtype == out.dtype == torch.bfloat16
        and panels.dtype == torch.uint8
        and all(each.is_contiguous() for each in (rows, panels, out))
    )
    if not fit:
        shapes = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in (rows, panels, out))
        raise ValueError(f"rows, panels and products do not fit, or are strided: {shapes}")


def _write_product(rows: Tensor, panels: Tensor, out: Tensor) -> None:
    kernel = _KERNEL.find(compiles=False)
    assert kernel is not None, "there are panels only where it was found"
    kernel(rows, panels, out, *out.shape, rows.shape[1], torch.get_num_threads())


cpu_operator("int4(Tensor rows, Tensor panels, Tensor(a!) out) -> ()", _check, _write_product)


class Int4(nn.Module):
    """A product with 4-bit weights, a scale and a minimum for each group of inputs.

    An infinite input makes its products infinite or, by the kernel here, not a number.

    Args:
        weight_oi: to be rounded; outputs are a multiple of 16 and inputs of 32.
        compiles: whether a kernel may be compiled for it.

    Attributes:
        panels: weights for the kernel here, if there is one; else `packed` and `scale_and_zero` are
            there, for torch's.
    """

    panels: Tensor | None
    packed: Tensor
    scale_and_zero: Tensor

    def __init__(self, weight_oi: Tensor, *, compiles: bool = False) -> None:
        super().__init__()
        groups = weight_oi.detach().float().cpu().unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp(min=1e-8)
        steps = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        codes, zero = steps.flatten(1).to(torch.int32), low + 8 * scale
        if has_kernel(compiles=compiles):
            self.register_buffer("panels", panels(codes, scale, zero))
            return
        self.panels = None
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        pairs = torch.stack((scale, zero), -1).transpose(0, 1)
        self.register_buffer("packed", packed)
        self.register_buffer("scale_and_zero", pairs.contiguous().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """Products (..., o) of ``x`` (..., i), multiplied in bf16, in its data type."""
        # torch's kernel is ten times slower with fp32
        rows = x.reshape(-1, x.shape[-1]).bfloat16().contiguous()
        if self.panels is not None:
            outputs, inputs = len(self.panels) * PANEL, self.panels.shape[1] * GROUP
            if rows.shape[1] != inputs:  # the rest of `_check` is so by what is done here
                raise ValueError(f"rows of {rows.shape[1]} numbers by weights of {inputs}")
            out = torch.empty(len(rows), outputs, dtype=torch.bfloat16)
            torch.ops.puna.int4(rows, self.panels, out)
        else:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows, self.packed, GROUP, self.scale_and_zero
            )
        return out.view(*x.shape[:-1], -1).to(x.dtype)
