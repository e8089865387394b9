// The backward and double backward ops of batch_norm_act on the CPU; see cpu.cpp.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>

#include "cpu_plan.h"

namespace ganfast {
namespace {

// The vectors that every backward kernel begins with.
Call backward_call(const Plan& plan, const Tensor& stats, int64_t split) {
  Call c{};
  c.channels = plan.channels;
  c.positions = plan.positions;
  c.vectors[0] = row(plan, stats, split, row_mean);
  c.vectors[1] = row(plan, stats, split, row_scale);
  c.vectors[2] = row(plan, stats, split, row_shift);
  c.negative_slope = plan.negative_slope;
  return c;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy_any, const Tensor& x_any,
                                            const std::optional<Tensor>& /*weight*/,
                                            const Tensor& stats, double /*eps*/, bool training,
                                            std::optional<std::string_view> activation,
                                            double negative_slope, std::string_view order,
                                            bool need_dx, bool need_affine) {
  const Plan plan(x_any, stats.size(0), activation, negative_slope, order);
  const int64_t C = plan.channels;
  const double M = static_cast<double>(plan.values);
  const Tensor x = x_any.contiguous(plan.format);
  const Tensor dy = laid_out_like(x, dy_any, plan.format);
  Tensor dx = need_dx ? at::empty_like(x) : at::empty({0}, x.options());
  Sums sums(plan, 2);
  Vectors coefficients(plan, 2);

  const auto call = [&](int64_t split, int64_t part) {
    Call c = backward_call(plan, stats, split);
    c.in[0] = data(x) + plan.offset_bytes(split);
    c.in[1] = data(dy) + plan.offset_bytes(split);
    c.sums = sums.of(split, part);
    return c;
  };
  const auto sum_up = [&](int64_t split, int64_t block, int64_t part) {
    plan.kernels->backward_sums(call(split, part), plan.range(block, part));
  };
  const auto finish = [&](int64_t split, int64_t block) {
    const Range range = plan.range(block, 0);
    Channels k{};
    k.begin = range.channel_begin;
    k.end = range.channel_end;
    k.channels = C;
    k.sums = sums.fold(split, range);
    k.values = M;
    k.stats = const_cast<char*>(row(plan, stats, split, row_mean));
    k.factors = coefficients.of(split, 0);
    plan.kernels->backward_finish(k);
  };
  const auto map = [&](int64_t split, int64_t block, int64_t part) {
    if (!need_dx) return;
    Call c = call(split, part);
    c.out[0] = mutable_data(dx) + plan.offset_bytes(split);
    c.vectors[3] = coefficients.of(split, 0);
    c.vectors[4] = coefficients.of(split, 1);
    const Kernel kernel = training ? plan.kernels->backward_map : plan.kernels->backward_map_eval;
    kernel(c, plan.range(block, part));
  };
  if (training || need_affine) {
    sums_then_map(plan, sum_up, finish, map);
  } else {
    plan.for_each_part(map);
  }

  const int64_t affine_size = need_affine ? C : 0;
  Tensor dweight = at::empty({affine_size}, stats.options());
  Tensor dbias = at::empty({affine_size}, stats.options());
  for (int64_t c = 0; c < affine_size; ++c) {
    double sum_g = 0, sum_gh = 0;
    for (int64_t split = 0; split < plan.splits; ++split) {
      const double* total = sums.of(split, 0);  // finish has folded the parts into it
      sum_g += total[c];
      sum_gh += total[C + c] * get(plan, row(plan, stats, split, row_rstd), c);
    }
    set(plan, mutable_data(dweight), c, sum_gh);
    set(plan, mutable_data(dbias), c, sum_g);
  }
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> double_backward(
    const std::optional<Tensor>& ddx_any, const std::optional<Tensor>& ddweight,
    const std::optional<Tensor>& ddbias, const Tensor& dy_any, const Tensor& x_any,
    const std::optional<Tensor>& /*weight*/, const Tensor& stats, double /*eps*/, bool training,
    std::optional<std::string_view> activation, double negative_slope, std::string_view order) {
  const Plan plan(x_any, stats.size(0), activation, negative_slope, order);
  const int64_t C = plan.channels;
  const double M = static_cast<double>(plan.values);
  const Tensor x = x_any.contiguous(plan.format);
  const Tensor dy = laid_out_like(x, dy_any, plan.format);
  const Tensor ddx =
      ddx_any && ddx_any->defined() ? laid_out_like(x, *ddx_any, plan.format) : at::zeros_like(x);
  const std::vector<double> p = to_doubles(ddweight, C, 0.0), q = to_doubles(ddbias, C, 0.0);
  Tensor d_dy = at::empty_like(x), d_x = at::empty_like(x);
  std::vector<double> d_weight_of_split(plan.splits * C);
  Sums sums(plan, 5);
  Vectors coefficients(plan, 5);

  const auto call = [&](int64_t split, int64_t part) {
    Call c = backward_call(plan, stats, split);
    c.in[0] = data(x) + plan.offset_bytes(split);
    c.in[1] = data(dy) + plan.offset_bytes(split);
    c.in[2] = data(ddx) + plan.offset_bytes(split);
    c.sums = sums.of(split, part);
    return c;
  };
  const auto sum_up = [&](int64_t split, int64_t block, int64_t part) {
    plan.kernels->double_backward_sums(call(split, part), plan.range(block, part));
  };
  const auto finish = [&](int64_t split, int64_t block) {
    const Range range = plan.range(block, 0);
    const double* total = sums.fold(split, range);  // v, g, v d, g d, v g
    for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
      const double rstd = get(plan, row(plan, stats, split, row_rstd), c);
      const double scale = get(plan, row(plan, stats, split, row_scale), c);
      double s = total[4 * C + c];
      double factors[5] = {rstd * p[c], q[c], 0, 0, 0};
      if (training) {
        const double mean_v = total[c] / M, mean_g = total[C + c] / M;
        const double mean_vh = rstd * total[2 * C + c] / M;
        const double mean_gh = rstd * total[3 * C + c] / M;
        s -= M * (mean_v * mean_g + mean_vh * mean_gh);
        // e = g * of_g - v * of_v, in the derivation beside the eager kernel.
        const double of_g = p[c] - scale * mean_vh, of_v = scale * mean_gh;
        const double mean_e = mean_g * of_g - mean_v * of_v;
        const double mean_eh = mean_gh * of_g - mean_vh * of_v;
        factors[0] = rstd * of_g;
        factors[1] = q[c] - scale * mean_v;
        factors[2] = -rstd * of_v;
        factors[3] = -rstd * rstd * (mean_eh + scale * s / M);
        factors[4] = -rstd * mean_e;
      }
      d_weight_of_split[split * C + c] = rstd * s;
      for (int64_t i = 0; i < 5; ++i) set(plan, coefficients.of(split, i), c, factors[i]);
    }
  };
  const auto map = [&](int64_t split, int64_t block, int64_t part) {
    Call c = call(split, part);
    c.out[0] = mutable_data(d_dy) + plan.offset_bytes(split);
    c.out[1] = mutable_data(d_x) + plan.offset_bytes(split);
    for (int64_t i = 0; i < 5; ++i) c.vectors[3 + i] = coefficients.of(split, i);
    const Kernel kernel =
        training ? plan.kernels->double_backward_map : plan.kernels->double_backward_map_eval;
    kernel(c, plan.range(block, part));
  };
  sums_then_map(plan, sum_up, finish, map);

  Tensor d_weight = at::empty({C}, stats.options());
  for (int64_t c = 0; c < C; ++c) {
    double sum = 0;
    for (int64_t split = 0; split < plan.splits; ++split) sum += d_weight_of_split[split * C + c];
    set(plan, mutable_data(d_weight), c, sum);
  }
  return {d_dy.to(dy_any.scalar_type()), d_x, d_weight};
}

TORCH_LIBRARY_IMPL(ganfast, CPU, m) {
  m.impl("batch_norm_act_backward", &backward);
  m.impl("batch_norm_act_double_backward", &double_backward);
}

}  // namespace
}  // namespace ganfast
