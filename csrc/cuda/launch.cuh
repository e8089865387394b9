// The one way in which kernels are launched, share memory and wait for one another. The tests'
// emulator replaces this file's second half, and with it runs every kernel on the CPU.
#pragma once

#include <cstdint>

#if defined(GANFAST_EMULATE_CUDA)
#include "cuda_emulation.h"  // from tests/
#else

#include <cuda_runtime.h>

namespace ganfast {

// What a kernel keeps in its block's shared memory.
template <typename Storage>
__device__ __forceinline__ Storage& shared_storage() {
  __shared__ Storage storage;
  return storage;
}

// The same of another block of the cluster. It may be written between a wait that all blocks of
// the cluster have arrived for and this block's next arrival.
template <typename Storage>
__device__ __forceinline__ Storage& shared_storage_of(int rank) {
#if __CUDA_ARCH__ >= 900
  return *static_cast<Storage*>(__cluster_map_shared_rank(&shared_storage<Storage>(), rank));
#else
  return shared_storage<Storage>();  // clusters are of one block
#endif
}

__device__ __forceinline__ int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(__clusterRelativeBlockRank());
#else
  return 0;
#endif
}

__device__ __forceinline__ int cluster_size() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(__clusterSizeInBlocks());
#else
  return 1;
#endif
}

__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_wait();
#endif
}

// Lets the next kernel start its blocks where there is room, before this one has ended.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Waits until the kernel before has ended and its writes can be read.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

struct LaunchShape {
  unsigned blocks;
  dim3 threads;
  int cluster = 1;            // blocks, along x
  bool starts_early = false;  // while the kernel before, which lets it, is running
};

struct LaunchConfig {
  LaunchConfig(const LaunchShape& shape, cudaStream_t stream) {
    config.gridDim = dim3(shape.blocks);
    config.blockDim = shape.threads;
    config.stream = stream;
    config.attrs = attributes;
    if (shape.cluster > 1) {
      auto& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
    if (shape.starts_early) {
      auto& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;

  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
};

template <typename Call>
cudaError_t launch(void (*kernel)(Call), const LaunchShape& shape, cudaStream_t stream,
                   const Call& call) {
  const LaunchConfig c(shape, stream);
  return cudaLaunchKernelEx(&c.config, kernel, call);
}

// Whether the current device can hold one cluster of this shape.
template <typename Call>
bool cluster_fits(void (*kernel)(Call), const LaunchShape& shape) {
  const LaunchConfig c(shape, nullptr);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &c.config) == cudaSuccess) {
    return clusters > 0;
  }
  static_cast<void>(cudaGetLastError());  // it would be taken for a later launch's
  return false;
}

}  // namespace ganfast
#endif
