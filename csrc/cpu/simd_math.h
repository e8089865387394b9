// Exponential and logarithms of vectors, for the ranges that losses need. Included after simd.h.
//
// The polynomials are Chebyshev fits, the fitted part's relative error below 2e-8 in float;
// doubles, which no training loop is fast in, go through the C library one by one.

// 2 atanh(s) for s^2 = z below 1/9, as 2 s + s z P(z).
GANFAST_INLINE FloatVec twice_atanh(FloatVec s, FloatVec z) {
  const FloatVec p = ((0.2685149802f * z + 0.2823661981f) * z + 0.4000756064f) * z + 0.6666664034f;
  return (s + s) + s * z * p;
}

// The same for z below 0.03.
GANFAST_INLINE FloatVec twice_atanh_small(FloatVec s, FloatVec z) {
  return (s + s) + s * z * ((0.2957994939f * z + 0.3998878057f) * z + 0.6666668504f);
}

// p * 2^n for integers n from -150 to 0, subnormal results included.
GANFAST_INLINE FloatVec scale(FloatVec p, FloatVec n) {
#if defined(GANFAST_AVX512)
  return (FloatVec)_mm512_maskz_scalef_ps(all_lanes, (__m512)p, (__m512)n);
#else
  const IntVec exponent = __builtin_convertvector(n, IntVec);
  const IntVec half = exponent >> 1;
  const FloatVec first = (FloatVec)((half + 127) << 23);
  const FloatVec second = (FloatVec)((exponent - half + 127) << 23);
  return p * first * second;
#endif
}

// The larger of x and `least`; x where it is NaN.
GANFAST_INLINE FloatVec at_least(FloatVec x, float least) {
  const FloatVec bound = FloatVec{} + least;
#if defined(GANFAST_AVX512)
  return (FloatVec)_mm512_maskz_max_ps(all_lanes, (__m512)bound, (__m512)x);
#else
  return bound > x ? bound : x;
#endif
}

// exp(x) for x <= 0.
GANFAST_INLINE FloatVec exp_of_nonpositive(FloatVec x) {
  x = at_least(x, -104.0f);  // exp is 0 there
  // x = n log(2) + r with |r| <= log(2) / 2; adding 1.5 * 2^23 rounds to the integer n.
  const float shift = 12582912.0f;
  const FloatVec n = (x * 1.44269504f + shift) - shift;
  const FloatVec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const FloatVec q =
      (((0.001392617612f * r + 0.008363173075f) * r + 0.04166655466f) * r + 0.1666657703f) * r +
      0.5f;
  return scale(1.0f + (r + r * r * q), n);
}

// log(1 + x) for 0 <= x <= 1.
GANFAST_INLINE FloatVec log1p_of_unit(FloatVec x) {
  const FloatVec s = x / (2.0f + x);
  return twice_atanh(s, s * s);
}

// log(x) for x >= 0; NaN below.
GANFAST_INLINE FloatVec log_of(FloatVec x) {
  const FloatVec smallest_normal = FloatVec{} + 1.17549435e-38f;
  const FloatVec scaled = x < smallest_normal ? x * 8388608.0f : x;
  const FloatVec bias = x < smallest_normal ? FloatVec{} - 23.0f : FloatVec{};
  // scaled = 2^n m with m between sqrt(1/2) and sqrt(2). Unsigned: the bits of -0 would overflow.
  const UintVec bits = (UintVec)scaled;
  const IntVec n = (IntVec)(bits - 0x3f3504f3u) >> 23;
  const FloatVec m = (FloatVec)(bits - ((UintVec)n << 23));
  const FloatVec s = (m - 1.0f) / (m + 1.0f);
  const FloatVec exponent = __builtin_convertvector(n, FloatVec) + bias;
  const FloatVec y =
      exponent * 0.693359375f + (twice_atanh_small(s, s * s) - exponent * 2.12194440e-4f);
  const FloatVec at_zero = x == 0.0f ? FloatVec{} - __builtin_inff() : y;
  return x >= 0.0f ? at_zero : FloatVec{} + __builtin_nanf("");
}

// log(1 - x) for x <= 1.
GANFAST_INLINE FloatVec log1p_of_minus(FloatVec x) {
  const FloatVec u = 1.0f - x;
  const FloatVec lost = (1.0f - u) - x;  // in rounding u; exact
  return log_of(u) + (u == 0.0f ? FloatVec{} : lost / u);
}

#define GANFAST_BY_ELEMENT(name, function, argument)          \
  GANFAST_INLINE DoubleVec name(DoubleVec x) {                \
    for (size_t i = 0; i < sizeof(x) / sizeof(double); ++i) { \
      x[i] = __builtin_##function(argument x[i]);             \
    }                                                         \
    return x;                                                 \
  }
GANFAST_BY_ELEMENT(exp_of_nonpositive, exp, )
GANFAST_BY_ELEMENT(log1p_of_unit, log1p, )
GANFAST_BY_ELEMENT(log_of, log, )
GANFAST_BY_ELEMENT(log1p_of_minus, log1p, -)
#undef GANFAST_BY_ELEMENT

// -|x|, by the sign bit.
GANFAST_INLINE FloatVec minus_abs(FloatVec x) { return (FloatVec)((UintVec)x | 0x80000000u); }
GANFAST_INLINE DoubleVec minus_abs(DoubleVec x) { return x > 0.0 ? -x : x; }
GANFAST_INLINE DoubleVec at_least(DoubleVec x, double least) {
  const DoubleVec bound = DoubleVec{} + least;
  return bound > x ? bound : x;
}

// What the formulas in loss_math.h are computed with.
struct VectorMath {
  template <typename V>
  static GANFAST_INLINE V minus_abs(V x) {
    return GANFAST_ISA::minus_abs(x);
  }
  template <typename V>
  static GANFAST_INLINE V at_least(V x, double least) {
    return GANFAST_ISA::at_least(x, static_cast<std::decay_t<decltype(x[0])>>(least));
  }
  template <typename V>
  static GANFAST_INLINE V exp_of_nonpositive(V x) {
    return GANFAST_ISA::exp_of_nonpositive(x);
  }
  template <typename V>
  static GANFAST_INLINE V log1p_of_unit(V x) {
    return GANFAST_ISA::log1p_of_unit(x);
  }
  template <typename V>
  static GANFAST_INLINE V log_of(V x) {
    return GANFAST_ISA::log_of(x);
  }
  template <typename V>
  static GANFAST_INLINE V log1p_of_minus(V x) {
    return GANFAST_ISA::log1p_of_minus(x);
  }
};
