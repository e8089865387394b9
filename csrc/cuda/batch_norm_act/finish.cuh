// What happens once a channel in the CUDA kernels of batch_norm_act: from sums to the factors of
// the maps, statistics and gradients of parameters. Names: ganfast/ops/batch_norm_act/__init__.py.
#pragma once

#include "common/channel_math.h"
#include "cuda/batch_norm_act/calls.h"

namespace ganfast {

template <typename T, typename Call>
__device__ __forceinline__ Scalar<T>* stats_row(const Call& call, int split, StatsRow row) {
  auto* stats = static_cast<Scalar<T>*>(const_cast<void*>(call.stats));
  return stats + (int64_t{split} * 4 + row) * call.at.channels;
}

// A guess of a mean that is not finite would spoil sums that torch has finite or infinite.
template <typename S>
__device__ __forceinline__ S usable(S guess) {
  return guess - guess == 0 ? guess : S{0};
}

struct Moments {
  double mean, m2;  // m2: the sum of squares about the mean
};

// Moments of n values from their sums about a center: chunks of a batch are put together as in
// Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
__device__ __forceinline__ Moments moments_about(double center, double sum, double sum_of_squares,
                                                 double inverse_n) {
  const double distance = sum * inverse_n, m2 = sum_of_squares - sum * distance;
  return {center + distance, m2 < 0 ? 0 : m2};  // NaN stays
}

// Three factors: the mean as it is stored, scale and shift.
template <typename T>
__device__ __forceinline__ void forward_factors(const ForwardCall& call, int split, int64_t c,
                                                double mean, double var, bool write,
                                                Scalar<T>* factors) {
  using S = Scalar<T>;
  const auto of_channel = channel_stats<S>(mean, 1 / sqrt(var + call.eps),
                                           call.weight.get<T>(c, S{1}), call.bias.get<T>(c, S{0}));
  factors[0] = of_channel.mean;
  factors[1] = of_channel.scale;
  factors[2] = of_channel.shift;
  if (!write) return;
  stats_row<T>(call, split, row_mean)[c] = of_channel.mean;
  stats_row<T>(call, split, row_rstd)[c] = of_channel.rstd;
  stats_row<T>(call, split, row_scale)[c] = of_channel.scale;
  stats_row<T>(call, split, row_shift)[c] = of_channel.shift;
}

// Moves the running statistics towards one split's; called split after split, stored in between, so
// that the bits are those of separate calls. num_batches_tracked counts none of this call's yet.
template <typename T>
__device__ __forceinline__ void update_running(const ForwardCall& call, int split, int64_t c,
                                               double mean, double var) {
  if (!call.running_mean && !call.running_var) return;
  double step = call.momentum;
  if (call.cumulative) {
    step = 1.0 / static_cast<double>(*call.num_batches_tracked + split + 1);
  }
  const auto follow = [&](const EitherVector& running, double batch) {
    if (!running) return;
    const double value = static_cast<double>(running.get<T>(c, 0));
    running.set<T>(c, (1 - step) * value + step * batch);
  };
  follow(call.running_mean, mean);
  follow(call.running_var, var * (call.at.values / (call.at.values - 1)));
}

// Two factors, from the sums of g and g d: of d, and an offset.
template <typename T>
__device__ __forceinline__ void finish_backward(const BackwardCall& call, int split, int64_t c,
                                                const double* sums, Scalar<T>* factors) {
  const BackwardFactors f =
      backward_factors(sums[0], sums[1], stats_row<T>(call, split, row_rstd)[c],
                       stats_row<T>(call, split, row_scale)[c], call.at.inverse_values);
  factors[0] = static_cast<Scalar<T>>(f.of_d);
  factors[1] = static_cast<Scalar<T>>(f.offset);
}

// Five factors, from the sums of v, g, v d, g d and v g; returns what the split adds to d_weight.
template <typename T>
__device__ __forceinline__ double finish_double_backward(const DoubleBackwardCall& call, int split,
                                                         int64_t c, const double* sums,
                                                         Scalar<T>* factors) {
  using S = Scalar<T>;
  const double rstd = stats_row<T>(call, split, row_rstd)[c];
  const double scale = stats_row<T>(call, split, row_scale)[c];
  const double p = call.ddweight.get<T>(c, S{0}), q = call.ddbias.get<T>(c, S{0});
  const DoubleBackwardSums of{sums[0], sums[1], sums[2], sums[3], sums[4]};
  const DoubleBackwardFactors f =
      call.training
          ? double_backward_factors(of, rstd, scale, p, q, call.at.values, call.at.inverse_values)
          : double_backward_factors_eval(of, rstd, p, q);
  factors[0] = static_cast<S>(f.mixed);
  factors[1] = static_cast<S>(f.g_offset);
  factors[2] = static_cast<S>(f.of_v);
  factors[3] = static_cast<S>(f.of_d);
  factors[4] = static_cast<S>(f.u_offset);
  return f.d_weight;
}

}  // namespace ganfast
