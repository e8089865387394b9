// The ops of binary_cross_entropy on the CPU; the mathematics is in common/loss_math.h.
#include <atomic>
#include <optional>
#include <string_view>

#include "common/signatures.h"
#include "cpu/losses/tiling.h"

namespace ganfast {
namespace {

// The tensors of one call in one order of memory.
struct CrossEntropy {
  CrossEntropy(const Tensor& x_any, const OptionalTensor& target_any, double label,
               const OptionalTensor& weight_any, const OptionalTensor& pos_weight_any,
               bool from_logits)
      : format(x_any.suggest_memory_format()), x(x_any.contiguous(format)) {
    check_target(target_any, x);
    target = checked_like_x("target", target_any, x, x.scalar_type(), format);
    weight = checked_like_x("weight", weight_any, x, arithmetic_type(x), format);
    pos_weight = checked_like_x("pos_weight", pos_weight_any, x, arithmetic_type(x), format);
    const bool plain = !target.defined() && !weight.defined() && !pos_weight.defined();
    kernels =
        &select_kernels<LossSelection>({element_type("binary_cross_entropy", x),
                                        from_logits ? Loss::logits : Loss::probabilities, plain});
    call.x = data(x);
    call.target = target.defined() ? data(target) : nullptr;
    call.weight = weight.defined() ? data(weight) : nullptr;
    call.pos_weight = pos_weight.defined() ? data(pos_weight) : nullptr;
    call.label = label;
  }

  at::MemoryFormat format;
  Tensor x, target, weight, pos_weight;
  LossCall call{};
  const LossKernels* kernels;
};

Tensor forward(const Tensor& x, const OptionalTensor& target, double label,
               const OptionalTensor& weight, const OptionalTensor& pos_weight, bool from_logits,
               std::string_view reduction) {
  check_reduction(reduction);
  CrossEntropy o(x, target, label, weight, pos_weight, from_logits);
  const int64_t n = o.x.numel();
  if (reduction == "none") {
    Tensor y = output_like(o.x);
    o.call.out = mutable_data(y);
    std::atomic<int> outside{0};
    for_each_part(n, [&](int64_t, int64_t begin, int64_t end) {
      outside |= o.kernels->losses(o.call, begin, end);
    });
    check_inside(outside);
    return y;
  }
  const double sum = sum_up(o.kernels->sums, o.call, n)[0];
  return scalar(reduction == "mean" ? sum / static_cast<double>(n) : sum, x.scalar_type());
}

Tensor backward(const Tensor& dy, const Tensor& x, const OptionalTensor& target, double label,
                const OptionalTensor& weight, const OptionalTensor& pos_weight, bool from_logits,
                std::string_view reduction) {
  check_reduced_gradient(dy, x, reduction);
  CrossEntropy o(x, target, label, weight, pos_weight, from_logits);
  const int64_t n = o.x.numel();
  Tensor dx = output_like(o.x);
  o.call.out = mutable_data(dx);
  Tensor dy_like_x;
  if (reduction == "none") {
    dy_like_x = laid_out_like(x, dy, o.format);
    o.call.dy = data(dy_like_x);
  } else {
    o.call.factor = value_of(dy) / (reduction == "mean" ? static_cast<double>(n) : 1.0);
  }
  for_each_part(
      n, [&](int64_t, int64_t begin, int64_t end) { o.kernels->gradients(o.call, begin, end); });
  return dx;
}

TORCH_LIBRARY_IMPL(ganfast, CPU, m) {
  implement<BinaryCrossEntropy>(m, &forward);
  implement<BinaryCrossEntropyBackward>(m, &backward);
}

}  // namespace
}  // namespace ganfast
