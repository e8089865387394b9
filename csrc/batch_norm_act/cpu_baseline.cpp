// The kernels for any processor: SSE2 on x86-64, NEON on arm64.
#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/Half.h>

#include "cpu_kernels.h"

#define GANFAST_ISA baseline
#include "cpu_kernels_impl.h"
