// The activations a kernel can fuse: the C++ form of ganfast/activations.py, for CPU and CUDA code.
#pragma once

#include <type_traits>

#if defined(__CUDACC__)
#define GANFAST_INLINE __host__ __device__ __forceinline__
#else
#define GANFAST_INLINE inline __attribute__((always_inline))
#endif

// A row: X(name, a(z), dy * a'(z)). The names are those of the Python table, where `none` is None.
// z, dy and slope are scalars or SIMD vectors of type V; an activation is linear in pieces, since
// the double backward takes a'' for 0. ReLU keeps NaN; at exactly 0, and at NaN, gradients are what
// torch's backward gives.
#define GANFAST_ACTIVATIONS(X)                    \
  X(none, z, dy)                                  \
  X(relu, z < V{} ? V{} : z, z <= V{} ? V{} : dy) \
  X(leaky_relu, z > V{} ? z : z * slope, z > V{} ? dy : dy * slope)

namespace ganfast {

enum class Activation {
#define GANFAST_ROW(name, value, gradient) name,
  GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW
};

#define GANFAST_ROW(name, value, gradient) +1
inline constexpr int activation_count = 0 GANFAST_ACTIVATIONS(GANFAST_ROW);
#undef GANFAST_ROW

template <Activation>
inline constexpr bool has_row = false;
#define GANFAST_ROW(name, value, gradient) \
  template <>                              \
  inline constexpr bool has_row<Activation::name> = true;
GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW

// a(z).
template <Activation A, typename V>
GANFAST_INLINE V activate(V z, [[maybe_unused]] V slope) {
  static_assert(has_row<A>, "an activation needs a row in GANFAST_ACTIVATIONS");
#define GANFAST_ROW(name, value, gradient) \
  if constexpr (A == Activation::name) return value;
  GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW
}

// dy * a'(z).
template <Activation A, typename V>
GANFAST_INLINE V gate(V dy, [[maybe_unused]] V z, [[maybe_unused]] V slope) {
  static_assert(has_row<A>, "an activation needs a row in GANFAST_ACTIVATIONS");
#define GANFAST_ROW(name, value, gradient) \
  if constexpr (A == Activation::name) return gradient;
  GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW
}

// Calls f with the activation as a constant that templates take.
template <typename F>
decltype(auto) with_activation(Activation activation, const F& f) {
#define GANFAST_ROW(name, value, gradient) \
  if (activation == Activation::name)      \
    return f(std::integral_constant<Activation, Activation::name>{});
  GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW
  __builtin_unreachable();
}

}  // namespace ganfast
