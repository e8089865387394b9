// Autograd for the batch_norm_act ops on every device: the twin of the Python functions in
// ganfast/ops/batch_norm_act/__init__.py, at about two thirds of their host time for a forward and
// backward call. Nodes are written out, rather than torch::autograd::Function, because that class
// refuses torch.func's transforms.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace ganfast {
namespace {

using at::Tensor;
using torch::autograd::collect_next_edges;
using torch::autograd::compute_requires_grad;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::set_history;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using OptionalString = std::optional<std::string_view>;

using Train = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&,
                                         std::optional<double>, double, OptionalString, double,
                                         std::string_view, int64_t);
using Evaluate = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                            const OptionalTensor&, const Tensor&, const Tensor&,
                                            double, OptionalString, double, std::string_view);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                    const OptionalTensor&, const Tensor&, double,
                                                    bool, OptionalString, double, std::string_view,
                                                    bool, bool);
using DoubleBackward = std::tuple<Tensor, Tensor, Tensor>(const OptionalTensor&,
                                                          const OptionalTensor&,
                                                          const OptionalTensor&, const Tensor&,
                                                          const Tensor&, const OptionalTensor&,
                                                          const Tensor&, double, bool,
                                                          OptionalString, double, std::string_view);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

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

// torch counts references to nodes with intrusive_ptr from 2.15 or so on, with shared_ptr before.
template <typename N>
inline constexpr bool counts_itself = std::is_base_of_v<c10::intrusive_ptr_target, N>;
template <typename N>
using NodePtr = std::conditional_t<counts_itself<N>, c10::intrusive_ptr<N>, std::shared_ptr<N>>;

template <typename N>
NodePtr<N> make_node(Constants constants) {
  if constexpr (counts_itself<N>) {
    return c10::make_intrusive<N>(std::move(constants));
  } else {
    return NodePtr<N>(new N(std::move(constants)), [](N* node) { deleteNode(node); });
  }
}

Tensor or_undefined(const OptionalTensor& t) { return t ? *t : Tensor(); }

OptionalTensor or_none(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

void refuse_forward_mode(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t.defined() || !t._fw_grad(0).defined(),
                              "ganfast's batch_norm_act has no forward-mode derivative; use "
                              "reverse mode, or ganfast.unfuse the model first");
}

struct BatchNormActDoubleBackward : public Node {
  explicit BatchNormActDoubleBackward(Constants constants_) : constants(std::move(constants_)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return variable_list(3);
    static const auto op = find<DoubleBackward>("ganfast::batch_norm_act_double_backward");
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

struct BatchNormActBackward : public Node {
  explicit BatchNormActBackward(Constants constants_) : constants(std::move(constants_)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(3);
    static const auto op = find<Backward>("ganfast::batch_norm_act_backward");
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

// Runs `forward` below autograd and ties its first result to a BatchNormActBackward node.
template <typename Forward>
std::tuple<Tensor, Tensor> record(const Tensor& x, const OptionalTensor& weight_,
                                  const OptionalTensor& bias_, Constants constants,
                                  const Forward& forward) {
  const Tensor weight = or_undefined(weight_), bias = or_undefined(bias_);
  refuse_forward_mode(x);
  refuse_forward_mode(weight);
  refuse_forward_mode(bias);
  NodePtr<BatchNormActBackward> node;
  if (compute_requires_grad(x, weight, bias)) {
    node = make_node<BatchNormActBackward>(std::move(constants));
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

void bump_version(const OptionalTensor& buffer) {
  if (buffer && buffer->defined() && !buffer->is_inference()) {
    buffer->unsafeGetTensorImpl()->bump_version();
  }
}

std::tuple<Tensor, Tensor> train(const Tensor& x, const OptionalTensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& running_mean,
                                 const OptionalTensor& running_var,
                                 const OptionalTensor& num_batches_tracked,
                                 std::optional<double> momentum, double eps,
                                 OptionalString activation, double negative_slope,
                                 std::string_view order, int64_t splits) {
  static const auto op = find<Train>("ganfast::batch_norm_act_train");
  bump_version(running_mean);
  bump_version(running_var);
  bump_version(num_batches_tracked);
  return record(x, weight, bias, {eps, true, activation, negative_slope, order}, [&] {
    return op.call(x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps,
                   activation, negative_slope, order, splits);
  });
}

std::tuple<Tensor, Tensor> evaluate(const Tensor& x, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const Tensor& running_mean,
                                    const Tensor& running_var, double eps,
                                    OptionalString activation, double negative_slope,
                                    std::string_view order) {
  static const auto op = find<Evaluate>("ganfast::batch_norm_act_eval");
  return record(x, weight, bias, {eps, false, activation, negative_slope, order}, [&] {
    return op.call(x, weight, bias, running_mean, running_var, eps, activation, negative_slope,
                   order);
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy, const Tensor& x,
                                            const OptionalTensor& weight_, const Tensor& stats,
                                            double eps, bool training, OptionalString activation,
                                            double negative_slope, std::string_view order,
                                            bool need_dx, bool need_affine) {
  static const auto op = find<Backward>("ganfast::batch_norm_act_backward");
  const Tensor weight = or_undefined(weight_);
  NodePtr<BatchNormActDoubleBackward> node;
  if (compute_requires_grad(dy, x, weight)) {
    node =
        make_node<BatchNormActDoubleBackward>({eps, training, activation, negative_slope, order});
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
  m.impl("batch_norm_act_train", &train);
  m.impl("batch_norm_act_eval", &evaluate);
  m.impl("batch_norm_act_backward", &backward);
}

}  // namespace
}  // namespace ganfast
