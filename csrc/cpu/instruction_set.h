// The element types and instruction sets that CPU kernels are compiled for, one namespace a set.
#pragma once

#include <cstdlib>
#include <string_view>

namespace ganfast {

enum class ElementType { float32, float64, bfloat16, float16 };
enum class InstructionSet { baseline, avx2, avx512, avx512_bf16 };

struct Selection;  // of batch_norm_act
struct Kernels;
struct LossSelection;
struct LossKernels;

namespace baseline {
const Kernels& kernels(const Selection& selection);
const LossKernels& kernels(const LossSelection& selection);
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
const Kernels& kernels(const Selection& selection);
const LossKernels& kernels(const LossSelection& selection);
}  // namespace avx2
namespace avx512 {
const Kernels& kernels(const Selection& selection);
const LossKernels& kernels(const LossSelection& selection);
}  // namespace avx512
namespace avx512_bf16 {  // bfloat16 only
const Kernels& kernels(const Selection& selection);
const LossKernels& kernels(const LossSelection& selection);
}  // namespace avx512_bf16
#endif

// The widest instruction set of the processor this runs on; GANFAST_CPU_CAPABILITY=avx512, avx2 or
// baseline asks for a narrower one, for tests.
inline InstructionSet best_instruction_set() {
#if defined(__x86_64__)
  const char* variable = std::getenv("GANFAST_CPU_CAPABILITY");
  const std::string_view most = variable ? variable : "";
  if (most == "baseline") return InstructionSet::baseline;
  __builtin_cpu_init();
  if (most != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return most != "avx512" && __builtin_cpu_supports("avx512bf16") ? InstructionSet::avx512_bf16
                                                                    : InstructionSet::avx512;
  }
  // Whatever has AVX2 converts float16 too; clang 14 cannot be asked.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return InstructionSet::avx2;
  }
#endif
  return InstructionSet::baseline;
}

}  // namespace ganfast
