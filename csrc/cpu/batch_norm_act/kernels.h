// What the CPU kernels are given and how they are found. Mathematics: the op's __init__.py.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/channel_math.h"
#include "cpu/instruction_set.h"

namespace ganfast {

// Tensors of one chunk of the batch. NC*: x[image][channel][position], `outer` counts images.
// Channels-last: x[row][channel], `outer` counts rows (images times positions), positions is 1.
// `vectors` and `sums` hold one value per channel; vectors are of the arithmetic's type.
struct Call {
  const void* in[3];
  void* out[2];
  int64_t channels;
  int64_t positions;
  const void* vectors[8];
  double* sums;  // [number of sums][channels], added to
  Activation activation;
  double negative_slope;
};

// The part of a Call that one task works on.
struct Range {
  int64_t channel_begin, channel_end;
  int64_t outer_begin, outer_end;
};

using Kernel = void (*)(const Call&, const Range&);

// What turns a channel's sums into the numbers that the maps need, for channels begin to end.
// Arrays hold one value per channel; rows of sums, stats and factors are `channels` apart. Pointers
// to void are of the arithmetic's type.
struct Channels {
  int64_t begin, end, channels;
  const double* sums;  // [number of sums][channels]
  double values;       // per channel: M
  void* stats;         // [4][channels]: mean rstd scale shift, written by the forward forms
};
struct ForwardChannels : Channels {
  double eps;
  const void* weight;
  const void* bias;
  void* center;     // the guess that the values were summed about
  double* mean;     // for the running statistics
  double* var;      // likewise
  bool take_guess;  // whatever its distance from the mean
};
struct EvaluateChannels : Channels {
  double eps;
  const void* weight;
  const void* bias;
  const void* mean;  // running statistics
  const void* var;
};
struct BackwardChannels : Channels {
  void* factors;  // written: [2][channels]
};
struct DoubleBackwardChannels : Channels {
  bool training;
  const void* ddweight;
  const void* ddbias;
  void* factors;     // written: [5][channels]
  double* d_weight;  // written: of this split
};

// The most channels a Range may span in the NC* kernels: their accumulators stay in L1.
inline constexpr int64_t max_channel_block = 64;

// The kernels of one element type, activation, order and layout.
//                         in             vectors                                sums or out
struct Kernels {
  // Sets the vector `center`, vectors[0], to the mean of the range's first few values.
  Kernel guess;
  // Returns false, with better guesses in `center`, where the sums were taken too far off the mean.
  bool (*forward_finish)(const ForwardChannels&);
  void (*evaluate_finish)(const EvaluateChannels&);
  void (*backward_finish)(const BackwardChannels&);
  void (*double_backward_finish)(const DoubleBackwardChannels&);
  Kernel forward_sums;       // x              center                                 d, d^2
  Kernel forward_map;        // x              mean scale shift                       y
  Kernel backward_sums;      // x dy           mean scale shift                       g, g d
  Kernel backward_map;       // x dy           mean scale shift projection offset     dx (training)
  Kernel backward_map_eval;  // x dy  mean scale shift                     dx (evaluation)
  Kernel double_backward_sums;      // x dy ddx  mean scale shift      v, g, v d, g d, v g
  Kernel double_backward_map;       // x dy ddx  mean scale shift + 4  d_dy, d_x  (training)
  Kernel double_backward_map_eval;  // x dy ddx  mean scale shift + 2  d_dy, d_x  (evaluation)
};

// d is u less the first vector (a guess of the mean, or the mean); u, g, v: see the op.
struct Selection {
  ElementType type;
  Activation activation;
  bool act_norm;
  bool channels_last;
};

}  // namespace ganfast
