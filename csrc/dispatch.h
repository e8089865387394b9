// Which CPU kernels serve a tensor: by its element type and by the processor this runs on.
#pragma once

#include <ATen/core/Tensor.h>

#include "instruction_set.h"

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

}  // namespace ganfast
