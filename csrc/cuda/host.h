// What the ops' host code needs to launch kernels: the device, its stream, and what it can do.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#if defined(GANFAST_EMULATE_CUDA)
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>

#include <cmath>
#include <cstdlib>
#include <string>
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <cstdint>

#include "cuda/launch.cuh"

namespace ganfast {

// What plans depend on of a device.
struct DeviceFacts {
  int multiprocessors;
  // sm_90 or newer, and this build has code for it: clusters of blocks share memory, and a kernel
  // can start before the one before has ended.
  bool has_clusters;
};

#if defined(GANFAST_EMULATE_CUDA)

#define GANFAST_CUDA_KEY CPU

// A number that a test has chosen, from GANFAST_EMULATION="name=number name=number".
inline int emulated(const char* name, int otherwise) {
  const char* variable = std::getenv("GANFAST_EMULATION");
  const std::string all = " " + std::string(variable ? variable : "");
  const size_t at = all.find(" " + std::string(name) + "=");
  return at == std::string::npos ? otherwise : std::atoi(all.c_str() + at + strlen(name) + 2);
}

inline DeviceFacts device_facts(const at::Tensor&) {
  return {emulated("multiprocessors", 4), emulated("clusters", 1) != 0};
}

struct Device {
  explicit Device(const at::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

inline void check_launch(cudaError_t) {}

// Memory that a kernel is to fill, itself filled with NaN.
inline at::Tensor empty_for_kernel(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::full(shape, std::nan(""), options);
}
inline at::Tensor empty_for_kernel_like(const at::Tensor& x) {
  return at::full_like(x, std::nan(""));
}

#else

#define GANFAST_CUDA_KEY CUDA

const DeviceFacts& device_facts(int device);  // asks once; module.cu

inline const DeviceFacts& device_facts(const at::Tensor& x) { return device_facts(x.get_device()); }

// Makes x's device the current one for its lifetime.
struct Device {
  explicit Device(const at::Tensor& x) : guard(x.device()) {}
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }
  c10::cuda::CUDAGuard guard;
};

inline void check_launch(cudaError_t error) { C10_CUDA_CHECK(error); }

inline at::Tensor empty_for_kernel(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::empty(shape, options);
}
inline at::Tensor empty_for_kernel_like(const at::Tensor& x) { return at::empty_like(x); }

#endif

inline at::ScalarType arithmetic_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A scalar that a kernel reads where it is, in a type that goes with x's.
inline at::Tensor scalar_for_kernel(const at::Tensor& scalar, const at::Tensor& x) {
  const at::ScalarType type = scalar.scalar_type(), wide = arithmetic_type(x);
  const bool fits = type == x.scalar_type() || type == wide;
  return fits && scalar.device() == x.device() ? scalar : scalar.to(x.device(), wide);
}

// Calls f with a null pointer to x's element type.
template <typename F>
auto with_element(const char* op, const at::Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(static_cast<float*>(nullptr));
    case at::kDouble:
      return f(static_cast<double*>(nullptr));
    case at::kHalf:
      return f(static_cast<c10::Half*>(nullptr));
    case at::kBFloat16:
      return f(static_cast<c10::BFloat16*>(nullptr));
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "\"", op, "\" not implemented for '",
                                  toString(x.scalar_type()), "'");
  }
}

}  // namespace ganfast
