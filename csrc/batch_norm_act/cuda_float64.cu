// The CUDA kernels of batch_norm_act for float64.
#include "cuda_kernels.cuh"

namespace ganfast {

template struct BatchNormActKernels<double>;

}  // namespace ganfast
