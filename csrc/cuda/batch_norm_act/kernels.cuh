// From a recipe to the kernels that it names; each <type>.cu instantiates them for one type.
#pragma once

#include "cuda/batch_norm_act/single_pass.cuh"
#include "cuda/batch_norm_act/two_pass.cuh"

namespace ganfast {
namespace {

template <auto VALUE>
using Constant = std::integral_constant<decltype(VALUE), VALUE>;

// Calls f(channels_last, V).
template <int VECTOR, typename F>
auto with_layout(const Recipe& recipe, const F& f) {
  if (recipe.vectors) {
    return recipe.channels_last ? f(std::true_type{}, Constant<VECTOR>{})
                                : f(std::false_type{}, Constant<VECTOR>{});
  }
  return recipe.channels_last ? f(std::true_type{}, Constant<1>{})
                              : f(std::false_type{}, Constant<1>{});
}

// Calls f(activation, act_norm, ITEMS).
template <typename F>
auto with_on_chip(const Recipe& recipe, const F& f) {
  const auto with_items = [&](auto a, auto act_norm) {
    return recipe.many_items ? f(a, act_norm, Constant<most_items>{})
                             : f(a, act_norm, Constant<few_items>{});
  };
  const auto with_order = [&](auto a) {
    return recipe.activation.act_norm ? with_items(a, std::true_type{})
                                      : with_items(a, std::false_type{});
  };
  static_assert(activation_count == 3, "the kernels on chip need one of each activation but none");
  return recipe.activation.activation == Activation::relu
             ? with_order(Constant<Activation::relu>{})
             : with_order(Constant<Activation::leaky_relu>{});
}

LaunchShape shape_of(const Recipe& recipe) { return {recipe.blocks, recipe.threads, 1, false}; }

LaunchShape second_shape_of(const Recipe& recipe) {
  return {recipe.blocks, recipe.threads, 1, recipe.starts_early};
}

LaunchShape cluster_shape_of(const Recipe& recipe) {
  return {recipe.blocks, recipe.threads, recipe.cluster, false};
}

}  // namespace

template <typename T>
bool BatchNormActKernels<T>::fits(const Recipe& recipe, bool backward) {
  if constexpr (is_for_checks<T>) {
    return false;
  } else {
    return with_on_chip(recipe, [&](auto a, auto act_norm, auto items) {
      return backward ? cluster_fits(backward_on_chip<T, a(), act_norm(), items()>,
                                     cluster_shape_of(recipe))
                      : cluster_fits(forward_on_chip<T, a(), act_norm(), items()>,
                                     cluster_shape_of(recipe));
    });
  }
}

template <typename T>
cudaError_t BatchNormActKernels<T>::forward(const Recipe& recipe, const ForwardCall& call,
                                            cudaStream_t stream) {
  if constexpr (!is_for_checks<T>) {
    if (recipe.form == Form::on_chip) {
      return with_on_chip(recipe, [&](auto a, auto act_norm, auto items) {
        return launch(forward_on_chip<T, a(), act_norm(), items()>, cluster_shape_of(recipe),
                      stream, call);
      });
    }
  }
  const cudaError_t error = with_layout<unit_values<T>>(recipe, [&](auto rows, auto v) {
    return launch(forward_partial<T, rows(), v()>, shape_of(recipe), stream, call);
  });
  return error != cudaSuccess ? error : evaluate(recipe, call, stream);
}

template <typename T>
cudaError_t BatchNormActKernels<T>::evaluate(const Recipe& recipe, const ForwardCall& call,
                                             cudaStream_t stream) {
  const LaunchShape shape = call.training ? second_shape_of(recipe) : shape_of(recipe);
  return with_layout<unit_values<T>>(recipe, [&](auto rows, auto v) {
    return launch(forward_apply<T, rows(), v()>, shape, stream, call);
  });
}

template <typename T>
cudaError_t BatchNormActKernels<T>::backward(const Recipe& recipe, const BackwardCall& call,
                                             cudaStream_t stream) {
  if constexpr (!is_for_checks<T>) {
    if (recipe.form == Form::on_chip) {
      return with_on_chip(recipe, [&](auto a, auto act_norm, auto items) {
        return launch(backward_on_chip<T, a(), act_norm(), items()>, cluster_shape_of(recipe),
                      stream, call);
      });
    }
  }
  return with_layout<unit_values<T>>(recipe, [&](auto rows, auto v) {
    LaunchShape second = shape_of(recipe);
    if (call.work.partials != nullptr) {
      const cudaError_t error =
          launch(gradient_partial<T, BackwardCall, rows(), v()>, shape_of(recipe), stream, call);
      if (error != cudaSuccess || call.dx == nullptr) return error;
      second = second_shape_of(recipe);
    }
    return launch(backward_apply<T, rows(), v()>, second, stream, call);
  });
}

template <typename T>
cudaError_t BatchNormActKernels<T>::double_backward(const Recipe& recipe,
                                                    const DoubleBackwardCall& call,
                                                    cudaStream_t stream) {
  constexpr int vector = double_backward_unit_values<T>;
  return with_layout<vector>(recipe, [&](auto rows, auto v) {
    const cudaError_t error = launch(gradient_partial<T, DoubleBackwardCall, rows(), v()>,
                                     shape_of(recipe), stream, call);
    if (error != cudaSuccess) return error;
    return launch(double_backward_apply<T, rows(), v()>, second_shape_of(recipe), stream, call);
  });
}

}  // namespace ganfast
