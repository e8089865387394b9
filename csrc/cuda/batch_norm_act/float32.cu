// The CUDA kernels of batch_norm_act for float32.
#include "cuda/batch_norm_act/kernels.cuh"

namespace ganfast {

template struct BatchNormActKernels<float>;

}  // namespace ganfast
