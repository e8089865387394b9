// The CUDA kernels of batch_norm_act for float32.
#include "cuda_kernels.cuh"

namespace ganfast {

template struct BatchNormActKernels<float>;

}  // namespace ganfast
