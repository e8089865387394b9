// What the CPU kernels of binary_cross_entropy and gan_loss are given, and how they are found.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/loss.h"
#include "cpu/instruction_set.h"

namespace ganfast {

// Tensors of one shape and order in memory; a null pointer stands for a tensor that is not there.
struct LossCall {
  const void* x;
  const void* target;      // of x's type; else `label`
  const void* weight;      // of the arithmetic's type; else 1
  const void* pos_weight;  // likewise
  const void* dy;          // of x's type; else `factor`
  void* out;               // of x's type
  double label;
  double factor;
};

// What was found outside [0, 1] where probabilities must lie, NaN included: bits to be or-ed.
inline constexpr int input_outside = 1, target_outside = 2;

// Kernels of one element type and loss, for the elements from begin to end.
struct LossKernels {
  // Adds the loss, and where scored the scores, up to sums[0] and sums[1].
  int (*sums)(const LossCall&, int64_t begin, int64_t end, double* sums);
  int (*scored_sums)(const LossCall&, int64_t begin, int64_t end, double* sums);
  int (*losses)(const LossCall&, int64_t begin, int64_t end);      // out: the loss of each
  void (*gradients)(const LossCall&, int64_t begin, int64_t end);  // out: dx
};

struct LossSelection {
  ElementType type;
  Loss loss;
  bool plain;  // no target, weight or pos_weight
};

}  // namespace ganfast
