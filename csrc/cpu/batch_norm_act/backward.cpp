// The backward and double backward ops of batch_norm_act on the CPU; see forward.cpp.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/batch_norm_act/tiling.h"

namespace ganfast {
namespace {

// The statistics that a forward op saved for x, in one piece.
Tensor checked_stats(const Tensor& stats, const Tensor& x, const OptionalTensor& weight,
                     std::string_view order) {
  check_input(x, 1, order);
  check_stats(stats, x);
  check_input(x, stats.size(0), order);
  check_vector("weight", weight, x);
  return stats.contiguous();
}

// The vectors that every backward kernel begins with.
Call backward_call(const Plan& plan, const Tensor& stats, int64_t split) {
  Call c = plan.call();
  set_stats(c, plan, stats, split);
  return c;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy_any, const Tensor& x_any,
                                            const std::optional<Tensor>& weight,
                                            const Tensor& stats_any, double /*eps*/, bool training,
                                            std::optional<std::string_view> activation,
                                            double negative_slope, std::string_view order,
                                            bool need_dx, bool need_affine) {
  const Tensor stats = checked_stats(stats_any, x_any, weight, order);
  check_like_x("dy", dy_any, x_any);
  const Plan plan(x_any, stats.size(0), activation, negative_slope, order, /*inputs=*/2);
  const int64_t C = plan.channels;
  const Tensor x = x_any.contiguous(plan.format);
  const Tensor dy = laid_out_like(x, dy_any, plan.format);
  Tensor dx = need_dx ? output_like(x) : at::empty({0}, x.options());
  const int64_t affine_size = need_affine ? C : 0;
  Tensor dweight = at::empty({affine_size}, stats.options());
  Tensor dbias = at::empty({affine_size}, stats.options());
  if (x.numel() == 0) return {dx, dweight.zero_(), dbias.zero_()};
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
    const double* total = sums.fold(split, plan.range(block, 0));
    auto k = plan.channels_of<BackwardChannels>(block, total, row(plan, stats, split, row_mean));
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

  with_scalar(plan, [&](auto zero) {
    using S = decltype(zero);
    S* of_weight = static_cast<S*>(dweight.mutable_data_ptr());
    S* of_bias = static_cast<S*>(dbias.mutable_data_ptr());
    std::vector<double> both(2 * affine_size, 0.0);
    for (int64_t split = 0; split < plan.splits; ++split) {
      const double* total = sums.of(split, 0);  // finish has folded the parts into it
      const S* rstd = reinterpret_cast<const S*>(row(plan, stats, split, row_rstd));
      for (int64_t c = 0; c < affine_size; ++c) {
        both[c] += total[C + c] * rstd[c];
        both[C + c] += total[c];
      }
    }
    for (int64_t c = 0; c < affine_size; ++c) {
      of_weight[c] = static_cast<S>(both[c]);
      of_bias[c] = static_cast<S>(both[C + c]);
    }
  });
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> double_backward(
    const std::optional<Tensor>& ddx_any, const std::optional<Tensor>& ddweight,
    const std::optional<Tensor>& ddbias, const Tensor& dy_any, const Tensor& x_any,
    const std::optional<Tensor>& weight, const Tensor& stats_any, double /*eps*/, bool training,
    std::optional<std::string_view> activation, double negative_slope, std::string_view order) {
  const Tensor stats = checked_stats(stats_any, x_any, weight, order);
  check_like_x("dy", dy_any, x_any);
  if (has(ddx_any)) check_like_x("ddx", *ddx_any, x_any);
  check_vector("ddweight", ddweight, x_any);
  check_vector("ddbias", ddbias, x_any);
  const Plan plan(x_any, stats.size(0), activation, negative_slope, order, /*inputs=*/3);
  const int64_t C = plan.channels;
  const Tensor x = x_any.contiguous(plan.format);
  const Tensor dy = laid_out_like(x, dy_any, plan.format);
  const Tensor ddx = has(ddx_any) ? laid_out_like(x, *ddx_any, plan.format) : at::zeros_like(x);
  const Tensor p = vector_or(plan, ddweight, 0.0, x), q = vector_or(plan, ddbias, 0.0, x);
  Tensor d_dy = output_like(x), d_x = output_like(x), d_weight = at::empty({C}, stats.options());
  if (x.numel() == 0) return {d_dy.to(dy_any.scalar_type()), d_x, d_weight.zero_()};
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
    const double* total = sums.fold(split, plan.range(block, 0));
    auto k =
        plan.channels_of<DoubleBackwardChannels>(block, total, row(plan, stats, split, row_mean));
    k.training = training;
    k.ddweight = data(p);
    k.ddbias = data(q);
    k.factors = coefficients.of(split, 0);
    k.d_weight = d_weight_of_split.data() + split * C;
    plan.kernels->double_backward_finish(k);
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

  with_scalar(plan, [&](auto zero) {
    auto* out = static_cast<decltype(zero)*>(d_weight.mutable_data_ptr());
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0;
      for (int64_t split = 0; split < plan.splits; ++split) {
        sum += d_weight_of_split[split * C + c];
      }
      out[c] = sum;
    }
  });
  return {d_dy.to(dy_any.scalar_type()), d_x, d_weight};
}

TORCH_LIBRARY_IMPL(ganfast, CPU, m) {
  m.impl("batch_norm_act_backward", &backward);
  m.impl("batch_norm_act_double_backward", &double_backward);
}

}  // namespace
}  // namespace ganfast
