// The ops of binary_cross_entropy on CUDA devices; the mathematics is in common/loss_math.h.
#include <torch/library.h>

#include <optional>
#include <string_view>

#include "cuda/losses/calls.h"

namespace ganfast {
namespace {

// The tensors of one call in one order of memory.
struct Operands {
  Operands(const Tensor& x_any, const OptionalTensor& target_any, double label,
           const OptionalTensor& weight_any, const OptionalTensor& pos_weight_any, bool from_logits,
           std::string_view reduction)
      : format(x_any.suggest_memory_format()), x(x_any.contiguous(format)) {
    check_target(target_any, x);
    call.form = from_logits ? Loss::logits : Loss::probabilities;
    target = checked_like_x("target", target_any, x, x.scalar_type(), format);
    weight = checked_like_x("weight", weight_any, x, arithmetic_type(x), format);
    pos_weight = checked_like_x("pos_weight", pos_weight_any, x, arithmetic_type(x), format);
    const double divisor = reduction == "mean" ? static_cast<double>(x.numel()) : 1.0;
    call.groups[0] = {x.const_data_ptr(), nullptr, x.numel(), label, divisor};
    call.group_count = 1;
    call.target = target.defined() ? target.const_data_ptr() : nullptr;
    call.weight = weight.defined() ? weight.const_data_ptr() : nullptr;
    call.pos_weight = pos_weight.defined() ? pos_weight.const_data_ptr() : nullptr;
  }

  at::MemoryFormat format;
  Tensor x, target, weight, pos_weight;
  ScoreCall call{};
};

// Probabilities outside [0, 1] are not looked for: that would stop the device.
Tensor forward(const Tensor& x, const OptionalTensor& target, double label,
               const OptionalTensor& weight, const OptionalTensor& pos_weight, bool from_logits,
               std::string_view reduction) {
  check_reduction(reduction);
  const Device device(x);
  return with_element("binary_cross_entropy", x, [&](auto* element) {
    using K = ScoreKernels<std::remove_pointer_t<decltype(element)>>;
    Operands o(x, target, label, weight, pos_weight, from_logits, reduction);
    if (reduction == "none") {
      Tensor y = empty_for_kernel_like(o.x);
      o.call.groups[0].out = y.mutable_data_ptr();
      check_launch(K::losses(o.call, device.stream()));
      return y;
    }
    Tensor y = empty_for_kernel({}, x.options().memory_format({}));
    o.call.loss = {y.mutable_data_ptr(), x.scalar_type() != arithmetic_type(x)};
    const Tensor partials = share_scores(o.call, x);
    check_launch(K::reduce(o.call, starts_early(x), device.stream()));
    return y;
  });
}

Tensor backward(const Tensor& dy, const Tensor& x, const OptionalTensor& target, double label,
                const OptionalTensor& weight, const OptionalTensor& pos_weight, bool from_logits,
                std::string_view reduction) {
  check_reduced_gradient(dy, x, reduction);
  const Device device(x);
  return with_element("binary_cross_entropy", x, [&](auto* element) {
    using K = ScoreKernels<std::remove_pointer_t<decltype(element)>>;
    Operands o(x, target, label, weight, pos_weight, from_logits, reduction);
    Tensor dx = empty_for_kernel_like(o.x);
    o.call.groups[0].out = dx.mutable_data_ptr();
    Tensor incoming;
    if (reduction == "none") {
      incoming = laid_out_like(x, dy, o.format);
      o.call.dy = incoming.const_data_ptr();
    } else {
      incoming = scalar_for_kernel(dy, x);
      o.call.dloss = {incoming.data_ptr(), incoming.scalar_type() != arithmetic_type(x)};
    }
    check_launch(K::gradients(o.call, device.stream()));
    return dx;
  });
}

TORCH_LIBRARY_IMPL(ganfast, GANFAST_CUDA_KEY, m) {
  implement<BinaryCrossEntropy>(m, &forward);
  implement<BinaryCrossEntropyBackward>(m, &backward);
}

}  // namespace
}  // namespace ganfast
