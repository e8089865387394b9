"""Arithmetic of Triton kernels that is as exact as torch's, on a GPU and in the interpreter alike.

In float32 ``tl.exp`` is the hardware's approximate power of two, ``/`` and ``tl.sqrt`` are
approximations too, and libdevice's functions do not run in the interpreter. So float32 has the
polynomials of csrc/cpu/simd_math.h, Chebyshev fits whose fitted part's relative error is below
2e-8; float64 has libdevice's exp and log, which ``tl.exp`` and ``tl.log`` stand for there.
"""

import triton
import triton.language as tl


@triton.jit
def scalar(value, dtype: tl.constexpr):
    """Convert a number that the host passed to a dtype."""
    return tl.full((), value, dtype)


@triton.jit
def divide(a, b):
    """Divide with one rounding; ``/`` of float32 has up to two units in the last place."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def at_least(x, least: tl.constexpr):
    """Return the larger of x and ``least``; NaN stays NaN."""
    return tl.where(x < least, least, x)


@triton.jit
def power_of_two(n):
    """Compute 2^n, float32, for integers n from -126 to 127."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp_of_nonpositive(x):
    """Compute exp(x) for x <= 0."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = at_least(x, -104.0)  # exp is 0 there
        # x = n log(2) + r with |r| <= log(2) / 2; adding 1.5 * 2^23 rounds to the integer n.
        n = (x * 1.44269504 + 12582912.0) - 12582912.0
        r = (x - n * 0.693359375) + n * 2.12194440e-4
        q = ((0.001392617612 * r + 0.008363173075) * r + 0.04166655466) * r + 0.1666657703
        p = 1.0 + (r + r * r * (q * r + 0.5))
        exponent = n.to(tl.int32)
        half = exponent >> 1  # in two steps, since 2^n may be subnormal
        return p * power_of_two(half) * power_of_two(exponent - half)


@triton.jit
def log_of(x):
    """Compute log(x) for 0 <= x < infinity; NaN below."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        subnormal = x < 1.17549435e-38
        scaled = tl.where(subnormal, x * 8388608.0, x)
        # scaled = 2^n m with m between sqrt(1/2) and sqrt(2).
        bits = scaled.to(tl.int32, bitcast=True)
        n = (bits - 0x3F3504F3) >> 23
        m = (bits - (n << 23)).to(tl.float32, bitcast=True)
        s = divide(m - 1.0, m + 1.0)
        z = s * s
        # 2 atanh(s) = log(m)
        y = (s + s) + s * z * ((0.2957994939 * z + 0.3998878057) * z + 0.6666668504)
        exponent = n.to(tl.float32) + tl.where(subnormal, -23.0, 0.0)
        y = exponent * 0.693359375 + (y - exponent * 2.12194440e-4)
        y = tl.where(x == 0.0, float("-inf"), y)
        return tl.where(x >= 0.0, y, float("nan"))


@triton.jit
def log1p_of_unit(x):
    """Compute log(1 + x) for 0 <= x <= 1."""
    if x.dtype == tl.float64:
        u = 1.0 + x
        return tl.log(u) + (x - (u - 1.0)) / u  # what was lost in rounding u is exact
    else:
        s = divide(x, 2.0 + x)
        z = s * s
        p = ((0.2685149802 * z + 0.2823661981) * z + 0.4000756064) * z + 0.6666664034
        return (s + s) + s * z * p


@triton.jit
def log1p_of_minus(x):
    """Compute log(1 - x) for x <= 1."""
    u = 1.0 - x
    lost = (1.0 - u) - x  # in rounding u; exact
    return log_of(u) + tl.where(u == 0.0, 0.0, divide(lost, tl.where(u == 0.0, 1.0, u)))
