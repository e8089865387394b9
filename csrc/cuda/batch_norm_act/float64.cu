// The CUDA kernels of batch_norm_act for float64.
#include "cuda/batch_norm_act/kernels.cuh"

namespace ganfast {

template struct BatchNormActKernels<double>;

}  // namespace ganfast
