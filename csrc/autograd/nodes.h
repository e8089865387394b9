// What the autograd nodes of all ops are made with. Nodes are written out, rather than
// torch::autograd::Function, because that class refuses torch.func's transforms.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "common/signatures.h"

namespace ganfast {

using torch::autograd::collect_next_edges;
using torch::autograd::compute_requires_grad;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::set_history;
using torch::autograd::variable_list;

template <typename Op>
auto find() {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(Op::name, "");
  return op.template typed<typename Op::Signature>();
}

// torch counts references to nodes with intrusive_ptr from 2.15 or so on, with shared_ptr before.
template <typename N>
inline constexpr bool counts_itself = std::is_base_of_v<c10::intrusive_ptr_target, N>;
template <typename N>
using NodePtr = std::conditional_t<counts_itself<N>, c10::intrusive_ptr<N>, std::shared_ptr<N>>;

template <typename N, typename Constants>
NodePtr<N> make_node(Constants constants) {
  if constexpr (counts_itself<N>) {
    return c10::make_intrusive<N>(std::move(constants));
  } else {
    return NodePtr<N>(new N(std::move(constants)), [](N* node) { deleteNode(node); });
  }
}

// Calls a backward op; below autograd unless its own derivative is wanted, since its autograd form
// is Python and costs more than the op.
template <typename Op, typename... Arguments>
auto call_backward(const Op& op, Arguments&&... arguments) {
  if (c10::GradMode::is_enabled()) return op.call(std::forward<Arguments>(arguments)...);
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(std::forward<Arguments>(arguments)...);
}

inline Tensor or_undefined(const OptionalTensor& t) { return t ? *t : Tensor(); }

inline OptionalTensor or_none(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

inline void refuse_forward_mode(const char* op, const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t.defined() || !t._fw_grad(0).defined(), "ganfast's ", op,
                              " has no forward-mode derivative; use reverse mode");
}

}  // namespace ganfast
