// Sums over the threads of a block, always in the same order.
#pragma once

#include "cuda/launch.cuh"

namespace ganfast {

inline constexpr int warp_threads = 32;
inline constexpr int most_warps = 16;

// An array in shared memory; the emulator looks at its indices.
template <typename T, int N>
struct SharedArray {
  T values[N];

  __device__ __forceinline__ T& operator[](int i) {
#if defined(GANFAST_EMULATE_CUDA)
    if (i < 0 || i >= N) emulation::fail("an index lies outside an array in shared memory");
#endif
    return values[i];
  }
};

__device__ __forceinline__ int thread_of_block() {
  return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
}
__device__ __forceinline__ int threads_of_block() {
  return static_cast<int>(blockDim.x * blockDim.y);
}

template <typename S>
__device__ __forceinline__ S warp_sum(S value) {
#pragma unroll
  for (int distance = warp_threads / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

template <int COUNT>
using WarpSums = SharedArray<SharedArray<double, COUNT>, most_warps>;

// Replaces each thread's values by their sums over the block, the warps in order. `room` may be
// used again after the next barrier of the block.
template <typename S, int COUNT>
__device__ __forceinline__ void block_sum(S (&values)[COUNT], WarpSums<COUNT>& room) {
  const int thread = thread_of_block(), warps = threads_of_block() / warp_threads;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) values[i] = warp_sum(values[i]);
  if (warps == 1) return;
  if (thread % warp_threads == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) room[thread / warp_threads][i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    values[i] = static_cast<S>(room[0][i]);
    for (int warp = 1; warp < warps; ++warp) values[i] += static_cast<S>(room[warp][i]);
  }
}

}  // namespace ganfast
