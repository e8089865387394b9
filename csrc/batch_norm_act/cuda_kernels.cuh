// From a recipe to the kernels that it names; each cuda_<type>.cu instantiates them for one type.
#pragma once

#include "cuda_on_chip.cuh"
#include "cuda_two_kernels.cuh"

namespace ganfast {
namespace {

template <auto VALUE>
using Constant = std::integral_constant<decltype(VALUE), VALUE>;

// Calls f(activation, act_norm) with the recipe's as constants.
template <typename F>
auto with_activation(const Recipe& recipe, const F& f) {
  if (recipe.activation == Activation::relu) {
    return recipe.act_norm ? f(Constant<Activation::relu>{}, std::true_type{})
                           : f(Constant<Activation::relu>{}, std::false_type{});
  }
  return recipe.act_norm ? f(Constant<Activation::leaky_relu>{}, std::true_type{})
                         : f(Constant<Activation::leaky_relu>{}, std::false_type{});
}

// Calls f(activation, act_norm, channels_last, V).
template <int VECTOR, typename F>
auto with_layout(const Recipe& recipe, const F& f) {
  return with_activation(recipe, [&](auto a, auto act_norm) {
    if (recipe.vectors) {
      return recipe.channels_last ? f(a, act_norm, std::true_type{}, Constant<VECTOR>{})
                                  : f(a, act_norm, std::false_type{}, Constant<VECTOR>{});
    }
    return recipe.channels_last ? f(a, act_norm, std::true_type{}, Constant<1>{})
                                : f(a, act_norm, std::false_type{}, Constant<1>{});
  });
}

// Calls f(activation, act_norm, ITEMS).
template <typename F>
auto with_items(const Recipe& recipe, const F& f) {
  return with_activation(recipe, [&](auto a, auto act_norm) {
    if (recipe.items == 1) return f(a, act_norm, Constant<1>{});
    if (recipe.items == 2) return f(a, act_norm, Constant<2>{});
    if (recipe.items == 4) return f(a, act_norm, Constant<4>{});
    return f(a, act_norm, Constant<8>{});
  });
}

// Sums of norm_act do not see the activation.
template <typename T, Activation A, bool act_norm, bool ROWS, int V>
constexpr auto forward_partial_kernel =
    act_norm ? forward_partial<T, A, true, ROWS, V>
             : forward_partial<T, Activation::leaky_relu, false, ROWS, V>;

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
  return with_items(recipe, [&](auto a, auto act_norm, auto items) {
    return backward ? cluster_fits(backward_on_chip<T, a(), act_norm(), items()>,
                                   cluster_shape_of(recipe))
                    : cluster_fits(forward_on_chip<T, a(), act_norm(), items()>,
                                   cluster_shape_of(recipe));
  });
}

template <typename T>
cudaError_t BatchNormActKernels<T>::forward(const Recipe& recipe, const ForwardCall& call,
                                            cudaStream_t stream) {
  if (recipe.form == Form::on_chip) {
    return with_items(recipe, [&](auto a, auto act_norm, auto items) {
      return launch(forward_on_chip<T, a(), act_norm(), items()>, cluster_shape_of(recipe), stream,
                    call);
    });
  }
  const cudaError_t error =
      with_layout<unit_values<T>>(recipe, [&](auto a, auto act_norm, auto rows, auto v) {
        return launch(forward_partial_kernel<T, a(), act_norm(), rows(), v()>, shape_of(recipe),
                      stream, call);
      });
  return error != cudaSuccess ? error : evaluate(recipe, call, stream);
}

template <typename T>
cudaError_t BatchNormActKernels<T>::evaluate(const Recipe& recipe, const ForwardCall& call,
                                             cudaStream_t stream) {
  const LaunchShape shape = call.training ? second_shape_of(recipe) : shape_of(recipe);
  return with_layout<unit_values<T>>(recipe, [&](auto a, auto act_norm, auto rows, auto v) {
    return launch(forward_apply<T, a(), act_norm(), rows(), v()>, shape, stream, call);
  });
}

template <typename T>
cudaError_t BatchNormActKernels<T>::backward(const Recipe& recipe, const BackwardCall& call,
                                             cudaStream_t stream) {
  if (recipe.form == Form::on_chip) {
    return with_items(recipe, [&](auto a, auto act_norm, auto items) {
      return launch(backward_on_chip<T, a(), act_norm(), items()>, cluster_shape_of(recipe), stream,
                    call);
    });
  }
  return with_layout<unit_values<T>>(recipe, [&](auto a, auto act_norm, auto rows, auto v) {
    using Sums = typename device::Backward<T, a(), act_norm()>::Sums;
    LaunchShape second = shape_of(recipe);
    if (call.partials != nullptr) {
      const cudaError_t error = launch(gradient_partial<T, Sums, BackwardCall, rows(), v()>,
                                       shape_of(recipe), stream, call);
      if (error != cudaSuccess) return error;
      second = second_shape_of(recipe);
    }
    // The gradients of parameters come from the first block of each channel alone.
    if (call.dx == nullptr) second.blocks = static_cast<unsigned>(call.at.channel_blocks);
    return launch(backward_apply<T, a(), act_norm(), rows(), v()>, second, stream, call);
  });
}

template <typename T>
cudaError_t BatchNormActKernels<T>::double_backward(const Recipe& recipe,
                                                    const DoubleBackwardCall& call,
                                                    cudaStream_t stream) {
  constexpr int vector = double_backward_unit_values<T>;
  return with_layout<vector>(recipe, [&](auto a, auto act_norm, auto rows, auto v) {
    using Sums = typename device::DoubleBackward<T, a(), act_norm()>::Sums;
    const cudaError_t error = launch(gradient_partial<T, Sums, DoubleBackwardCall, rows(), v()>,
                                     shape_of(recipe), stream, call);
    if (error != cudaSuccess) return error;
    return launch(double_backward_apply<T, a(), act_norm(), rows(), v()>, second_shape_of(recipe),
                  stream, call);
  });
}

}  // namespace ganfast
