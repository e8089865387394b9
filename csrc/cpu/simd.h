// Vectors as wide as the registers of the instruction set, GANFAST_VECTOR_BYTES, in the compiler's
// own vector extension. Wider ones would be split by the compiler, which g++ does lane by lane for
// every comparison and selection.
//
// Included once per instruction set, inside that set's namespace and target pragma, so that no
// function here is ever shared between them. <cstdint> and <type_traits> come before.

typedef float FloatVec __attribute__((vector_size(GANFAST_VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(GANFAST_VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(GANFAST_VECTOR_BYTES)));
typedef uint32_t UintVec __attribute__((vector_size(GANFAST_VECTOR_BYTES)));
typedef int64_t LongVec __attribute__((vector_size(GANFAST_VECTOR_BYTES)));
typedef uint16_t ShortVec __attribute__((vector_size(GANFAST_VECTOR_BYTES / 2)));
typedef float HalfOfFloats __attribute__((vector_size(GANFAST_VECTOR_BYTES / 2)));

// 16-bit floats by their bits.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What arithmetic on elements of type T is done in.
template <typename T>
struct Arithmetic {
  using Scalar = float;
  using Vec = FloatVec;
  using Index = int32_t;
  using IndexVec = IntVec;
};
template <>
struct Arithmetic<double> {
  using Scalar = double;
  using Vec = DoubleVec;
  using Index = int64_t;
  using IndexVec = LongVec;
};
template <typename T>
using Scalar = typename Arithmetic<T>::Scalar;
template <typename T>
using Vec = typename Arithmetic<T>::Vec;
template <typename T>
inline constexpr int64_t lanes = sizeof(Vec<T>) / sizeof(Scalar<T>);

template <typename V, typename S>
GANFAST_INLINE V broadcast(S value) {
  return value - V{};  // x - 0 is x, -0 included
}

// The lower and the upper half of v in double.
GANFAST_INLINE void to_double(FloatVec v, DoubleVec& low, DoubleVec& high) {
  HalfOfFloats half[2];
  __builtin_memcpy(half, &v, sizeof(v));
  low = __builtin_convertvector(half[0], DoubleVec);
  high = __builtin_convertvector(half[1], DoubleVec);
}

// a * b + c, with one rounding where the processor has the instruction (-ffp-contract=fast).
// Forward and backward agree bit for bit either way: they compile to the same operations.
template <typename V>
GANFAST_INLINE V multiply_add(V a, V b, V c) {
  return a * b + c;
}

// The compiler's own 16-bit float, where it has one (g++ for arm64 has _Float16 in C++ from 13 on).
#if defined(__aarch64__)
#define GANFAST_HALF __fp16
#elif defined(__FLT16_MAX__)
#define GANFAST_HALF _Float16
#endif
#if defined(GANFAST_HALF)
typedef GANFAST_HALF HalfVec __attribute__((vector_size(GANFAST_VECTOR_BYTES / 2)));
#endif

// g++ 12 makes four or five instructions of conversions for which AVX-512 has one, and AVX2 one and
// two. The forms without a mask are the same instruction, but g++ 12 warns of an uninitialised
// value inside them.
#if defined(GANFAST_AVX512)
constexpr __mmask16 all_lanes = 0xffff;
#endif
GANFAST_INLINE UintVec widen(ShortVec v) {
#if defined(GANFAST_AVX512)
  return (UintVec)_mm512_maskz_cvtepu16_epi32(all_lanes, (__m256i)v);
#elif defined(GANFAST_AVX2)
  return (UintVec)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, UintVec);
#endif
}
// Values up to 0xffff.
GANFAST_INLINE ShortVec narrow(UintVec v) {
#if defined(GANFAST_AVX512)
  return (ShortVec)_mm512_maskz_cvtepi32_epi16(all_lanes, (__m512i)v);
#elif defined(GANFAST_AVX2)
  const __m256i wide = (__m256i)v;
  return (ShortVec)_mm_packus_epi32(_mm256_castsi256_si128(wide),
                                    _mm256_extracti128_si256(wide, 1));
#else
  return __builtin_convertvector(v, ShortVec);
#endif
}

template <typename T>
GANFAST_INLINE Vec<T> load(const T* p) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    ShortVec bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return (FloatVec)(widen(bits) << 16);
  } else if constexpr (std::is_same_v<T, Float16>) {
#if defined(GANFAST_HALF)
    HalfVec half;
    __builtin_memcpy(&half, p, sizeof(half));
    return __builtin_convertvector(half, FloatVec);
#else
    FloatVec v;
    for (int64_t i = 0; i < lanes<T>; ++i) v[i] = c10::detail::fp16_ieee_to_fp32_value(p[i].bits);
    return v;
#endif
  } else {
    Vec<T> v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
}

template <typename T>
GANFAST_INLINE void store(T* p, Vec<T> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
#if defined(GANFAST_BF16_INSTRUCTION)
    // The instruction takes subnormal numbers for 0.
    if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, 0x20) == 0, 1)) {
      const auto out = _mm512_cvtneps_pbh((__m512)v);
      __builtin_memcpy(p, &out, sizeof(out));
      return;
    }
#endif
    // Round to nearest, ties to even; a NaN would overflow into infinity, so it is set apart.
    const UintVec bits = (UintVec)v;
    const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const UintVec quiet_nan = UintVec{} + 0x7fc0u;
    const ShortVec out = narrow(v == v ? rounded : quiet_nan);
    __builtin_memcpy(p, &out, sizeof(out));
  } else if constexpr (std::is_same_v<T, Float16>) {
#if defined(GANFAST_HALF)
    const HalfVec half = __builtin_convertvector(v, HalfVec);
    __builtin_memcpy(p, &half, sizeof(half));
#else
    for (int64_t i = 0; i < lanes<T>; ++i) p[i].bits = c10::detail::fp16_ieee_from_fp32_value(v[i]);
#endif
  } else {
    __builtin_memcpy(p, &v, sizeof(v));
  }
}

// The first `count` elements; the other lanes are 0.
template <typename T>
GANFAST_INLINE Vec<T> load_some(const T* p, int64_t count) {
  T buffer[lanes<T>] = {};
  __builtin_memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}

template <typename T>
GANFAST_INLINE void store_some(T* p, Vec<T> v, int64_t count) {
  T buffer[lanes<T>];
  store(buffer, v);
  __builtin_memcpy(p, buffer, count * sizeof(T));
}

GANFAST_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// v with the lanes outside [begin, end) set to 0, whatever they hold.
template <typename T>
GANFAST_INLINE Vec<T> keep(Vec<T> v, int64_t begin, int64_t end) {
  using IndexVec = typename Arithmetic<T>::IndexVec;
  using Index = typename Arithmetic<T>::Index;
  IndexVec index;
  for (int64_t i = 0; i < lanes<T>; ++i) index[i] = i;
  const IndexVec inside = (index >= IndexVec{} + static_cast<Index>(begin)) &
                          (index < IndexVec{} + static_cast<Index>(end));
  return inside ? v : Vec<T>{};
}

// Sums in double of what float lanes gathered over a short run.
struct DoubleSum {
  DoubleVec low, high;

  GANFAST_INLINE void add(FloatVec v) {
    DoubleVec of_v[2];
    to_double(v, of_v[0], of_v[1]);
    low += of_v[0];
    high += of_v[1];
  }
  GANFAST_INLINE void add(DoubleVec v) { low += v; }
  GANFAST_INLINE double total() const {
    constexpr int count = sizeof(DoubleVec) / sizeof(double);
    DoubleVec v = low + high;
    for (int width = count / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) v[i] += v[i + width];
    }
    return v[0];
  }
};
