// What the CPU part of the extension says of itself; ganfast/ops/extension.py asks.
#include <torch/headeronly/version.h>

#include "cpu/instruction_set.h"

#define GANFAST_TEXT_OF(x) #x
#define GANFAST_TEXT(x) GANFAST_TEXT_OF(x)
#if defined(__clang__)
#define GANFAST_COMPILER "clang " __clang_version__
#else
#define GANFAST_COMPILER "g++ " GANFAST_TEXT(__GNUC__) "." GANFAST_TEXT(__GNUC_MINOR__)
#endif
#if defined(_OPENMP)
#define GANFAST_THREADS ""
#else
#define GANFAST_THREADS ", one thread: built without OpenMP"
#endif

extern "C" __attribute__((visibility("default"))) const char* ganfast_build_description() {
  switch (ganfast::best_instruction_set()) {
    case ganfast::InstructionSet::avx512_bf16:
      return "AVX-512 with bfloat16, built with " GANFAST_COMPILER
             " for torch " TORCH_VERSION GANFAST_THREADS;
    case ganfast::InstructionSet::avx512:
      return "AVX-512, built with " GANFAST_COMPILER " for torch " TORCH_VERSION GANFAST_THREADS;
    case ganfast::InstructionSet::avx2:
      return "AVX2, built with " GANFAST_COMPILER " for torch " TORCH_VERSION GANFAST_THREADS;
    case ganfast::InstructionSet::baseline:
      break;
  }
  return "baseline instructions, built with " GANFAST_COMPILER
         " for torch " TORCH_VERSION GANFAST_THREADS;
}
