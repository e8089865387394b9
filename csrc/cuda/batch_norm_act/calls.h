// What the CUDA kernels of batch_norm_act are given, and how a launch is described to them.
#pragma once

#include <cstdint>

#include "cuda/batch_norm_act/limits.h"
#include "cuda/vector_io.cuh"

namespace ganfast {

// How a tensor lies in memory, and which part of it a block works on.
//
// A unit is what one thread reads of a tensor at a time. NC*: V positions of one channel; a block
// has one channel. Channels-last: V channels of one row (an image's position); a block has
// threads.x * V channels.
struct Geometry {
  int64_t channels;
  int64_t positions;        // of a plane; channels-last: 1
  int64_t units;            // of a channel in one split
  int64_t units_per_block;  // consecutive ones; of a block's threads each takes every n-th
  int64_t split_stride;     // elements from one split to the next
  double values;            // of a channel in one split: M
  double inverse_values;
  int splits;
  int chunks;  // blocks that share a channel's units in one split
  int channel_blocks;
  int groups, group_chunks;  // of chunks whose sums are put together first
  bool streams;              // results are not kept in the second-level cache
  Divider units_of_plane;    // NC*
};

// What the blocks of a kernel leave for one another: of the first of two kernels, or on chip if
// there are several splits.
struct Workspace {
  double* partials;  // (splits, chunks, results, C), then (splits, groups, results, C)
  unsigned*
      tickets;  // all 0 before the launch and after it: (C blocks), then (splits, groups, ...)
};

// The activation of a call, and where it stands. None is leaky_relu of slope 1, to compile fewer
// kernels.
struct GivenActivation {
  double slope;
  Activation activation;
  bool act_norm;  // in front of the normalisation
};

// Parameters and running statistics are null if there are none.
// stats: (splits, 4, C), rows mean, rstd, scale, shift, of the arithmetic's type.
// factors: (splits, 2 or 5, C), likewise, which the second of two kernels reads.
struct ForwardCall {
  Geometry at;
  const void* x;
  void* y;
  void* stats;
  EitherVector weight, bias, running_mean, running_var;
  int64_t* num_batches_tracked;  // or null
  Workspace work;
  double momentum;
  double eps;
  GivenActivation activation;
  bool cumulative;  // momentum None: 1 / num_batches_tracked
  bool training;
};

struct BackwardCall {
  Geometry at;
  const void *x, *dy;
  void* dx;  // null if nobody wants it
  const void* stats;
  void *dweight, *dbias;  // of the arithmetic's type, or null
  Workspace work;
  void* factors;
  GivenActivation activation;
  bool training;
};

struct DoubleBackwardCall {
  Geometry at;
  const void *x, *dy;
  const void* ddx;  // null for zeros
  void *d_dy, *d_x;
  const void* stats;
  EitherVector ddweight, ddbias;
  void* d_weight;  // of the arithmetic's type
  Workspace work;
  void* factors;
  GivenActivation activation;
  bool training;
};

enum class Form { on_chip, two_kernels };

// How one call is launched, decided by launch_config.h.
struct Recipe {
  Form form;
  GivenActivation activation;
  bool channels_last;
  bool vectors;     // units of several values; else of one
  bool many_items;  // on chip: most_items units in each thread's registers, else few_items
  unsigned blocks;
  dim3 threads;
  int cluster;
  bool starts_early;  // the second kernel may
};

// The launches, one file of instantiations for each element type.
template <typename T>
struct BatchNormActKernels {
  static bool fits(const Recipe& recipe, bool backward);
  static cudaError_t forward(const Recipe& recipe, const ForwardCall& call, cudaStream_t stream);
  // The second of forward's two kernels, alone if call.training is not set.
  static cudaError_t evaluate(const Recipe& recipe, const ForwardCall& call, cudaStream_t stream);
  static cudaError_t backward(const Recipe& recipe, const BackwardCall& call, cudaStream_t stream);
  static cudaError_t double_backward(const Recipe& recipe, const DoubleBackwardCall& call,
                                     cudaStream_t stream);
};

// float64 is there to check gradients with: it has the form in two kernels, in units of one value.
template <typename T>
inline constexpr bool is_for_checks = std::is_same_v<T, double>;

// Values of a unit; the double backward has most to keep in registers.
template <typename T>
inline constexpr int unit_values = is_for_checks<T> ? 1 : word_values<T>;
template <typename T>
inline constexpr int double_backward_unit_values = is_for_checks<T> ? 1 : word_values<Scalar<T>>;

}  // namespace ganfast
