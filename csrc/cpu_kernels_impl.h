// All CPU kernels, compiled once per instruction set: cpu_<set>.cpp includes this under its target
// pragma with GANFAST_ISA naming the namespace.

namespace ganfast::GANFAST_ISA {
#include "simd.h"

#include "simd_math.h"
}  // namespace ganfast::GANFAST_ISA

#include "batch_norm_act/cpu_kernels_impl.h"
#include "loss_kernels_impl.h"
