// The kernels for x86-64 with AVX2 and FMA.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/util/Half.h>

#include "batch_norm_act/cpu_kernels.h"
#include "loss_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx,avx2,fma,f16c")
#endif

#define GANFAST_ISA avx2
#define GANFAST_AVX2
#define GANFAST_VECTOR_BYTES 32
#include "cpu_kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
