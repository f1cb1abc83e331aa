"""Products of bytes by the micro-kernel that torch's compiler has for VNNI.

oneDNN, which torch calls for such products, prepares for 20 to 27 us in each call and multiplies
few rows at half the speed (docs/log.md). The compiler takes its own kernel only where the weights
are constants of the compiled code, so once for each layer. Here its text is compiled once for all,
in the loop over panels of outputs that it leaves to its caller.
"""

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from puna.core.devices import avx512, cpu_flags
from puna.inference.kernels import Kernel

PANEL = 64  # outputs that are computed at a time, of as many rows as the registers hold
_FOUR = 4  # products that one instruction sums
# no sum of so many products of bytes leaves 32 bits
_MOST_INPUTS = (2**31 - 1) // (255 * 128)
_LOOP = """
static_assert(at::vec::Vectorized<float>::size() == WIDTH);
static_assert(at::vec::Vectorized<int32_t>::size() == WIDTH);
// products that take milliseconds; reading a weight takes as long as to multiply it eight times
constexpr int64_t LENGTHY = 1'000'000'000;

extern "C" void kernel(const uint8_t* rows, const int8_t* panels, const int32_t* zeros,
                       const float* scales, RESULT* out, int64_t n, int64_t outputs,
                       int64_t inputs, int64_t threads) {
    Released released((n + 8) * outputs * inputs > LENGTHY);
    #pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t at = 0; at < outputs; at += PANEL)
        for (int64_t first = 0; first < n; first += ROWS) {
            alignas(64) int32_t sums[ROWS * PANEL];  // they stay in the nearest cache
            const int64_t some = std::min(ROWS, n - first);
            multiply<false>(rows + first * inputs, panels + at * inputs, sums,
                            some, PANEL, inputs, inputs, PANEL, PANEL);
            for (int64_t row = 0; row < some; row++)
                for (int64_t each = 0; each < PANEL; each += WIDTH) {
                    using namespace at::vec;
                    auto whole = Vectorized<int32_t>::loadu(sums + row * PANEL + each)
                               - Vectorized<int32_t>::loadu(zeros + at + each);
                    auto made = convert<float>(whole)
                              * Vectorized<float>::loadu(scales + at + each);
                    convert<RESULT>(made).store(out + (first + row) * outputs + at + each, WIDTH);
                }
        }
}
"""
_NAMES = {torch.bfloat16: "at::BFloat16", torch.float32: "float"}
Multiply = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, int, int], None]
"""Of rows (n, i) in uint8, `panels`, what the rows' zero adds to each sum and each output's scale
(o,) in int32 and fp32, the products (n, o) that it writes, and n, o, i, threads."""


def fits(outputs: int, inputs: int) -> bool:
    """Whether the kernel takes weights of this shape."""
    return outputs % PANEL == 0 and inputs % _FOUR == 0 and inputs <= _MOST_INPUTS


def panels(weight_oi: Tensor) -> Tensor:
    """Weights as the kernel reads them, (o / 64, i / 4, 64, 4): from the first to the last byte."""
    blocks = weight_oi.unflatten(1, (-1, _FOUR)).unflatten(0, (-1, PANEL))
    return blocks.transpose(1, 2).contiguous()


@cache
def _kernel(result: torch.dtype) -> Kernel:
    read = ["const uint8_t*", "const int8_t*", "const int32_t*", "const float*"]
    arguments = [*read, f"{_NAMES[result]}*", *["int64_t"] * 4]
    return Kernel(f"multiply-{result}", arguments, partial(_text, _NAMES[result]))


def find(result: torch.dtype, *, compiles: bool) -> Multiply | None:
    """The kernel; None where the processor, torch or a compiler for it is missing.

    Processors with AMX are left to oneDNN, which has a kernel for that.

    Args:
        result: data type of the products, bf16 or fp32.
        compiles: whether it may be compiled, which takes seconds; else it is there once it was.
    """
    if not avx512("avx512_vnni") or "amx_int8" in cpu_flags():
        return None
    return _kernel(result).find(compiles=compiles)


def _text(result: str) -> str:
    import torch._inductor.kernel.mm  # first, or what follows imports itself in a circle
    from torch._inductor.codegen.cpp_micro_gemm import CppMicroGemmAVX512VNNI
    from torch._inductor.codegen.cpp_utils import GemmBlocking

    integers = (torch.uint8, torch.int8, torch.int32, torch.int32)
    micro: Any = CppMicroGemmAVX512VNNI("multiply", *integers, GemmBlocking(6, PANEL, _FOUR))
    return f"""
#include <c10/util/Unroll.h>
#define CHECKED_BEFORE(...)
#define RESULT {result}
constexpr int64_t PANEL = {PANEL}, ROWS = 24, WIDTH = 16;
{micro.codegen_define(SimpleNamespace(assert_function="CHECKED_BEFORE"))}
{_LOOP}
"""
