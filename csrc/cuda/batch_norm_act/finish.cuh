// What happens once a channel in the CUDA kernels of batch_norm_act: from sums to the factors of
// the maps, statistics and gradients of parameters. Names: ganfast/ops/batch_norm_act/__init__.py.
#pragma once

#include "cuda/batch_norm_act/calls.h"

namespace ganfast {

enum Row : int { row_mean, row_rstd, row_scale, row_shift };

template <typename T, typename Call>
__device__ __forceinline__ Scalar<T>* stats_row(const Call& call, int split, Row row) {
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
  const S rstd = S{1} / square_root(static_cast<S>(var + call.eps));
  const S scale = call.weight.get<T>(c, S{1}) * rstd;
  const S rounded = static_cast<S>(mean);
  // What rounding the mean leaves over; nothing if the mean is not finite.
  const double rest = mean - mean == 0 ? mean - static_cast<double>(rounded) : 0;
  const S shift = static_cast<S>(call.bias.get<T>(c, S{0}) - rest * static_cast<double>(scale));
  factors[0] = rounded;
  factors[1] = scale;
  factors[2] = shift;
  if (!write) return;
  stats_row<T>(call, split, row_mean)[c] = rounded;
  stats_row<T>(call, split, row_rstd)[c] = rstd;
  stats_row<T>(call, split, row_scale)[c] = scale;
  stats_row<T>(call, split, row_shift)[c] = shift;
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
__device__ __forceinline__ void backward_factors(const BackwardCall& call, int split, int64_t c,
                                                 const double* sums, Scalar<T>* factors) {
  const double r = stats_row<T>(call, split, row_rstd)[c];
  const double factor = -stats_row<T>(call, split, row_scale)[c] * call.at.inverse_values;
  factors[0] = static_cast<Scalar<T>>(factor * r * r * sums[1]);
  factors[1] = static_cast<Scalar<T>>(factor * sums[0]);
}

// Five factors, from the sums of v, g, v d, g d and v g; returns what the split adds to d_weight.
// The derivation is beside the eager kernel.
template <typename T>
__device__ __forceinline__ double double_backward_factors(const DoubleBackwardCall& call, int split,
                                                          int64_t c, const double* sums,
                                                          Scalar<T>* factors) {
  using S = Scalar<T>;
  const double r = stats_row<T>(call, split, row_rstd)[c];
  const double scale = stats_row<T>(call, split, row_scale)[c];
  const double p = call.ddweight.get<T>(c, S{0}), q = call.ddbias.get<T>(c, S{0});
  if (!call.training) {  // the statistics are constants: their terms vanish
    factors[0] = static_cast<S>(r * p);
    factors[1] = static_cast<S>(q);
    factors[2] = factors[3] = factors[4] = 0;
    return r * sums[4];
  }
  const double per_value = call.at.inverse_values;
  const double mean_v = sums[0] * per_value, mean_g = sums[1] * per_value;
  const double mean_vh = r * sums[2] * per_value, mean_gh = r * sums[3] * per_value;
  const double s = sums[4] - call.at.values * (mean_v * mean_g + mean_vh * mean_gh);
  // e = g * of_g - v * of_v
  const double of_g = p - scale * mean_vh, of_v = scale * mean_gh;
  const double mean_e = mean_g * of_g - mean_v * of_v;
  const double mean_eh = mean_gh * of_g - mean_vh * of_v;
  factors[0] = static_cast<S>(r * of_g);
  factors[1] = static_cast<S>(q - scale * mean_v);
  factors[2] = static_cast<S>(-r * of_v);
  factors[3] = static_cast<S>(-r * r * (mean_eh + scale * s * per_value));
  factors[4] = static_cast<S>(-r * mean_e);
  return r * s;
}

}  // namespace ganfast
