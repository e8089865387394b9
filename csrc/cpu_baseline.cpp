// The kernels for any processor: SSE2 on x86-64, NEON on arm64.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/util/Half.h>

#include "batch_norm_act/cpu_kernels.h"
#include "loss_kernels.h"

#if defined(__x86_64__)
#define GANFAST_RARE  // processors without AVX2: small code rather than fast
#endif
#define GANFAST_ISA baseline
#define GANFAST_VECTOR_BYTES 16
#include "cpu_kernels_impl.h"
