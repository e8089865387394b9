// Autograd for binary_cross_entropy on every device: the twin of the Python function in
// ganfast/ops/losses/bce.py.
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "autograd/nodes.h"

namespace ganfast {
namespace {

struct Constants {
  double label;
  bool from_logits;
  std::string reduction;
};

struct BinaryCrossEntropyNode : public Node {
  explicit BinaryCrossEntropyNode(Constants constants_) : constants(std::move(constants_)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list results(2);
    if (!grads[0].defined()) return results;
    const auto& [label, from_logits, reduction] = constants;
    const Tensor saved_x = x.unpack(), saved_target = target.unpack();
    const OptionalTensor w = or_none(weight.unpack()), p = or_none(pos_weight.unpack());
    if (task_should_compute_output(0)) {
      static const auto op = find<BinaryCrossEntropyBackward>();
      results[0] = call_backward(op, grads[0], saved_x, or_none(saved_target), label, w, p,
                                 from_logits, reduction);
    }
    if (saved_target.defined() && task_should_compute_output(1)) {
      static const auto op = find<BinaryCrossEntropyTargetBackward>();
      results[1] = call_backward(op, grads[0], saved_x, saved_target, w, p, from_logits, reduction);
    }
    return results;
  }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x.reset_data();
    target.reset_data();
    weight.reset_data();
    pos_weight.reset_data();
  }
  std::string name() const override { return "BinaryCrossEntropyBackward"; }

  SavedVariable x, target, weight, pos_weight;
  Constants constants;
};

Tensor forward(const Tensor& x, const OptionalTensor& target_, double label,
               const OptionalTensor& weight, const OptionalTensor& pos_weight, bool from_logits,
               std::string_view reduction) {
  const Tensor target = or_undefined(target_);
  refuse_forward_mode("binary_cross_entropy", x);
  refuse_forward_mode("binary_cross_entropy", target);
  NodePtr<BinaryCrossEntropyNode> node;
  if (compute_requires_grad(x, target)) {
    node = make_node<BinaryCrossEntropyNode>(Constants{label, from_logits, std::string(reduction)});
    node->set_next_edges(collect_next_edges(x, target));
    node->x = SavedVariable(x, false);
    node->target = SavedVariable(target, false);
    node->weight = SavedVariable(or_undefined(weight), false);
    node->pos_weight = SavedVariable(or_undefined(pos_weight), false);
  }
  Tensor y = [&] {
    static const auto op = find<BinaryCrossEntropy>();
    at::AutoDispatchBelowADInplaceOrView below;
    return op.call(x, target_, label, weight, pos_weight, from_logits, reduction);
  }();
  if (node) set_history(y, node);
  return y;
}

TORCH_LIBRARY_IMPL(ganfast, Autograd, m) { implement<BinaryCrossEntropy>(m, &forward); }

}  // namespace
}  // namespace ganfast
