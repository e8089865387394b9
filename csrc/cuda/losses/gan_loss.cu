// The ops of gan_loss on CUDA devices; the mathematics is in common/loss_math.h.
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "cuda/losses/calls.h"

namespace ganfast {
namespace {

Tensor contiguous(const Tensor& x) { return x.contiguous(x.suggest_memory_format()); }

// `count` scores of one label: a tensor's from `begin` on.
ScoreGroup group_of(const Tensor& x, int64_t begin, int64_t count, double label) {
  const auto* data = static_cast<const char*>(x.const_data_ptr());
  const int64_t size = static_cast<int64_t>(x.element_size());
  return {data + begin * size, nullptr, count, label, static_cast<double>(count)};
}

// Where the gradient of a group goes that begins at `begin`.
void* part_of(const Tensor& dx, int64_t begin) {
  return static_cast<char*>(dx.mutable_data_ptr()) +
         begin * static_cast<int64_t>(dx.element_size());
}

ThreeTensors forward(const Tensor& real_any, const OptionalTensor& fake_any, std::string_view form,
                     double real_label, double fake_label, int64_t splits) {
  check_scores(real_any, fake_any, splits);
  const Device device(real_any);
  const Tensor real = contiguous(real_any);
  const Tensor fake = has(fake_any) ? contiguous(*fake_any) : Tensor();
  const auto options = real.options().dtype(arithmetic_type(real)).memory_format({});
  const bool joint = splits == 2 || fake.defined();
  Tensor loss = empty_for_kernel({}, options), scores[2];
  for (Tensor& score : scores) {
    score = joint ? empty_for_kernel({}, options) : at::empty({0}, options);
  }
  const int64_t n = real.numel() / splits;
  ScoreCall call{};
  call.form = parse_form(form);
  call.groups[0] = group_of(real, 0, n, real_label);
  call.group_count = joint ? 2 : 1;
  if (splits == 2) call.groups[1] = group_of(real, n, n, fake_label);
  if (fake.defined()) call.groups[1] = group_of(fake, 0, fake.numel(), fake_label);
  call.loss = {loss.mutable_data_ptr(), false};
  for (int i = 0; i < 2 && joint; ++i) call.mean_scores[i] = scores[i].mutable_data_ptr();
  const Tensor partials = share_scores(call, real);
  with_element("gan_loss", real, [&](auto* element) {
    using K = ScoreKernels<std::remove_pointer_t<decltype(element)>>;
    check_launch(K::reduce(call, starts_early(real), device.stream()));
  });
  return {loss, scores[0], scores[1]};
}

TwoTensors backward(const Tensor& dloss, const Tensor& real_any, const OptionalTensor& fake_any,
                    std::string_view form, double real_label, double fake_label, int64_t splits,
                    bool need_real, bool need_fake) {
  check_scores(real_any, fake_any, splits);
  check_scalar("dloss", dloss, real_any);
  const Device device(real_any);
  const Tensor real = contiguous(real_any);
  const Tensor fake = has(fake_any) ? contiguous(*fake_any) : Tensor();
  const auto gradient_of = [&](const Tensor& x, bool needed) {
    return needed && x.defined() ? empty_for_kernel_like(x) : at::empty({0}, real.options());
  };
  Tensor dreal = gradient_of(real, need_real), dfake = gradient_of(fake, need_fake);
  const Tensor incoming = scalar_for_kernel(dloss, real);
  const int64_t n = real.numel() / splits;
  ScoreCall call{};
  call.form = parse_form(form);
  call.dloss = {incoming.data_ptr(), incoming.scalar_type() != arithmetic_type(real)};
  const auto add = [&](ScoreGroup group, void* dx) {
    group.out = dx;
    call.groups[call.group_count++] = group;
  };
  if (need_real) add(group_of(real, 0, n, real_label), part_of(dreal, 0));
  if (need_real && splits == 2) add(group_of(real, n, n, fake_label), part_of(dreal, n));
  if (need_fake && fake.defined()) {
    add(group_of(fake, 0, fake.numel(), fake_label), part_of(dfake, 0));
  }
  with_element("gan_loss", real, [&](auto* element) {
    using K = ScoreKernels<std::remove_pointer_t<decltype(element)>>;
    check_launch(K::gradients(call, device.stream()));
  });
  return {dreal, dfake};
}

TORCH_LIBRARY_IMPL(ganfast, GANFAST_CUDA_KEY, m) {
  implement<GanLoss>(m, &forward);
  implement<GanLossBackward>(m, &backward);
}

}  // namespace
}  // namespace ganfast
