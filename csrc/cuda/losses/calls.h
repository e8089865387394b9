// What the CUDA kernels of binary_cross_entropy and gan_loss are given, and how they are launched.
#pragma once

#include <cstdint>

#include "cpu/losses/kernels.h"
#include "cuda/host.h"
#include "cuda/losses/limits.h"
#include "cuda/vector_io.cuh"

namespace ganfast {

// Scores that one mean is taken over.
struct ScoreGroup {
  const void* x;
  void* out;  // of a map: dx, or the loss of each score
  int64_t n;
  double label;    // where there is no target
  double divisor;  // of their sum, and so of their gradient: n for a mean
};

// Tensors of one shape and order in memory; a null pointer stands for a tensor that is not there.
struct ScoreCall {
  Loss form;
  ScoreGroup groups[most_score_groups];  // of real and of generated images; the second may be empty
  int group_count;
  const void* target;                    // of x's type
  const void* weight;                    // of the arithmetic's type
  const void* pos_weight;                // likewise
  const void* dy;                        // of x's type; else `dloss`
  EitherVector dloss;                    // a scalar on the device
  EitherVector loss;                     // of a reduction: where its result goes
  void* mean_scores[most_score_groups];  // of the arithmetic's type, or null
  double* partials;                      // (blocks, groups, 2)
  int blocks;                            // that share each group
  bool aligned;  // every group begins at a multiple of 16 bytes; set at the launch
};

// The launches for one element type.
template <typename T>
struct ScoreKernels {
  static cudaError_t reduce(ScoreCall call, bool starts_early, cudaStream_t stream);
  static cudaError_t losses(const ScoreCall& call, cudaStream_t stream);
  static cudaError_t gradients(const ScoreCall& call, cudaStream_t stream);
};

// Fills in how many blocks share a call's groups, and what they write their sums to.
inline at::Tensor share_scores(ScoreCall& call, const at::Tensor& x) {
  const int64_t n = std::max(call.groups[0].n, call.group_count > 1 ? call.groups[1].n : 0);
  const int64_t of_block = settings().scores_of_block;
  call.blocks = 1;
  if (n <= settings().scores_of_one_block) return {};
  call.blocks = static_cast<int>(std::min(most_score_blocks, (n + of_block - 1) / of_block));
  at::Tensor partials =
      empty_for_kernel({call.blocks, 2, 2}, x.options().dtype(at::kDouble).memory_format({}));
  call.partials = partials.mutable_data_ptr<double>();
  return partials;
}

}  // namespace ganfast
