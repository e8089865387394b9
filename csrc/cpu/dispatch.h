// Which CPU kernels serve a tensor, by its element type and by the processor this runs on, and the
// memory they read and write.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "cpu/instruction_set.h"

namespace ganfast {

inline ElementType element_type(const char* op, const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return ElementType::float32;
    case at::kDouble:
      return ElementType::float64;
    case at::kBFloat16:
      return ElementType::bfloat16;
    case at::kHalf:
      return ElementType::float16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "\"", op, "\" not implemented for '",
                                  toString(x.scalar_type()), "'");
  }
}

template <typename Selection>
const auto& select_kernels(const Selection& selection) {
#if defined(__x86_64__)
  static const InstructionSet best = best_instruction_set();
  if (best == InstructionSet::avx512_bf16 && selection.type == ElementType::bfloat16) {
    return avx512_bf16::kernels(selection);
  }
  if (best >= InstructionSet::avx512) return avx512::kernels(selection);
  if (best == InstructionSet::avx2) return avx2::kernels(selection);
#endif
  return baseline::kernels(selection);
}

inline const char* data(const at::Tensor& t) {
  return static_cast<const char*>(t.const_data_ptr());
}
inline char* mutable_data(const at::Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }

inline constexpr uintptr_t huge_page_bytes = 2 << 20;

// An output like x. A large one comes from the C library as pages that do not exist yet, and a
// fault for each 4 KiB costs more than the arithmetic on it: Linux is asked for huge pages there.
inline at::Tensor output_like(const at::Tensor& x) {
  at::Tensor y = at::empty_like(x);
#if defined(__linux__)
  if (y.nbytes() >= huge_page_bytes * 2) {
    const auto begin = reinterpret_cast<uintptr_t>(y.mutable_data_ptr());
    const uintptr_t first = (begin + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes;
    const uintptr_t last = (begin + y.nbytes()) / huge_page_bytes * huge_page_bytes;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return y;
}

}  // namespace ganfast
