// All CPU kernels, compiled once per instruction set: cpu_<set>.cpp includes this under its target
// pragma with GANFAST_ISA naming the namespace.

namespace ganfast::GANFAST_ISA {
#include "cpu/simd.h"

#include "cpu/simd_math.h"
}  // namespace ganfast::GANFAST_ISA

#include "cpu/batch_norm_act/kernels_impl.h"
#include "cpu/losses/kernels_impl.h"
