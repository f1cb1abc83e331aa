"""Products with 4-bit weights on CPU: torch's kernel, and one for processors that multiply bf16.

torch's widens every weight to fp32, which takes longer than to read it (docs/log.md). Here a table
in a register makes bf16 of 32 weights at a time, which one instruction multiplies and adds up.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from puna.core.devices import avx512
from puna.inference.kept_code import kept_kernel

GROUP = 32
"""Inputs that share a scale."""
PANEL = 16
"""Outputs that are computed at a time."""
_KERNEL = """
constexpr int64_t GROUP = 32, PANEL = 16, CODES = GROUP * PANEL / 2, BYTES = CODES + 4 * PANEL;
constexpr int64_t AHEAD = 4096, LENGTHY = 200'000'000;

// ROWS rows, which may be at any distance from their neighbours, by one panel
template <int ROWS>
void some(const uint16_t* rows, const float* sums, const uint8_t* panel, at::BFloat16* out,
          int64_t outputs, int64_t inputs, __m512i table) {
    const int64_t groups = inputs / GROUP;
    __m512 total[ROWS];
    for (auto& each : total) each = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++, panel += BYTES) {
        __m512 even[ROWS], odd[ROWS];  // two chains: an instruction need not wait for the last one
        for (auto& each : even) each = _mm512_setzero_ps();
        for (auto& each : odd) each = _mm512_setzero_ps();
        for (int64_t eight = 0; eight < GROUP / 8; eight++) {
            const __m512i codes = _mm512_loadu_si512(panel + 64 * eight);
            #pragma GCC unroll 4
            for (int pair = 0; pair < 4; pair++) {
                const auto weights = (__m512bh)_mm512_permutexvar_epi16(
                    _mm512_srli_epi16(codes, 4 * pair), table);
                #pragma GCC unroll 8
                for (int row = 0; row < ROWS; row++) {
                    const int64_t at = row * inputs + GROUP * group + 8 * eight + 2 * pair;
                    int32_t two;
                    std::memcpy(&two, rows + at, 4);
                    auto& sum = pair % 2 ? odd[row] : even[row];
                    sum = _mm512_dpbf16_ps(sum, weights, (__m512bh)_mm512_set1_epi32(two));
                }
            }
        }
        if (ROWS <= 2)  // memory is what these wait for
            for (int64_t at = 0; at < BYTES; at += 64)
                _mm_prefetch((const char*)panel + AHEAD + at, _MM_HINT_T0);
        const __m512i pairs = _mm512_loadu_si512(panel + CODES);
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
    // a product that takes milliseconds lets other threads of Python run meanwhile
    PyThreadState* state = n * outputs * inputs > LENGTHY ? PyEval_SaveThread() : nullptr;
    const int64_t groups = inputs / GROUP;
    std::unique_ptr<float[]> sums(new float[n * groups]);
    alignas(64) at::BFloat16 steps[32];  // twice, for the instruction looks at five bits
    for (int code = 0; code < 32; code++) steps[code] = float(code % 16 - 8);
    const __m512i table = _mm512_load_si512(steps);
    const auto one = (__m512bh)_mm512_set1_epi16(0x3f80);
    #pragma omp parallel num_threads(threads)
    {
        #pragma omp for
        for (int64_t at = 0; at < n * groups; at++)
            sums[at] = _mm512_reduce_add_ps(_mm512_dpbf16_ps(
                _mm512_setzero_ps(), (__m512bh)_mm512_loadu_si512(rows + at * GROUP), one));
        #pragma omp for
        for (int64_t at = 0; at < outputs; at += PANEL) {
            const uint8_t* panel = panels + at / PANEL * groups * BYTES;
            int64_t row = 0;
            auto next = [&](auto rows_at_once) {
                constexpr int ROWS = decltype(rows_at_once)::value;
                for (; n - row >= ROWS; row += ROWS)
                    some<ROWS>(rows + row * inputs, sums.get() + row * groups, panel,
                               out + row * outputs + at, outputs, inputs, table);
            };
            next(std::integral_constant<int, 8>());
            next(std::integral_constant<int, 4>());
            next(std::integral_constant<int, 3>());
            next(std::integral_constant<int, 2>());
            next(std::integral_constant<int, 1>());
        }
    }
    if (state != nullptr)
        PyEval_RestoreThread(state);
}
"""
_INCLUDES = """
#include <Python.h>
#include <torch/csrc/inductor/cpp_prefix.h>
#include <immintrin.h>
#include <cstring>
#include <memory>
"""
_ARGUMENTS = ["const uint16_t*", "const uint8_t*", "at::BFloat16*", *["int64_t"] * 4]


@cache
def multiply(*, compiles: bool) -> Callable[..., Any] | None:
    """The kernel; None where the processor has no bf16 products or nothing can compile it.

    It takes bf16 rows (n, i), `panels`, the products (n, o) in bf16 that it writes, and n, o, i,
    threads.

    Args:
        compiles: whether it may be compiled, which takes seconds; else it is there once it was.
    """
    if not avx512("avx512_bf16"):
        return None
    return kept_kernel("int4", _ARGUMENTS, (lambda: _INCLUDES + _KERNEL) if compiles else None)


def panels(codes_oi: Tensor, scale_og: Tensor, zero_og: Tensor) -> Tensor:
    """What the kernel reads, bytes (o / 16, groups, 320): codes, then scales and zeros in bf16.

    Args:
        codes_oi: 0 to 15; one stands for ``(code - 8) * scale + zero``.
    """
    # of an input 8 * eight + 2 * pair + which: four pairs are the nibbles of 16 bits
    codes = codes_oi.to(torch.int32).view(len(codes_oi) // PANEL, PANEL, -1, GROUP // 8, 4, 2)
    nibbles = codes.permute(0, 2, 3, 1, 5, 4) << torch.tensor([0, 4, 8, 12])
    words = nibbles.sum(-1).to(torch.uint16).flatten(2).contiguous().view(torch.uint8)
    pairs = torch.stack((scale_og, zero_og), -1).bfloat16().unflatten(0, (-1, PANEL))
    numbers = pairs.transpose(1, 2).flatten(2).contiguous().view(torch.uint8)
    return torch.cat((words, numbers), -1)


def _write_product(rows: Tensor, panels: Tensor, out: Tensor) -> None:
    """Write products of contiguous bf16 rows (n, i) into ``out`` (n, o), bf16, by the kernel."""
    kernel = multiply(compiles=True)
    assert kernel is not None, "`Int4` found it"
    kernel(rows, panels, out, *out.shape, rows.shape[1], torch.get_num_threads())


def _write_nothing(rows: Tensor, panels: Tensor, out: Tensor) -> None:
    pass


# an operator, for compiled code calls nothing else; it writes, so that its result is in kept memory
_library = torch.library.Library("puna", "DEF")
_library.define("int4(Tensor rows, Tensor panels, Tensor(a!) out) -> ()")
_library.impl("int4", _write_product, "CPU")
_library.impl("int4", _write_nothing, "Meta")


class Int4(nn.Module):
    """A product with 4-bit weights, a scale and a minimum for each group of inputs.

    Args:
        weight_oi: to be rounded.
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
        if multiply(compiles=compiles) is not None:
            self.register_buffer("panels", panels(codes, scale, zero))
            return
        self.panels = None
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        pairs = torch.stack((scale, zero), -1).transpose(0, 1)
        self.register_buffer("packed", packed)
        self.register_buffer("scale_and_zero", pairs.contiguous().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        # torch's kernel is ten times slower with fp32
        rows = x.reshape(-1, x.shape[-1]).bfloat16().contiguous()
        if self.panels is not None:
            outputs = len(self.panels) * PANEL
            out = torch.empty(len(rows), outputs, dtype=torch.bfloat16)
            torch.ops.puna.int4(rows, self.panels, out)
        else:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows, self.packed, GROUP, self.scale_and_zero
            )
        return out.view(*x.shape[:-1], -1).to(x.dtype)
