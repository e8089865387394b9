// Sums over the threads of a block, always in the same order.
#pragma once

#include "cuda/launch.cuh"

namespace ganfast {

inline constexpr int warp_threads = 32;
inline constexpr int most_warps = 16;
static_assert(most_warps <= warp_threads, "the first warp adds up what all have");

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

// The sum over each group of LANES lanes of a warp.
template <int LANES = warp_threads, typename S>
__device__ __forceinline__ S warp_sum(S value) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

template <typename S, int COUNT>
using WarpSums = SharedArray<SharedArray<S, COUNT>, most_warps>;

// Replaces each thread's values by their sums over its warp, and leaves those in `room` if there
// are several warps. The next barrier of the block but one lets `room` be used again.
template <typename S, int COUNT>
__device__ __forceinline__ void leave_warp_sums(S (&values)[COUNT], WarpSums<S, COUNT>& room) {
  const int thread = thread_of_block();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) values[i] = warp_sum(values[i]);
  if (threads_of_block() == warp_threads) return;
  if (thread % warp_threads == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) room[thread / warp_threads][i] = values[i];
  }
  __syncthreads();
}

// The sum of each thread's value over the block, in every thread: for floats, of which 16 are added
// sooner than a barrier is passed.
template <typename S>
__device__ __forceinline__ S block_sum(S value, WarpSums<S, 1>& room) {
  S values[1] = {value};
  leave_warp_sums(values, room);
  const int warps = threads_of_block() / warp_threads;
  if (warps == 1) return values[0];
  S sum = room[0][0];
  for (int warp = 1; warp < warps; ++warp) sum += room[warp][0];
  return sum;
}

// Replaces the values of the first warp's threads by their sums over the block; those of other
// threads mean nothing afterwards.
template <typename S, int COUNT>
__device__ __forceinline__ void sum_in_first_warp(S (&values)[COUNT], WarpSums<S, COUNT>& room) {
  leave_warp_sums(values, room);
  const int thread = thread_of_block(), warps = threads_of_block() / warp_threads;
  if (warps == 1 || thread >= warp_threads) return;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) values[i] = warp_sum(thread < warps ? room[thread][i] : S{0});
}

}  // namespace ganfast
