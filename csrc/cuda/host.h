// What the ops' host code needs to launch kernels: the device, its stream, and what it can do.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#if !defined(GANFAST_EMULATE_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <cstdint>
#include <cstring>

#include "common/checks.h"
#include "common/signatures.h"
#include "cuda/launch.cuh"
#include "cuda/settings.h"

namespace ganfast {

#if defined(GANFAST_EMULATE_CUDA)

#define GANFAST_CUDA_KEY CPU

inline DeviceFacts device_facts(const at::Tensor&) {
  return {/*multiprocessors=*/4, /*cache_bytes=*/64 << 10, /*has_clusters=*/true};
}

struct Device {
  explicit Device(const at::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

inline void check_launch(cudaError_t) {}

// Memory that a kernel is to fill, itself filled with NaN of any type.
inline at::Tensor filled_with_nan(at::Tensor t) {
  memset(t.mutable_data_ptr(), 0xff, t.nbytes());
  return t;
}
inline at::Tensor empty_for_kernel(at::IntArrayRef shape, const at::TensorOptions& options) {
  return filled_with_nan(at::empty(shape, options));
}
inline at::Tensor empty_for_kernel_like(const at::Tensor& x) {
  return filled_with_nan(at::empty_like(x));
}

inline unsigned* lent_tickets(const at::Tensor&, cudaStream_t, int64_t count) {
  return emulation::tickets(count);
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

// Tickets in memory that holds zeros whenever no kernel of the stream runs, or null if there are
// no more; tickets.cu.
unsigned* lent_tickets(int device, cudaStream_t stream, int64_t count);

inline unsigned* lent_tickets(const at::Tensor& x, cudaStream_t stream, int64_t count) {
  return lent_tickets(x.get_device(), stream, count);
}

#endif

// Whether a second kernel may start before the one before has ended.
inline bool starts_early(const at::Tensor& x) {
  return settings().pdl != 0 && device_facts(x).has_clusters;
}

// `count` tickets for one call's blocks, all 0, which the kernel must leave all 0.
class Tickets {
 public:
  Tickets(const at::Tensor& x, cudaStream_t stream, int64_t count) {
    if (count == 0) return;
    first_ = lent_tickets(x, stream, count);
    if (first_ != nullptr) return;
    own_ = at::zeros({count}, x.options().dtype(at::kInt).memory_format(std::nullopt));
    first_ = static_cast<unsigned*>(own_.mutable_data_ptr());
  }
  unsigned* first() const { return first_; }

 private:
  unsigned* first_ = nullptr;
  at::Tensor own_;
};

// A scalar that a kernel reads where it is, in a type that goes with x's.
inline at::Tensor scalar_for_kernel(const at::Tensor& scalar, const at::Tensor& x) {
  const at::ScalarType type = scalar.scalar_type(), wide = arithmetic_type(x);
  const bool fits = type == x.scalar_type() || type == wide;
  return fits ? scalar : scalar.to(wide);
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
