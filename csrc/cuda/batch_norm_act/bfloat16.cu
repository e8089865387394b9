// The CUDA kernels of batch_norm_act for bfloat16.
#include "cuda/batch_norm_act/kernels.cuh"

namespace ganfast {

template struct BatchNormActKernels<c10::BFloat16>;

}  // namespace ganfast
