// The arguments and results of the ops, as their schemas in ganfast/ops have them: what kernels are
// registered with, and what autograd calls them by. An op's function that differs does not compile.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

namespace ganfast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalString = std::optional<std::string_view>;
using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

// Autograd passes `splits` on as it comes, a symbol in graphs; kernels are given its value.
template <typename Int>
struct BatchNormActTrainOf {
  static constexpr auto name = "ganfast::batch_norm_act_train";
  using Signature = TwoTensors(const Tensor& x, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& running_mean,
                               const OptionalTensor& running_var,
                               const OptionalTensor& num_batches_tracked,
                               std::optional<double> momentum, double eps,
                               OptionalString activation, double negative_slope,
                               std::string_view order, Int splits);
};
using BatchNormActTrain = BatchNormActTrainOf<c10::SymInt>;
using BatchNormActTrainKernel = BatchNormActTrainOf<int64_t>;

struct BatchNormActEval {
  static constexpr auto name = "ganfast::batch_norm_act_eval";
  using Signature = TwoTensors(const Tensor& x, const OptionalTensor& weight,
                               const OptionalTensor& bias, const Tensor& running_mean,
                               const Tensor& running_var, double eps, OptionalString activation,
                               double negative_slope, std::string_view order);
};

struct BatchNormActBackward {
  static constexpr auto name = "ganfast::batch_norm_act_backward";
  using Signature = ThreeTensors(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                                 const Tensor& stats, double eps, bool training,
                                 OptionalString activation, double negative_slope,
                                 std::string_view order, bool need_dx, bool need_affine);
};

struct BatchNormActDoubleBackward {
  static constexpr auto name = "ganfast::batch_norm_act_double_backward";
  using Signature = ThreeTensors(const OptionalTensor& ddx, const OptionalTensor& ddweight,
                                 const OptionalTensor& ddbias, const Tensor& dy, const Tensor& x,
                                 const OptionalTensor& weight, const Tensor& stats, double eps,
                                 bool training, OptionalString activation, double negative_slope,
                                 std::string_view order);
};

struct BinaryCrossEntropy {
  static constexpr auto name = "ganfast::binary_cross_entropy";
  using Signature = Tensor(const Tensor& x, const OptionalTensor& target, double label,
                           const OptionalTensor& weight, const OptionalTensor& pos_weight,
                           bool from_logits, std::string_view reduction);
};

struct BinaryCrossEntropyBackward {
  static constexpr auto name = "ganfast::binary_cross_entropy_backward";
  using Signature = Tensor(const Tensor& dy, const Tensor& x, const OptionalTensor& target,
                           double label, const OptionalTensor& weight,
                           const OptionalTensor& pos_weight, bool from_logits,
                           std::string_view reduction);
};

struct BinaryCrossEntropyTargetBackward {
  static constexpr auto name = "ganfast::binary_cross_entropy_target_backward";
  using Signature = Tensor(const Tensor& dy, const Tensor& x, const Tensor& target,
                           const OptionalTensor& weight, const OptionalTensor& pos_weight,
                           bool from_logits, std::string_view reduction);
};

struct GanLoss {
  static constexpr auto name = "ganfast::gan_loss";
  using Signature = ThreeTensors(const Tensor& real, const OptionalTensor& fake,
                                 std::string_view form, double real_label, double fake_label,
                                 int64_t splits);
};

struct GanLossBackward {
  static constexpr auto name = "ganfast::gan_loss_backward";
  using Signature = TwoTensors(const Tensor& dloss, const Tensor& real, const OptionalTensor& fake,
                               std::string_view form, double real_label, double fake_label,
                               int64_t splits, bool need_real, bool need_fake);
};

// Registers a kernel of an op.
template <typename Op>
void implement(torch::Library& m, typename Op::Signature* kernel) {
  m.impl(Op::name, kernel);
}

}  // namespace ganfast
