// The activations a kernel can fuse: the C++ form of ganfast/activations.py, for CPU and CUDA code.
#pragma once

#if defined(__CUDACC__)
#define GANFAST_INLINE __host__ __device__ __forceinline__
#else
#define GANFAST_INLINE inline __attribute__((always_inline))
#endif

namespace ganfast {

enum class Activation { none, relu, leaky_relu };

// a(z). V is a scalar or a SIMD vector; the slope is of the same type.
template <Activation A, typename V>
GANFAST_INLINE V activate(V z, V slope) {
  if constexpr (A == Activation::relu) {
    return z < V{} ? V{} : z;  // keeps NaN, as torch does
  } else if constexpr (A == Activation::leaky_relu) {
    return z > V{} ? z : z * slope;
  } else {
    return z;
  }
}

// dy * a'(z); at exactly 0, and at NaN, what torch's backward does.
template <Activation A, typename V>
GANFAST_INLINE V gate(V dy, V z, V slope) {
  if constexpr (A == Activation::relu) {
    return z <= V{} ? V{} : dy;
  } else if constexpr (A == Activation::leaky_relu) {
    return z > V{} ? dy : dy * slope;
  } else {
    return dy;
  }
}

}  // namespace ganfast
