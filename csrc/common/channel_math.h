// What happens once a channel in batch_norm_act, on every device: in double, rounded once to the
// type S that values are computed in. Names: ganfast/ops/batch_norm_act/__init__.py; d is u
// less its mean, per_value is 1 / M.
#pragma once

#include "common/activation.h"

namespace ganfast {

// What a forward op saves of a channel, and what its map takes: rows of `stats`, (splits, 4, C).
enum StatsRow : int { row_mean, row_rstd, row_scale, row_shift };

template <typename S>
struct ChannelStats {
  S mean, rstd, scale, shift;
};

template <typename S>
GANFAST_INLINE ChannelStats<S> channel_stats(double mean, double rstd, double weight, double bias) {
  const double scale = weight * rstd;
  const S rounded = static_cast<S>(mean);
  // What rounding the mean leaves over; nothing where the mean is not finite.
  const double rest = mean - mean == 0 ? mean - static_cast<double>(rounded) : 0;
  return {rounded, static_cast<S>(rstd), static_cast<S>(scale),
          static_cast<S>(bias - rest * scale)};
}

// Training: du = g * scale + (d * of_d + offset).
struct BackwardFactors {
  double of_d, offset;
};

GANFAST_INLINE BackwardFactors backward_factors(double sum_g, double sum_gd, double rstd,
                                                double scale, double per_value) {
  const double factor = -scale * per_value;
  return {factor * rstd * rstd * sum_gd, factor * sum_g};
}

// Sums over a channel, as DoubleBackward::Sums takes them.
struct DoubleBackwardSums {
  double v, g, vd, gd, vg;
};

// d_g = v * scale + (d * mixed + g_offset) and d_u = g * mixed + v * of_v + (d * of_d + u_offset).
struct DoubleBackwardFactors {
  double mixed, g_offset, of_v, of_d, u_offset;
  double d_weight;  // what the chunk adds to it
};

// p and q are ddweight and ddbias. The derivation is beside the eager kernel.
GANFAST_INLINE DoubleBackwardFactors double_backward_factors(const DoubleBackwardSums& sum,
                                                             double rstd, double scale, double p,
                                                             double q, double values,
                                                             double per_value) {
  const double mean_v = sum.v * per_value, mean_g = sum.g * per_value;
  const double mean_vh = rstd * sum.vd * per_value, mean_gh = rstd * sum.gd * per_value;
  const double s = sum.vg - values * (mean_v * mean_g + mean_vh * mean_gh);
  // e = g * of_g - v * of_v
  const double of_g = p - scale * mean_vh, of_v = scale * mean_gh;
  const double mean_e = mean_g * of_g - mean_v * of_v;
  const double mean_eh = mean_gh * of_g - mean_vh * of_v;
  return {rstd * of_g,    q - scale * mean_v,
          -rstd * of_v,   -rstd * rstd * (mean_eh + scale * s * per_value),
          -rstd * mean_e, rstd * s};
}

// In evaluation the statistics are constants: their terms vanish.
GANFAST_INLINE DoubleBackwardFactors double_backward_factors_eval(const DoubleBackwardSums& sum,
                                                                  double rstd, double p, double q) {
  return {rstd * p, q, 0, 0, 0, rstd * sum.vg};
}

}  // namespace ganfast
