// The ops of batch_norm_act on CUDA devices. The kernels are in *.cuh, the mathematics in
// ganfast/ops/batch_norm_act/__init__.py.
#include <torch/library.h>

#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <tuple>

#include "cuda/batch_norm_act/launch_config.h"
#include "cuda/host.h"

namespace ganfast {
namespace {

// A C-sized vector as kernels take it; what has strides is copied, and where it was written to,
// copied back.
class Vector {
 public:
  explicit Vector(const OptionalTensor& given) {
    if (!has(given)) return;
    original_ = *given;
    contiguous_ = original_.contiguous();
  }
  EitherVector for_kernel(const Tensor& x) const {
    if (!contiguous_.defined()) return {};
    return {contiguous_.mutable_data_ptr(), contiguous_.scalar_type() != arithmetic_type(x)};
  }
  void copy_back() const {
    if (contiguous_.defined() && !contiguous_.is_same(original_)) original_.copy_(contiguous_);
  }

 private:
  Tensor original_, contiguous_;
};

GivenActivation given_activation(OptionalString name, double slope, std::string_view order) {
  const Activation activation = parse_activation(name);
  if (activation == Activation::none) return {1.0, Activation::leaky_relu, false};
  return {slope, activation, order == "act_norm"};
}

// How a call on x is launched; its units and its form are chosen later.
Plan plan_for(const Tensor& x, int64_t splits, OptionalString activation, double slope,
              std::string_view order) {
  const int64_t images = x.size(0) * x.size(1);
  const TensorShape shape{x.size(0), x.size(1), images == 0 ? 0 : x.numel() / images,
                          static_cast<int64_t>(x.element_size()),
                          x.suggest_memory_format() != at::MemoryFormat::Contiguous};
  return {shape, splits, given_activation(activation, slope, order), device_facts(x), settings()};
}

// Statistics that kernels read in words of 16 bytes.
Tensor aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : t.clone();
}

// Memory that the kernels of one call share: doubles, tickets, and factors of the arithmetic's
// type.
struct SharedMemory {
  SharedMemory(const Plan& plan, const Tensor& x, cudaStream_t stream, int64_t sums,
               int64_t factors_of_channel)
      : tickets(x, stream, plan.tickets()) {
    const auto options = x.options().memory_format(std::nullopt);
    partials = empty_for_kernel({plan.partials(sums)}, options.dtype(at::kDouble));
    if (factors_of_channel == 0) return;
    factors = empty_for_kernel({plan.at.splits, factors_of_channel, plan.at.channels},
                               options.dtype(arithmetic_type(x)));
  }
  Workspace workspace() const { return {partials.mutable_data_ptr<double>(), tickets.first()}; }

  Tickets tickets;
  Tensor partials, factors;
};

// Whether the device can hold a cluster of the recipe's. Asking costs microseconds, so the answers
// are kept.
bool device_holds(const Recipe& recipe, const Tensor& x, bool backward) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, Activation, bool, bool, int, unsigned, bool>, bool> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace(
      {x.get_device(), static_cast<int>(x.scalar_type()), recipe.activation.activation,
       recipe.activation.act_norm, recipe.many_items, recipe.cluster, recipe.threads.x, backward});
  if (is_new) {
    entry->second = with_element("batch_norm_act", x, [&](auto* element) {
      using T = std::remove_pointer_t<decltype(element)>;
      return BatchNormActKernels<T>::fits(recipe, backward);
    });
  }
  return entry->second;
}

// Takes the form on chip where it fits, else the one in two kernels.
void choose_form(Plan& plan, const Tensor& x, bool on_chip_wanted, bool backward) {
  if (on_chip_wanted && plan.choose_on_chip() &&
      (plan.recipe.cluster == 1 || device_holds(plan.recipe, x, backward))) {
    return;
  }
  plan.choose_two_kernels();
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
  const Device device(x_any);
  Plan plan = plan_for(x_any, splits, activation, negative_slope, order);
  const at::MemoryFormat format = x_any.suggest_memory_format();
  const Tensor x = x_any.contiguous(format);
  Tensor y = empty_for_kernel_like(x);
  Tensor stats =
      empty_for_kernel({splits, 4, plan.at.channels}, x.options().dtype(arithmetic_type(x)));
  if (x.numel() == 0) {  // torch counts an empty batch but learns nothing from it
    if (has(num_batches_tracked)) num_batches_tracked->add_(splits);
    stats.zero_();
    if (has(bias)) stats.select(1, 3).copy_(*bias);
    return {y, stats};
  }
  const Vector mean(running_mean), var(running_var), w(weight), b(bias);
  ForwardCall call{};
  call.cumulative = !momentum && (has(running_mean) || has(running_var));
  with_element("batch_norm_act", x, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    plan.choose_units(unit_values<T>, {x.const_data_ptr(), y.const_data_ptr()});
    // The average over all batches needs their count before anybody adds to it: two kernels.
    choose_form(plan, x, !call.cumulative, /*backward=*/false);
    std::optional<SharedMemory> shared;
    if (plan.recipe.form == Form::two_kernels || splits > 1) {
      call.work = shared.emplace(plan, x, device.stream(), 2, 0).workspace();
    }
    call.at = plan.at;
    call.x = x.const_data_ptr();
    call.y = y.mutable_data_ptr();
    call.stats = stats.mutable_data_ptr();
    call.weight = w.for_kernel(x);
    call.bias = b.for_kernel(x);
    call.running_mean = mean.for_kernel(x);
    call.running_var = var.for_kernel(x);
    if (has(num_batches_tracked)) {
      call.num_batches_tracked = num_batches_tracked->mutable_data_ptr<int64_t>();
    }
    call.momentum = momentum.value_or(0.0);
    call.eps = eps;
    call.activation = plan.recipe.activation;
    call.training = true;
    check_launch(BatchNormActKernels<T>::forward(plan.recipe, call, device.stream()));
  });
  mean.copy_back();
  var.copy_back();
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
  const Device device(x_any);
  Plan plan = plan_for(x_any, 1, activation, negative_slope, order);
  const at::MemoryFormat format = x_any.suggest_memory_format();
  const Tensor x = x_any.contiguous(format);
  Tensor y = empty_for_kernel_like(x);
  Tensor stats = empty_for_kernel({1, 4, plan.at.channels}, x.options().dtype(arithmetic_type(x)));
  if (x.numel() == 0) {  // no kernel has anything to do, but the statistics are known
    const Tensor known = running_mean.to(arithmetic_type(x));
    const Tensor rstd = running_var.to(arithmetic_type(x)).add(eps).rsqrt();
    const Tensor scale = has(weight) ? rstd.mul(weight->to(arithmetic_type(x))) : rstd;
    stats.select(1, 0).copy_(known);
    stats.select(1, 1).copy_(rstd);
    stats.select(1, 2).copy_(scale);
    stats.select(1, 3).zero_();
    if (has(bias)) stats.select(1, 3).copy_(*bias);
    return {y, stats};
  }
  const Vector mean(running_mean), var(running_var), w(weight), b(bias);
  with_element("batch_norm_act", x, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    plan.choose_units(unit_values<T>, {x.const_data_ptr(), y.const_data_ptr()});
    plan.choose_two_kernels();  // of which only the second runs
    ForwardCall call{};
    call.at = plan.at;
    call.x = x.const_data_ptr();
    call.y = y.mutable_data_ptr();
    call.stats = stats.mutable_data_ptr();
    call.weight = w.for_kernel(x);
    call.bias = b.for_kernel(x);
    call.running_mean = mean.for_kernel(x);
    call.running_var = var.for_kernel(x);
    call.eps = eps;
    call.activation = plan.recipe.activation;
    check_launch(BatchNormActKernels<T>::evaluate(plan.recipe, call, device.stream()));
  });
  return {y, stats};
}

ThreeTensors backward(const Tensor& dy_any, const Tensor& x_any, const OptionalTensor& weight,
                      const Tensor& stats_any, double /*eps*/, bool training,
                      OptionalString activation, double negative_slope, std::string_view order,
                      bool need_dx, bool need_affine) {
  const Tensor stats = aligned(checked_stats(stats_any, x_any, weight, order));
  check_like_x("dy", dy_any, x_any);
  const Device device(x_any);
  Plan plan = plan_for(x_any, stats.size(0), activation, negative_slope, order);
  const at::MemoryFormat format = x_any.suggest_memory_format();
  const Tensor x = x_any.contiguous(format);
  const Tensor dy = laid_out_like(x, dy_any, format);
  Tensor dx = need_dx ? empty_for_kernel_like(x) : at::empty({0}, x.options());
  const int64_t affine_size = need_affine ? plan.at.channels : 0;
  Tensor dweight = empty_for_kernel({affine_size}, stats.options());
  Tensor dbias = empty_for_kernel({affine_size}, stats.options());
  if (x.numel() == 0) return {dx, dweight.zero_(), dbias.zero_()};
  if (!need_dx && !need_affine) return {dx, dweight, dbias};
  with_element("batch_norm_act", x, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    plan.choose_units(unit_values<T>,
                      {x.const_data_ptr(), dy.const_data_ptr(), dx.const_data_ptr()});
    choose_form(plan, x, training, /*backward=*/true);
    BackwardCall call{};
    std::optional<SharedMemory> shared;
    const bool two_kernels = plan.recipe.form == Form::two_kernels;
    if (two_kernels ? training || need_affine : need_affine && stats.size(0) > 1) {
      call.work = shared.emplace(plan, x, device.stream(), 2, two_kernels ? 2 : 0).workspace();
      if (two_kernels) call.factors = shared->factors.mutable_data_ptr();
    }
    call.at = plan.at;
    call.x = x.const_data_ptr();
    call.dy = dy.const_data_ptr();
    call.dx = need_dx ? dx.mutable_data_ptr() : nullptr;
    call.stats = stats.const_data_ptr();
    call.dweight = need_affine ? dweight.mutable_data_ptr() : nullptr;
    call.dbias = need_affine ? dbias.mutable_data_ptr() : nullptr;
    call.activation = plan.recipe.activation;
    call.training = training;
    check_launch(BatchNormActKernels<T>::backward(plan.recipe, call, device.stream()));
  });
  return {dx, dweight, dbias};
}

ThreeTensors double_backward(const OptionalTensor& ddx_any, const OptionalTensor& ddweight,
                             const OptionalTensor& ddbias, const Tensor& dy_any,
                             const Tensor& x_any, const OptionalTensor& weight,
                             const Tensor& stats_any, double /*eps*/, bool training,
                             OptionalString activation, double negative_slope,
                             std::string_view order) {
  const Tensor stats = aligned(checked_stats(stats_any, x_any, weight, order));
  check_like_x("dy", dy_any, x_any);
  if (has(ddx_any)) check_like_x("ddx", *ddx_any, x_any);
  check_vector("ddweight", ddweight, x_any);
  check_vector("ddbias", ddbias, x_any);
  const Device device(x_any);
  Plan plan = plan_for(x_any, stats.size(0), activation, negative_slope, order);
  const at::MemoryFormat format = x_any.suggest_memory_format();
  const Tensor x = x_any.contiguous(format);
  const Tensor dy = laid_out_like(x, dy_any, format);
  const Tensor ddx = has(ddx_any) ? laid_out_like(x, *ddx_any, format) : Tensor();
  const auto vector_of = [&](const OptionalTensor& t) {
    return Vector(has(t) ? OptionalTensor(t->to(arithmetic_type(x))) : std::nullopt);
  };
  const Vector p = vector_of(ddweight), q = vector_of(ddbias);
  Tensor d_dy = empty_for_kernel_like(x), d_x = empty_for_kernel_like(x);
  Tensor d_weight = empty_for_kernel({plan.at.channels}, stats.options());
  if (x.numel() == 0) return {d_dy.to(dy_any.scalar_type()), d_x, d_weight.zero_()};
  with_element("batch_norm_act", x, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const void* of_ddx = ddx.defined() ? ddx.const_data_ptr() : nullptr;
    plan.choose_units(double_backward_unit_values<T>,
                      {x.const_data_ptr(), dy.const_data_ptr(), of_ddx, d_dy.const_data_ptr(),
                       d_x.const_data_ptr()});
    plan.choose_two_kernels();
    const SharedMemory shared(plan, x, device.stream(), 5, 5);
    DoubleBackwardCall call{};
    call.at = plan.at;
    call.x = x.const_data_ptr();
    call.dy = dy.const_data_ptr();
    call.ddx = of_ddx;
    call.d_dy = d_dy.mutable_data_ptr();
    call.d_x = d_x.mutable_data_ptr();
    call.stats = stats.const_data_ptr();
    call.ddweight = p.for_kernel(x);
    call.ddbias = q.for_kernel(x);
    call.d_weight = d_weight.mutable_data_ptr();
    call.work = shared.workspace();
    call.factors = shared.factors.mutable_data_ptr();
    call.activation = plan.recipe.activation;
    call.training = training;
    check_launch(BatchNormActKernels<T>::double_backward(plan.recipe, call, device.stream()));
  });
  return {d_dy.to(dy_any.scalar_type()), d_x, d_weight};
}

TORCH_LIBRARY_IMPL(ganfast, GANFAST_CUDA_KEY, m) {
  implement<BatchNormActTrainKernel>(m, &train);
  implement<BatchNormActEval>(m, &evaluate);
  implement<BatchNormActBackward>(m, &backward);
  implement<BatchNormActDoubleBackward>(m, &double_backward);
}

}  // namespace
}  // namespace ganfast
