// The bfloat16 kernels for x86-64 with AVX-512 and its instruction that rounds to bfloat16.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/util/Half.h>

#include "cpu/batch_norm_act/kernels.h"
#include "cpu/losses/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                   \
    __attribute__((target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#endif

#define GANFAST_ISA avx512_bf16
#define GANFAST_VECTOR_BYTES 64
#define GANFAST_BF16_INSTRUCTION
#define GANFAST_AVX512
#include "cpu/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
