// Autograd for the batch_norm_act ops on every device: the twin of the Python functions in
// ganfast/ops/batch_norm_act/__init__.py, at about two thirds of their host time for a forward and
// backward call.
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "autograd/nodes.h"

namespace ganfast {
namespace {

// The arguments that every derivative of one call shares.
struct Constants {
  double eps;
  bool training;
  std::optional<std::string> activation;
  double negative_slope;
  std::string order;

  Constants(double eps_, bool training_, OptionalString activation_, double slope,
            std::string_view order_)
      : eps(eps_), training(training_), negative_slope(slope), order(order_) {
    if (activation_) activation.emplace(*activation_);
  }
  OptionalString activation_view() const {
    return activation ? OptionalString(*activation) : std::nullopt;
  }
};

struct BatchNormActDoubleBackwardNode : public Node {
  explicit BatchNormActDoubleBackwardNode(Constants constants_)
      : constants(std::move(constants_)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return variable_list(3);
    static const auto op = find<BatchNormActDoubleBackward>();
    auto [d_dy, d_x, d_weight] =
        op.call(or_none(grads[0]), or_none(grads[1]), or_none(grads[2]), dy.unpack(), x.unpack(),
                or_none(weight.unpack()), stats.unpack(), constants.eps, constants.training,
                constants.activation_view(), constants.negative_slope, constants.order);
    if (!task_should_compute_output(2)) d_weight = Tensor();
    return {d_dy, d_x, d_weight};
  }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    dy.reset_data();
    x.reset_data();
    weight.reset_data();
    stats.reset_data();
  }
  std::string name() const override { return "BatchNormActDoubleBackward"; }

  SavedVariable dy, x, weight, stats;
  Constants constants;
};

struct BatchNormActBackwardNode : public Node {
  explicit BatchNormActBackwardNode(Constants constants_) : constants(std::move(constants_)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(3);
    static const auto op = find<BatchNormActBackward>();
    const bool need_dx = task_should_compute_output(0);
    const bool need_weight = task_should_compute_output(1);
    const bool need_bias = task_should_compute_output(2);
    auto [dx, dweight, dbias] =
        op.call(grads[0], x.unpack(), or_none(weight.unpack()), stats.unpack(), constants.eps,
                constants.training, constants.activation_view(), constants.negative_slope,
                constants.order, need_dx, need_weight || need_bias);
    return {need_dx ? dx : Tensor(), need_weight ? dweight : Tensor(),
            need_bias ? dbias : Tensor()};
  }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x.reset_data();
    weight.reset_data();
    stats.reset_data();
  }
  std::string name() const override { return "BatchNormActBackward"; }

  SavedVariable x, weight, stats;
  Constants constants;
};

// Runs `forward` below autograd and ties its first result to a BatchNormActBackwardNode node.
template <typename Forward>
TwoTensors record(const Tensor& x, const OptionalTensor& weight_, const OptionalTensor& bias_,
                  Constants constants, const Forward& forward) {
  const Tensor weight = or_undefined(weight_), bias = or_undefined(bias_);
  refuse_forward_mode("batch_norm_act", x);
  refuse_forward_mode("batch_norm_act", weight);
  refuse_forward_mode("batch_norm_act", bias);
  NodePtr<BatchNormActBackwardNode> node;
  if (compute_requires_grad(x, weight, bias)) {
    node = make_node<BatchNormActBackwardNode>(std::move(constants));
    node->set_next_edges(collect_next_edges(x, weight, bias));
    node->x = SavedVariable(x, false);
    node->weight = SavedVariable(weight, false);
  }
  auto results = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward();
  }();
  if (node) {
    node->stats = SavedVariable(std::get<1>(results), false);
    set_history(std::get<0>(results), node);
  }
  return results;
}

// As torch: statistics are constants of the op, so a gradient for them would be lost.
void refuse_gradient(const char* name, const OptionalTensor& buffer) {
  TORCH_CHECK(!buffer || !compute_requires_grad(*buffer),
              "batch_norm_act is not differentiable with "
              "respect to ",
              name, ": give ", name, ".detach()");
}

void bump_version(const OptionalTensor& buffer) {
  if (buffer && buffer->defined() && !buffer->is_inference()) {
    buffer->unsafeGetTensorImpl()->bump_version();
  }
}

TwoTensors train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& running_mean, const OptionalTensor& running_var,
                 const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                 double eps, OptionalString activation, double negative_slope,
                 std::string_view order, c10::SymInt splits) {
  static const auto op = find<BatchNormActTrain>();
  refuse_gradient("running_mean", running_mean);
  refuse_gradient("running_var", running_var);
  bump_version(running_mean);
  bump_version(running_var);
  bump_version(num_batches_tracked);
  return record(x, weight, bias, {eps, true, activation, negative_slope, order}, [&] {
    return op.call(x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps,
                   activation, negative_slope, order, splits);
  });
}

TwoTensors evaluate(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                    const Tensor& running_mean, const Tensor& running_var, double eps,
                    OptionalString activation, double negative_slope, std::string_view order) {
  static const auto op = find<BatchNormActEval>();
  refuse_gradient("running_mean", running_mean);
  refuse_gradient("running_var", running_var);
  return record(x, weight, bias, {eps, false, activation, negative_slope, order}, [&] {
    return op.call(x, weight, bias, running_mean, running_var, eps, activation, negative_slope,
                   order);
  });
}

ThreeTensors backward(const Tensor& dy, const Tensor& x, const OptionalTensor& weight_,
                      const Tensor& stats, double eps, bool training, OptionalString activation,
                      double negative_slope, std::string_view order, bool need_dx,
                      bool need_affine) {
  static const auto op = find<BatchNormActBackward>();
  const Tensor weight = or_undefined(weight_);
  NodePtr<BatchNormActDoubleBackwardNode> node;
  if (compute_requires_grad(dy, x, weight)) {
    node = make_node<BatchNormActDoubleBackwardNode>(
        Constants{eps, training, activation, negative_slope, order});
    node->set_next_edges(collect_next_edges(dy, x, weight));
    node->dy = SavedVariable(dy, false);
    node->x = SavedVariable(x, false);
    node->weight = SavedVariable(weight, false);
    node->stats = SavedVariable(stats, false);
  }
  auto results = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return op.call(dy, x, weight_, stats, eps, training, activation, negative_slope, order, need_dx,
                   need_affine);
  }();
  if (node) {
    set_history(std::get<0>(results), node);
    set_history(std::get<1>(results), node);
    set_history(std::get<2>(results), node);
  }
  return results;
}

TORCH_LIBRARY_IMPL(ganfast, Autograd, m) {
  implement<BatchNormActTrain>(m, &train);
  implement<BatchNormActEval>(m, &evaluate);
  implement<BatchNormActBackward>(m, &backward);
}

}  // namespace
}  // namespace ganfast
