// The ops of gan_loss on the CPU; the mathematics is in common/loss_math.h.
#include <ATen/ops/empty_like.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "common/signatures.h"
#include "cpu/losses/tiling.h"

namespace ganfast {
namespace {

const LossKernels& kernels_for(const Tensor& x, std::string_view form) {
  return select_kernels<LossSelection>({element_type("gan_loss", x), parse_form(form), true});
}

// Scores of one label: a tensor, or a half of one.
struct Scores {
  const Tensor* x;
  int64_t begin, count;
  double label;

  LossCall call() const {
    LossCall c{};
    c.x = data(*x) + begin * static_cast<int64_t>(x->element_size());
    c.label = label;
    return c;
  }
};

// What is real in an op's arguments, and what generated: its count is -1 where there is none.
std::pair<Scores, Scores> real_and_fake(const Tensor& real, const Tensor& fake, double real_label,
                                        double fake_label, int64_t splits) {
  const int64_t n = real.numel() / splits;
  const Scores first{&real, 0, n, real_label};
  if (splits == 2) return {first, {&real, n, n, fake_label}};
  if (fake.defined()) return {first, {&fake, 0, fake.numel(), fake_label}};
  return {first, {nullptr, 0, -1, 0}};
}

Tensor contiguous(const Tensor& x) { return x.contiguous(x.suggest_memory_format()); }

ThreeTensors forward(const Tensor& real_any, const OptionalTensor& fake_any, std::string_view form,
                     double real_label, double fake_label, int64_t splits) {
  check_scores(real_any, fake_any, splits);
  const Tensor real = contiguous(real_any);
  const Tensor fake = has(fake_any) ? contiguous(*fake_any) : Tensor();
  const LossKernels& kernels = kernels_for(real, form);
  const at::ScalarType type = arithmetic_type(real);
  const auto [first, second] = real_and_fake(real, fake, real_label, fake_label, splits);

  const auto mean = [](auto kernel, const Scores& scores) {
    auto sums = sum_up(kernel, scores.call(), scores.count);
    for (double& sum : sums) sum /= static_cast<double>(scores.count);
    return sums;
  };
  if (second.count < 0) {
    const Tensor none = at::empty({0}, at::TensorOptions(type));
    return {scalar(mean(kernels.sums, first)[0], type), none, at::empty_like(none)};
  }
  const auto of_real = mean(kernels.scored_sums, first);
  const auto of_fake = mean(kernels.scored_sums, second);
  return {scalar(of_real[0] + of_fake[0], type), scalar(of_real[1], type),
          scalar(of_fake[1], type)};
}

TwoTensors backward(const Tensor& dloss, const Tensor& real_any, const OptionalTensor& fake_any,
                    std::string_view form, double real_label, double fake_label, int64_t splits,
                    bool need_real, bool need_fake) {
  check_scores(real_any, fake_any, splits);
  check_scalar("dloss", dloss, real_any);
  const Tensor real = contiguous(real_any);
  const Tensor fake = has(fake_any) ? contiguous(*fake_any) : Tensor();
  const LossKernels& kernels = kernels_for(real, form);
  const auto gradient_of = [&](const Tensor& x, bool needed) {
    return needed && x.defined() ? output_like(x) : at::empty({0}, real.options());
  };
  const Tensor dreal = gradient_of(real, need_real), dfake = gradient_of(fake, need_fake);
  const auto [first, second] = real_and_fake(real, fake, real_label, fake_label, splits);
  const double incoming = value_of(dloss);

  const auto write = [&](const Scores& scores, const Tensor& dx) {
    LossCall call = scores.call();
    call.out = mutable_data(dx) + scores.begin * static_cast<int64_t>(dx.element_size());
    call.factor = incoming / static_cast<double>(scores.count);
    for_each_part(scores.count, [&](int64_t, int64_t begin, int64_t end) {
      kernels.gradients(call, begin, end);
    });
  };
  if (need_real) write(first, dreal);
  if (need_real && splits == 2) write(second, dreal);
  if (need_fake && fake.defined()) write(second, dfake);
  return {dreal, dfake};
}

TORCH_LIBRARY_IMPL(ganfast, CPU, m) {
  implement<GanLoss>(m, &forward);
  implement<GanLossBackward>(m, &backward);
}

}  // namespace
}  // namespace ganfast
