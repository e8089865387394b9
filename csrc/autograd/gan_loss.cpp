// Autograd for gan_loss on every device: the twin of the Python function in
// ganfast/ops/losses/gan.py.
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "autograd/nodes.h"

namespace ganfast {
namespace {

struct Constants {
  std::string form;
  double real_label, fake_label;
  int64_t splits;
};

struct GanLossNode : public Node {
  explicit GanLossNode(Constants constants_) : constants(std::move(constants_)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(2);
    static const auto op = find<GanLossBackward>();
    const bool need_real = task_should_compute_output(0);
    const Tensor saved_fake = fake.unpack();
    const bool need_fake = saved_fake.defined() && task_should_compute_output(1);
    auto [dreal, dfake] = call_backward(op, grads[0], real.unpack(), or_none(saved_fake),
                                        constants.form, constants.real_label, constants.fake_label,
                                        constants.splits, need_real, need_fake);
    return {need_real ? dreal : Tensor(), need_fake ? dfake : Tensor()};
  }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    real.reset_data();
    fake.reset_data();
  }
  std::string name() const override { return "GanLossBackward"; }

  SavedVariable real, fake;
  Constants constants;
};

ThreeTensors forward(const Tensor& real, const OptionalTensor& fake_, std::string_view form,
                     double real_label, double fake_label, int64_t splits) {
  const Tensor fake = or_undefined(fake_);
  refuse_forward_mode("gan_loss", real);
  refuse_forward_mode("gan_loss", fake);
  NodePtr<GanLossNode> node;
  if (compute_requires_grad(real, fake)) {
    node = make_node<GanLossNode>(Constants{std::string(form), real_label, fake_label, splits});
    node->set_next_edges(collect_next_edges(real, fake));
    node->real = SavedVariable(real, false);
    node->fake = SavedVariable(fake, false);
  }
  auto results = [&] {
    static const auto op = find<GanLoss>();
    at::AutoDispatchBelowADInplaceOrView below;
    return op.call(real, fake_, form, real_label, fake_label, splits);
  }();
  if (node) set_history(std::get<0>(results), node);
  return results;
}

TORCH_LIBRARY_IMPL(ganfast, Autograd, m) { implement<GanLoss>(m, &forward); }

}  // namespace
}  // namespace ganfast
