// The kernels for any processor: SSE2 on x86-64, NEON on arm64.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/util/Half.h>

#include "cpu/batch_norm_act/kernels.h"
#include "cpu/losses/kernels.h"

#if defined(__x86_64__)
#define GANFAST_RARE  // processors without AVX2: small code rather than fast
#endif
#define GANFAST_ISA baseline
#define GANFAST_VECTOR_BYTES 16
#include "cpu/kernels_impl.h"
