// What the ops ask of their arguments before anything is indexed by them, on every device. The
// Python kernels ask the same: ganfast/ops/batch_norm_act/arguments.py,
// ganfast/ops/losses/arguments.py.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "common/activation.h"
#include "common/loss.h"

namespace ganfast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool has(const OptionalTensor& t) { return t && t->defined(); }

// What sums and C-sized vectors of x are in.
inline at::ScalarType arithmetic_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A tensor on `meta` has no memory to read, and one on another device none that x's can.
inline void check_device(const char* name, const Tensor& t, const Tensor& x) {
  TORCH_CHECK(t.device() == x.device(), "Expected all tensors to be on the same device, but ", name,
              " is on ", t.device(), " and the input on ", x.device());
}

// What has x's shape: a gradient, the target or the weights of a loss.
inline void check_like_x(const char* name, const Tensor& t, const Tensor& x) {
  check_device(name, t, x);
  TORCH_CHECK(t.sizes() == x.sizes(), name, " must have the shape of the input, ", x.sizes(),
              ", got ", t.sizes());
  TORCH_CHECK(!t.is_complex(), name, " must be real, got ", toString(t.scalar_type()));
}

// ---------------------------------------------------------------- batch_norm_act

// An input that is normalised in `splits` chunks, and the order of its activation.
inline void check_input(const Tensor& x, int64_t splits, std::string_view order) {
  TORCH_CHECK_VALUE(x.dim() >= 2, "x must have shape (N, C, ...), got ", x.sizes());
  TORCH_CHECK_VALUE(splits >= 1 && x.size(0) % splits == 0,
                    "splits must divide the batch into equal chunks: got splits=", splits,
                    " for a batch of ", x.size(0));
  TORCH_CHECK_VALUE(order == "norm_act" || order == "act_norm",
                    "order must be 'norm_act' or 'act_norm', got '", order, "'");
}

inline Activation parse_activation(std::optional<std::string_view> name) {
  if (!name) return Activation::none;
#define GANFAST_ROW(row, value, gradient) \
  if (Activation::row != Activation::none && *name == #row) return Activation::row;
  GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW
  TORCH_CHECK_VALUE(false, "the native kernels have no activation '", *name, "'");
}

// A parameter, a running statistic, or a gradient of one.
inline void check_vector(const char* name, const OptionalTensor& vector, const Tensor& x) {
  if (!has(vector)) return;
  check_device(name, *vector, x);
  TORCH_CHECK(vector->numel() == x.size(1), name, " should contain ", x.size(1), " elements not ",
              vector->numel());
  const at::ScalarType type = vector->scalar_type(), wide = arithmetic_type(x);
  TORCH_CHECK(type == wide || type == x.scalar_type(), "mixed dtype: expected ", name,
              " to have scalar type ", toString(wide), " or ", toString(x.scalar_type()),
              " for an input of ", toString(x.scalar_type()), ", got ", toString(type));
}

// A gradient in x's dtype and memory format. Without the question, `to` alone takes half a
// microsecond to find that there is nothing to do.
inline Tensor laid_out_like(const Tensor& x, const Tensor& t, at::MemoryFormat format) {
  return (t.scalar_type() == x.scalar_type() ? t : t.to(x.scalar_type())).contiguous(format);
}

inline void check_no_overlap(const char* name, const OptionalTensor& written, const char* other,
                             const OptionalTensor& read) {
  if (!has(written) || !has(read) || !written->is_alias_of(*read)) return;
  const auto status = at::get_overlap_status(*written, *read);
  TORCH_CHECK(status != at::MemOverlapStatus::Full && status != at::MemOverlapStatus::Partial, name,
              " is updated in place and must not share memory with ", other,
              ": clone() one of them");
}

// What training updates, beside what it reads.
inline void check_buffers(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                          const OptionalTensor& num_batches_tracked,
                          std::optional<double> momentum) {
  const OptionalTensor input = x;
  check_no_overlap("running_mean", running_mean, "running_var", running_var);
  const auto check_running = [&](const char* name, const OptionalTensor& running) {
    check_vector(name, running, x);
    check_no_overlap(name, running, "the input", input);
    check_no_overlap(name, running, "weight", weight);
    check_no_overlap(name, running, "bias", bias);
  };
  check_running("running_mean", running_mean);
  check_running("running_var", running_var);
  if (has(num_batches_tracked)) {
    check_device("num_batches_tracked", *num_batches_tracked, x);
    TORCH_CHECK(
        num_batches_tracked->numel() == 1 && num_batches_tracked->scalar_type() == at::kLong,
        "num_batches_tracked must be one element of int64, got ", num_batches_tracked->numel(),
        " of ", toString(num_batches_tracked->scalar_type()));
  }
  TORCH_CHECK_VALUE(
      momentum || has(num_batches_tracked) || !(has(running_mean) || has(running_var)),
      "momentum=None averages over all batches: give num_batches_tracked");
}

// What a forward op saved for x: shape (splits, 4, C).
inline void check_stats(const Tensor& stats, const Tensor& x) {
  check_device("stats", stats, x);
  TORCH_CHECK(stats.dim() == 3 && stats.size(1) == 4 && stats.size(2) == x.size(1) &&
                  stats.scalar_type() == arithmetic_type(x),
              "stats must have shape (splits, 4, ", x.size(1), ") in ",
              toString(arithmetic_type(x)), ", got ", stats.sizes(), " in ",
              toString(stats.scalar_type()));
}

// The statistics that a forward op saved for x, in one piece, beside what else backward ops are
// given.
inline Tensor checked_stats(const Tensor& stats, const Tensor& x, const OptionalTensor& weight,
                            std::string_view order) {
  check_input(x, 1, order);
  check_stats(stats, x);
  check_input(x, stats.size(0), order);
  check_vector("weight", weight, x);
  return stats.contiguous();
}

// ---------------------------------------------------------------- losses

inline Loss parse_form(std::string_view form) {
  if (form == "probabilities") return Loss::probabilities;
  if (form == "logits") return Loss::logits;
  if (form == "squared") return Loss::squared;
  if (form == "hinge") return Loss::hinge;
  TORCH_CHECK_VALUE(form == "linear", "ganfast: there is no form of loss '", form, "'");
  return Loss::linear;
}

inline void check_reduction(std::string_view reduction) {
  TORCH_CHECK_VALUE(reduction == "none" || reduction == "mean" || reduction == "sum",
                    "reduction must be 'none', 'mean' or 'sum', got '", reduction, "'");
}

// Target or weights of a loss in a dtype and in x's memory format, or an undefined tensor.
inline Tensor checked_like_x(const char* name, const OptionalTensor& t, const Tensor& x,
                             at::ScalarType type, at::MemoryFormat format) {
  if (!has(t)) return Tensor();
  check_like_x(name, *t, x);
  return (t->scalar_type() == type ? *t : t->to(type)).contiguous(format);
}

// The gradient of a scalar loss.
inline void check_scalar(const char* name, const Tensor& t, const Tensor& x) {
  check_device(name, t, x);
  TORCH_CHECK(t.dim() == 0 && !t.is_complex(), name, " must be a real scalar, got ",
              toString(t.scalar_type()), " of shape ", t.sizes());
}

inline void check_target(const OptionalTensor& target, const Tensor& x) {
  TORCH_CHECK(!has(target) || target->scalar_type() == x.scalar_type(),
              "expected a target of dtype ", toString(x.scalar_type()),
              ", as the input has, found ", toString(target->scalar_type()));
}

// The gradient of a loss that was reduced so.
inline void check_reduced_gradient(const Tensor& dy, const Tensor& x, std::string_view reduction) {
  check_reduction(reduction);
  if (reduction == "none") {
    check_like_x("dy", dy, x);
  } else {
    check_scalar("dy", dy, x);
  }
}

// The scores of gan_loss in their three forms.
inline void check_scores(const Tensor& real, const OptionalTensor& fake, int64_t splits) {
  TORCH_CHECK_VALUE(
      splits == 1 || (splits == 2 && !has(fake) && real.dim() > 0 && real.size(0) % 2 == 0),
      "splits must be 1, or 2 for one tensor of an even batch, got splits=", splits,
      " for scores of shape ", real.sizes(), has(fake) ? " and those of fake" : "");
  if (!has(fake)) return;
  check_device("fake", *fake, real);
  TORCH_CHECK(fake->scalar_type() == real.scalar_type(),
              "real and fake scores must have one dtype, got ", toString(real.scalar_type()),
              " and ", toString(fake->scalar_type()));
}

}  // namespace ganfast
