// The CUDA kernels of batch_norm_act for float16.
#include "cuda/batch_norm_act/kernels.cuh"

namespace ganfast {

template struct BatchNormActKernels<c10::Half>;

}  // namespace ganfast
