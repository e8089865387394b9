// Values of a tensor in registers: words of up to 16 bytes, and arithmetic on what they hold.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/activation.h"
#include "cuda/launch.cuh"

namespace ganfast {

// The type that values of type T are computed in.
template <typename T>
using Scalar = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <int BYTES>
struct WordOf;
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};

// V values of type T.
template <typename T, int V>
using Word = typename WordOf<V* static_cast<int>(sizeof(T))>::type;

// Values in the largest word.
template <typename T>
inline constexpr int word_values = 16 / static_cast<int>(sizeof(T));

template <typename T, int V>
__device__ __forceinline__ Word<T, V> load(const T* p) {
  return *reinterpret_cast<const Word<T, V>*>(p);
}
// Of what nobody reads again soon.
template <typename T, int V>
__device__ __forceinline__ Word<T, V> load_last(const T* p) {
  return __ldcs(reinterpret_cast<const Word<T, V>*>(p));
}
template <typename T, int V>
__device__ __forceinline__ void store(T* p, Word<T, V> word) {
  *reinterpret_cast<Word<T, V>*>(p) = word;
}
template <typename T, int V>
__device__ __forceinline__ void store_streaming(T* p, Word<T, V> word) {
  __stcs(reinterpret_cast<Word<T, V>*>(p), word);
}

template <typename T, int V>
__device__ __forceinline__ void unpack(Word<T, V> word, Scalar<T> (&values)[V]) {
  T stored[V];
  memcpy(stored, &word, sizeof(word));
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = static_cast<Scalar<T>>(stored[v]);
}

template <typename T, int V>
__device__ __forceinline__ Word<T, V> pack(const Scalar<T> (&values)[V]) {
  T stored[V];
#pragma unroll
  for (int v = 0; v < V; ++v) stored[v] = static_cast<T>(values[v]);
  Word<T, V> word;
  memcpy(&word, stored, sizeof(word));
  return word;
}

// Values of the arithmetic's type, or narrow: of x's. Null where there are none.
struct EitherVector {
  void* values = nullptr;
  bool narrow = false;

  GANFAST_INLINE explicit operator bool() const { return values != nullptr; }

  template <typename T>
  __device__ __forceinline__ Scalar<T> get(int64_t i, Scalar<T> otherwise) const {
    if (values == nullptr) return otherwise;
    if (narrow) return static_cast<Scalar<T>>(static_cast<const T*>(values)[i]);
    return static_cast<const Scalar<T>*>(values)[i];
  }
  template <typename T>
  __device__ __forceinline__ void set(int64_t i, double value) const {
    if (narrow) {
      static_cast<T*>(values)[i] = static_cast<T>(static_cast<Scalar<T>>(value));
    } else {
      static_cast<Scalar<T>*>(values)[i] = static_cast<Scalar<T>>(value);
    }
  }
};

// Fused for certain, so that forward and backward round alike.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

// n / divisor for n below 2^31, as a multiplication: Granlund and Montgomery 1994,
// https://doi.org/10.1145/178243.178249, figure 4.1.
struct Divider {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Divider() = default;
  explicit Divider(uint32_t divisor_) : divisor(divisor_) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t excess = (uint64_t{1} << shift) - divisor;
    multiplier = static_cast<uint32_t>((excess << 32) / divisor + 1);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return (__umulhi(n, multiplier) + n) >> shift;
  }
};

}  // namespace ganfast
