// The backward and double backward ops of batch_norm_act on the CPU; see forward.cpp.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>

#include "common/signatures.h"
#include "cpu/batch_norm_act/tiling.h"

namespace ganfast {
namespace {

// The vectors that every backward kernel begins with.
Call backward_call(const Tiling& tiling, const Tensor& stats, int64_t split) {
  Call c = tiling.call();
  set_stats(c, tiling, stats, split);
  return c;
}

ThreeTensors backward(const Tensor& dy_any, const Tensor& x_any, const OptionalTensor& weight,
                      const Tensor& stats_any, double /*eps*/, bool training,
                      OptionalString activation, double negative_slope, std::string_view order,
                      bool need_dx, bool need_affine) {
  const Tensor stats = checked_stats(stats_any, x_any, weight, order);
  check_like_x("dy", dy_any, x_any);
  const Tiling tiling(x_any, stats.size(0), activation, negative_slope, order, /*inputs=*/2);
  const int64_t C = tiling.channels;
  const Tensor x = x_any.contiguous(tiling.format);
  const Tensor dy = laid_out_like(x, dy_any, tiling.format);
  Tensor dx = need_dx ? output_like(x) : at::empty({0}, x.options());
  const int64_t affine_size = need_affine ? C : 0;
  Tensor dweight = at::empty({affine_size}, stats.options());
  Tensor dbias = at::empty({affine_size}, stats.options());
  if (x.numel() == 0) return {dx, dweight.zero_(), dbias.zero_()};
  Sums sums(tiling, 2);
  Vectors coefficients(tiling, 2);

  const auto call = [&](int64_t split, int64_t part) {
    Call c = backward_call(tiling, stats, split);
    c.in[0] = data(x) + tiling.offset_bytes(split);
    c.in[1] = data(dy) + tiling.offset_bytes(split);
    c.sums = sums.of(split, part);
    return c;
  };
  const auto sum_up = [&](int64_t split, int64_t block, int64_t part) {
    tiling.kernels->backward_sums(call(split, part), tiling.range(block, part));
  };
  const auto finish = [&](int64_t split, int64_t block) {
    const double* total = sums.fold(split, tiling.range(block, 0));
    auto k =
        tiling.channels_of<BackwardChannels>(block, total, row(tiling, stats, split, row_mean));
    k.factors = coefficients.of(split, 0);
    tiling.kernels->backward_finish(k);
  };
  const auto map = [&](int64_t split, int64_t block, int64_t part) {
    if (!need_dx) return;
    Call c = call(split, part);
    c.out[0] = mutable_data(dx) + tiling.offset_bytes(split);
    c.vectors[3] = coefficients.of(split, 0);
    c.vectors[4] = coefficients.of(split, 1);
    const Kernel kernel =
        training ? tiling.kernels->backward_map : tiling.kernels->backward_map_eval;
    kernel(c, tiling.range(block, part));
  };
  if (training || need_affine) {
    sums_then_map(tiling, sum_up, finish, map);
  } else {
    tiling.for_each_part(map);
  }

  with_scalar(tiling, [&](auto zero) {
    using S = decltype(zero);
    S* of_weight = static_cast<S*>(dweight.mutable_data_ptr());
    S* of_bias = static_cast<S*>(dbias.mutable_data_ptr());
    std::vector<double> both(2 * affine_size, 0.0);
    for (int64_t split = 0; split < tiling.splits; ++split) {
      const double* total = sums.of(split, 0);  // finish has folded the parts into it
      const S* rstd = reinterpret_cast<const S*>(row(tiling, stats, split, row_rstd));
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

ThreeTensors double_backward(const OptionalTensor& ddx_any, const OptionalTensor& ddweight,
                             const OptionalTensor& ddbias, const Tensor& dy_any,
                             const Tensor& x_any, const OptionalTensor& weight,
                             const Tensor& stats_any, double /*eps*/, bool training,
                             OptionalString activation, double negative_slope,
                             std::string_view order) {
  const Tensor stats = checked_stats(stats_any, x_any, weight, order);
  check_like_x("dy", dy_any, x_any);
  if (has(ddx_any)) check_like_x("ddx", *ddx_any, x_any);
  check_vector("ddweight", ddweight, x_any);
  check_vector("ddbias", ddbias, x_any);
  const Tiling tiling(x_any, stats.size(0), activation, negative_slope, order, /*inputs=*/3);
  const int64_t C = tiling.channels;
  const Tensor x = x_any.contiguous(tiling.format);
  const Tensor dy = laid_out_like(x, dy_any, tiling.format);
  const Tensor ddx = has(ddx_any) ? laid_out_like(x, *ddx_any, tiling.format) : at::zeros_like(x);
  const Tensor p = vector_or(tiling, ddweight, 0.0, x), q = vector_or(tiling, ddbias, 0.0, x);
  Tensor d_dy = output_like(x), d_x = output_like(x), d_weight = at::empty({C}, stats.options());
  if (x.numel() == 0) return {d_dy.to(dy_any.scalar_type()), d_x, d_weight.zero_()};
  std::vector<double> d_weight_of_split(tiling.splits * C);
  Sums sums(tiling, 5);
  Vectors coefficients(tiling, 5);

  const auto call = [&](int64_t split, int64_t part) {
    Call c = backward_call(tiling, stats, split);
    c.in[0] = data(x) + tiling.offset_bytes(split);
    c.in[1] = data(dy) + tiling.offset_bytes(split);
    c.in[2] = data(ddx) + tiling.offset_bytes(split);
    c.sums = sums.of(split, part);
    return c;
  };
  const auto sum_up = [&](int64_t split, int64_t block, int64_t part) {
    tiling.kernels->double_backward_sums(call(split, part), tiling.range(block, part));
  };
  const auto finish = [&](int64_t split, int64_t block) {
    const double* total = sums.fold(split, tiling.range(block, 0));
    auto k = tiling.channels_of<DoubleBackwardChannels>(block, total,
                                                        row(tiling, stats, split, row_mean));
    k.training = training;
    k.ddweight = data(p);
    k.ddbias = data(q);
    k.factors = coefficients.of(split, 0);
    k.d_weight = d_weight_of_split.data() + split * C;
    tiling.kernels->double_backward_finish(k);
  };
  const auto map = [&](int64_t split, int64_t block, int64_t part) {
    Call c = call(split, part);
    c.out[0] = mutable_data(d_dy) + tiling.offset_bytes(split);
    c.out[1] = mutable_data(d_x) + tiling.offset_bytes(split);
    for (int64_t i = 0; i < 5; ++i) c.vectors[3 + i] = coefficients.of(split, i);
    const Kernel kernel =
        training ? tiling.kernels->double_backward_map : tiling.kernels->double_backward_map_eval;
    kernel(c, tiling.range(block, part));
  };
  sums_then_map(tiling, sum_up, finish, map);

  with_scalar(tiling, [&](auto zero) {
    auto* out = static_cast<decltype(zero)*>(d_weight.mutable_data_ptr());
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0;
      for (int64_t split = 0; split < tiling.splits; ++split) {
        sum += d_weight_of_split[split * C + c];
      }
      out[c] = sum;
    }
  });
  return {d_dy.to(dy_any.scalar_type()), d_x, d_weight};
}

TORCH_LIBRARY_IMPL(ganfast, CPU, m) {
  implement<BatchNormActBackward>(m, &backward);
  implement<BatchNormActDoubleBackward>(m, &double_backward);
}

}  // namespace
}  // namespace ganfast
