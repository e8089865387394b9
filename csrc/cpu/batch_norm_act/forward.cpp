// The forward ops of batch_norm_act on the CPU. The loops over elements are in kernels_impl.h,
// the mathematics in ganfast/ops/batch_norm_act/__init__.py.
#include <ATen/ops/empty.h>

#include <cmath>
#include <tuple>

#include "common/signatures.h"
#include "cpu/batch_norm_act/tiling.h"

namespace ganfast {
namespace {

// Counts a call's batches; returns the weight of each in the running statistics.
std::vector<double> count_batches(const OptionalTensor& num_batches_tracked, int64_t splits,
                                  std::optional<double> momentum) {
  std::vector<double> steps(splits, momentum.value_or(0.0));
  if (!has(num_batches_tracked)) return steps;
  int64_t* count = num_batches_tracked->mutable_data_ptr<int64_t>();
  for (double& step : steps) {
    *count += 1;
    if (!momentum) step = 1.0 / static_cast<double>(*count);
  }
  return steps;
}

// Moves running_mean or running_var towards the batch's. Chunk after chunk, stored in between, so
// that the bits are those of separate calls.
void update_running(const Tiling& tiling, const OptionalTensor& running,
                    const std::vector<double>& batch, const std::vector<double>& steps,
                    double correction) {
  if (!has(running)) return;
  const bool in_place = running->scalar_type() == tiling.arithmetic && running->is_contiguous();
  for (int64_t split = 0; split < tiling.splits; ++split) {
    const Tensor values = in_place ? *running : running->to(tiling.arithmetic).contiguous();
    const double* observed = batch.data() + split * tiling.channels;
    const double step = steps[split];
    with_scalar(tiling, [&](auto zero) {
      auto* value = static_cast<decltype(zero)*>(values.mutable_data_ptr());
      for (int64_t c = 0; c < tiling.channels; ++c) {
        value[c] = (1 - step) * value[c] + step * (observed[c] * correction);
      }
    });
    if (!in_place) running->copy_(values);
  }
}

TwoTensors train(const Tensor& x_any, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& running_mean, const OptionalTensor& running_var,
                 const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                 double eps, OptionalString activation, double negative_slope,
                 std::string_view order, int64_t splits) {
  check_input(x_any, splits, order);
  check_vector("weight", weight, x_any);
  check_vector("bias", bias, x_any);
  check_buffers(x_any, weight, bias, running_mean, running_var, num_batches_tracked, momentum);
  const Tiling tiling(x_any, splits, activation, negative_slope, order, /*inputs=*/1);
  const int64_t C = tiling.channels;
  const double M = static_cast<double>(tiling.values);
  const Tensor x = x_any.contiguous(tiling.format);
  Tensor y = output_like(x);
  Tensor stats = at::empty({splits, 4, C}, x.options().dtype(tiling.arithmetic));
  const Tensor w = vector_or(tiling, weight, 1.0, x), b = vector_or(tiling, bias, 0.0, x);
  if (x.numel() == 0) {  // torch counts an empty batch but learns nothing from it
    if (has(num_batches_tracked)) *num_batches_tracked->mutable_data_ptr<int64_t>() += splits;
    stats.zero_();  // 0 / 0 would come out of backward as a gradient of NaN
    stats.select(1, row_shift).copy_(b);
    return {y, stats};
  }
  std::vector<double> means(splits * C), vars(splits * C);
  Sums sums(tiling, 2);
  Vectors centers(tiling, 1);

  const auto call = [&](int64_t split, double* out) {
    Call c = tiling.call();
    c.in[0] = data(x) + tiling.offset_bytes(split);
    c.vectors[0] = centers.of(split, 0);
    c.sums = out;
    return c;
  };
  const auto guess = [&](int64_t split, int64_t block) {
    tiling.kernels->guess(call(split, nullptr), tiling.range(block, 0));
  };
  const auto sum_up = [&](int64_t split, int64_t block, int64_t part) {
    if (tiling.parts == 1) guess(split, block);
    tiling.kernels->forward_sums(call(split, sums.of(split, part)), tiling.range(block, part));
  };
  const auto finish = [&](int64_t split, int64_t block) {
    const Range range = tiling.range(block, 0);
    auto k = tiling.channels_of<ForwardChannels>(block, sums.fold(split, range),
                                                 row(tiling, stats, split, row_mean));
    k.eps = eps;
    k.weight = data(w);
    k.bias = data(b);
    k.center = centers.of(split, 0);
    k.mean = means.data() + split * C;
    k.var = vars.data() + split * C;
    if (tiling.kernels->forward_finish(k)) return;
    for (int64_t part = 0; part < tiling.parts; ++part) {
      sums.clear(split, part, range);
      tiling.kernels->forward_sums(call(split, sums.of(split, part)), tiling.range(block, part));
    }
    sums.fold(split, range);
    k.take_guess = true;
    tiling.kernels->forward_finish(k);
  };
  const auto map = [&](int64_t split, int64_t block, int64_t part) {
    Call c = call(split, nullptr);
    c.out[0] = mutable_data(y) + tiling.offset_bytes(split);
    set_stats(c, tiling, stats, split);
    tiling.kernels->forward_map(c, tiling.range(block, part));
  };

  if (tiling.parts > 1) {
    at::parallel_for(0, splits * tiling.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) guess(i / tiling.blocks, i % tiling.blocks);
    });
  }
  sums_then_map(tiling, sum_up, finish, map);

  const std::vector<double> steps = count_batches(num_batches_tracked, splits, momentum);
  update_running(tiling, running_mean, means, steps, 1.0);
  update_running(tiling, running_var, vars, steps, M / (M - 1));
  return {y, stats};
}

TwoTensors evaluate(const Tensor& x_any, const OptionalTensor& weight, const OptionalTensor& bias,
                    const Tensor& running_mean, const Tensor& running_var, double eps,
                    OptionalString activation, double negative_slope, std::string_view order) {
  check_input(x_any, 1, order);
  check_vector("weight", weight, x_any);
  check_vector("bias", bias, x_any);
  check_vector("running_mean", running_mean, x_any);
  check_vector("running_var", running_var, x_any);
  const Tiling tiling(x_any, 1, activation, negative_slope, order, /*inputs=*/0);
  const int64_t C = tiling.channels;
  const Tensor x = x_any.contiguous(tiling.format);
  Tensor y = output_like(x);
  Tensor stats = at::empty({1, 4, C}, x.options().dtype(tiling.arithmetic));
  const Tensor w = vector_or(tiling, weight, 1.0, x), b = vector_or(tiling, bias, 0.0, x);
  const Tensor mean = vector_or(tiling, running_mean, 0.0, x);
  const Tensor var = vector_or(tiling, running_var, 1.0, x);
  EvaluateChannels k{};
  k.end = k.channels = C;
  k.stats = row(tiling, stats, 0, row_mean);
  k.eps = eps;
  k.weight = data(w);
  k.bias = data(b);
  k.mean = data(mean);
  k.var = data(var);
  tiling.kernels->evaluate_finish(k);
  Call call = tiling.call();
  call.in[0] = data(x);
  call.out[0] = mutable_data(y);
  set_stats(call, tiling, stats, 0);
  tiling.for_each_part([&](int64_t, int64_t block, int64_t part) {
    tiling.kernels->forward_map(call, tiling.range(block, part));
  });
  return {y, stats};
}

TORCH_LIBRARY_IMPL(ganfast, CPU, m) {
  implement<BatchNormActTrainKernel>(m, &train);
  implement<BatchNormActEval>(m, &evaluate);
}

}  // namespace
}  // namespace ganfast
