// The forward ops of batch_norm_act on the CPU. The loops over elements are in kernels_impl.h,
// the mathematics in ganfast/ops/batch_norm_act/__init__.py.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "cpu/batch_norm_act/tiling.h"

namespace ganfast {
namespace {

// Moves running_mean or running_var towards the batch's. Chunk after chunk, stored in between, so
// that the bits are those of separate calls.
void update_running(const Plan& plan, const std::optional<Tensor>& running,
                    const std::vector<double>& batch, const std::vector<double>& steps,
                    double correction) {
  if (!has(running)) return;
  const bool in_place = running->scalar_type() == plan.arithmetic && running->is_contiguous();
  for (int64_t split = 0; split < plan.splits; ++split) {
    const Tensor values = in_place ? *running : running->to(plan.arithmetic).contiguous();
    const double* observed = batch.data() + split * plan.channels;
    const double step = steps[split];
    with_scalar(plan, [&](auto zero) {
      auto* value = static_cast<decltype(zero)*>(values.mutable_data_ptr());
      for (int64_t c = 0; c < plan.channels; ++c) {
        value[c] = (1 - step) * value[c] + step * (observed[c] * correction);
      }
    });
    if (!in_place) running->copy_(values);
  }
}

std::tuple<Tensor, Tensor> train(const Tensor& x_any, const std::optional<Tensor>& weight,
                                 const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& running_mean,
                                 const std::optional<Tensor>& running_var,
                                 const std::optional<Tensor>& num_batches_tracked,
                                 std::optional<double> momentum, double eps,
                                 std::optional<std::string_view> activation, double negative_slope,
                                 std::string_view order, int64_t splits) {
  check_input(x_any, splits, order);
  check_vector("weight", weight, x_any);
  check_vector("bias", bias, x_any);
  check_buffers(x_any, weight, bias, running_mean, running_var, num_batches_tracked, momentum);
  const Plan plan(x_any, splits, activation, negative_slope, order, /*inputs=*/1);
  const int64_t C = plan.channels;
  const double M = static_cast<double>(plan.values);
  const Tensor x = x_any.contiguous(plan.format);
  Tensor y = output_like(x);
  Tensor stats = at::empty({splits, 4, C}, x.options().dtype(plan.arithmetic));
  const Tensor w = vector_or(plan, weight, 1.0, x), b = vector_or(plan, bias, 0.0, x);
  if (x.numel() == 0) {  // torch counts an empty batch but learns nothing from it
    if (has(num_batches_tracked)) *num_batches_tracked->mutable_data_ptr<int64_t>() += splits;
    stats.zero_();  // 0 / 0 would come out of backward as a gradient of NaN
    stats.select(1, row_shift).copy_(b);
    return {y, stats};
  }
  std::vector<double> means(splits * C), vars(splits * C);
  Sums sums(plan, 2);
  Vectors centers(plan, 1);

  const auto call = [&](int64_t split, double* out) {
    Call c = plan.call();
    c.in[0] = data(x) + plan.offset_bytes(split);
    c.vectors[0] = centers.of(split, 0);
    c.sums = out;
    return c;
  };
  const auto guess = [&](int64_t split, int64_t block) {
    plan.kernels->guess(call(split, nullptr), plan.range(block, 0));
  };
  const auto sum_up = [&](int64_t split, int64_t block, int64_t part) {
    if (plan.parts == 1) guess(split, block);
    plan.kernels->forward_sums(call(split, sums.of(split, part)), plan.range(block, part));
  };
  const auto finish = [&](int64_t split, int64_t block) {
    const Range range = plan.range(block, 0);
    auto k = plan.channels_of<ForwardChannels>(block, sums.fold(split, range),
                                               row(plan, stats, split, row_mean));
    k.eps = eps;
    k.weight = data(w);
    k.bias = data(b);
    k.center = centers.of(split, 0);
    k.mean = means.data() + split * C;
    k.var = vars.data() + split * C;
    if (plan.kernels->forward_finish(k)) return;
    for (int64_t part = 0; part < plan.parts; ++part) {
      sums.clear(split, part, range);
      plan.kernels->forward_sums(call(split, sums.of(split, part)), plan.range(block, part));
    }
    sums.fold(split, range);
    k.take_guess = true;
    plan.kernels->forward_finish(k);
  };
  const auto map = [&](int64_t split, int64_t block, int64_t part) {
    Call c = call(split, nullptr);
    c.out[0] = mutable_data(y) + plan.offset_bytes(split);
    set_stats(c, plan, stats, split);
    plan.kernels->forward_map(c, plan.range(block, part));
  };

  if (plan.parts > 1) {
    at::parallel_for(0, splits * plan.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) guess(i / plan.blocks, i % plan.blocks);
    });
  }
  sums_then_map(plan, sum_up, finish, map);

  std::vector<double> steps(splits, momentum.value_or(0.0));
  if (has(num_batches_tracked)) {
    int64_t* count = num_batches_tracked->mutable_data_ptr<int64_t>();
    for (int64_t split = 0; split < splits; ++split) {
      *count += 1;
      if (!momentum) steps[split] = 1.0 / static_cast<double>(*count);
    }
  }
  update_running(plan, running_mean, means, steps, 1.0);
  update_running(plan, running_var, vars, steps, M / (M - 1));
  return {y, stats};
}

std::tuple<Tensor, Tensor> evaluate(const Tensor& x_any, const std::optional<Tensor>& weight,
                                    const std::optional<Tensor>& bias, const Tensor& running_mean,
                                    const Tensor& running_var, double eps,
                                    std::optional<std::string_view> activation,
                                    double negative_slope, std::string_view order) {
  check_input(x_any, 1, order);
  check_vector("weight", weight, x_any);
  check_vector("bias", bias, x_any);
  check_vector("running_mean", running_mean, x_any);
  check_vector("running_var", running_var, x_any);
  const Plan plan(x_any, 1, activation, negative_slope, order, /*inputs=*/0);
  const int64_t C = plan.channels;
  const Tensor x = x_any.contiguous(plan.format);
  Tensor y = output_like(x);
  Tensor stats = at::empty({1, 4, C}, x.options().dtype(plan.arithmetic));
  const Tensor w = vector_or(plan, weight, 1.0, x), b = vector_or(plan, bias, 0.0, x);
  const Tensor mean = vector_or(plan, running_mean, 0.0, x);
  const Tensor var = vector_or(plan, running_var, 1.0, x);
  EvaluateChannels k{};
  k.end = k.channels = C;
  k.stats = row(plan, stats, 0, row_mean);
  k.eps = eps;
  k.weight = data(w);
  k.bias = data(b);
  k.mean = data(mean);
  k.var = data(var);
  plan.kernels->evaluate_finish(k);
  Call call = plan.call();
  call.in[0] = data(x);
  call.out[0] = mutable_data(y);
  set_stats(call, plan, stats, 0);
  plan.for_each_part([&](int64_t, int64_t block, int64_t part) {
    plan.kernels->forward_map(call, plan.range(block, part));
  });
  return {y, stats};
}

TORCH_LIBRARY_IMPL(ganfast, CPU, m) {
  m.impl("batch_norm_act_train", &train);
  m.impl("batch_norm_act_eval", &evaluate);
}

}  // namespace
}  // namespace ganfast
