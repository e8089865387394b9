// The CUDA kernels of binary_cross_entropy and gan_loss; the mathematics is in loss_math.h.
#include <algorithm>

#include "cuda/block_sum.cuh"
#include "cuda/losses/calls.h"

namespace ganfast {
namespace {

// What loss_math.h is computed with: CUDA's accurate functions.
struct ScalarMath {
  static __device__ __forceinline__ float minus_abs(float x) { return -fabsf(x); }
  static __device__ __forceinline__ double minus_abs(double x) { return -fabs(x); }
  template <typename S>
  static __device__ __forceinline__ S at_least(S x, double least) {
    const S bound = static_cast<S>(least);
    return bound > x ? bound : x;  // keeps NaN
  }
  static __device__ __forceinline__ float exp_of_nonpositive(float x) { return expf(x); }
  static __device__ __forceinline__ double exp_of_nonpositive(double x) { return exp(x); }
  static __device__ __forceinline__ float log1p_of_unit(float x) { return log1pf(x); }
  static __device__ __forceinline__ double log1p_of_unit(double x) { return log1p(x); }
  static __device__ __forceinline__ float log_of(float x) { return logf(x); }
  static __device__ __forceinline__ double log_of(double x) { return log(x); }
  static __device__ __forceinline__ float log1p_of_minus(float x) { return log1pf(-x); }
  static __device__ __forceinline__ double log1p_of_minus(double x) { return log1p(-x); }
};

#include "common/loss_math.h"

static_assert(score_threads <= most_warps * warp_threads, "no more room for sums of warps");

template <auto VALUE>
using Constant = std::integral_constant<decltype(VALUE), VALUE>;

// Calls f with the loss as a constant: scores are few, and so are the kernels.
template <typename F>
__device__ __forceinline__ void with_form(Loss form, const F& f) {
  switch (form) {
    case Loss::probabilities:
      return f(Constant<Loss::probabilities>{});
    case Loss::logits:
      return f(Constant<Loss::logits>{});
    case Loss::squared:
      return f(Constant<Loss::squared>{});
    case Loss::hinge:
      return f(Constant<Loss::hinge>{});
    case Loss::linear:
      return f(Constant<Loss::linear>{});
  }
}

// A unit of scores from `i` on, `count` of which exist, and what belongs to them.
template <typename T>
struct Operands {
  using S = Scalar<T>;
  static constexpr int V = word_values<T>;
  S x[V], t[V], p[V], w[V];
  int count;

  template <typename E>
  static __device__ __forceinline__ void read(const void* tensor, int64_t i, int count,
                                              double otherwise, S (&values)[V]) {
    const E* from = static_cast<const E*>(tensor);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values[v] = from && v < count ? static_cast<S>(from[i + v]) : static_cast<S>(otherwise);
    }
  }

  __device__ __forceinline__ Operands(const ScoreCall& call, const ScoreGroup& group, int64_t i)
      : count(group.n - i < V ? static_cast<int>(group.n - i) : V) {
    if (count == V && call.aligned) {
      unpack<T, V>(load<T, V>(static_cast<const T*>(group.x) + i), x);
    } else {
      read<T>(group.x, i, count, 0, x);
    }
    read<T>(call.target, i, count, group.label, t);
    read<S>(call.pos_weight, i, count, 1, p);
    read<S>(call.weight, i, count, 1, w);
  }
  template <Loss L>
  __device__ __forceinline__ S loss(int v) const {
    return loss_of<L, ScalarMath>(x[v], t[v], p[v]) * w[v];
  }
  template <Loss L>
  __device__ __forceinline__ S gradient(int v, S dy) const {
    return dy * slope_of<L, ScalarMath>(x[v], t[v], p[v]) * w[v];
  }
};

// Writes the results of one call from the sums of its groups: of losses, of scores.
template <typename T>
__device__ void write_results(const ScoreCall& call, const double (&sums)[4]) {
  double loss = 0;
#pragma unroll
  for (int g = 0; g < most_score_groups; ++g) {
    if (g >= call.group_count) break;
    loss += sums[2 * g] / call.groups[g].divisor;
    if (call.mean_scores[g] == nullptr) continue;
    *static_cast<Scalar<T>*>(call.mean_scores[g]) =
        static_cast<Scalar<T>>(sums[2 * g + 1] / call.groups[g].divisor);
  }
  call.loss.set<T>(0, loss);
}

// One block adds up its part of each group's losses and scores; a block alone writes the results.
template <typename T>
__global__ void __launch_bounds__(score_threads, 2)
    score_sums(const __grid_constant__ ScoreCall call) {
  using S = Scalar<T>;
  constexpr int V = word_values<T>;
  auto& room = shared_storage<WarpSums<double, 4>>();
  let_next_kernel_start();
  double totals[4] = {};
  const bool scored = call.mean_scores[0] != nullptr;
#pragma unroll
  for (int g = 0; g < most_score_groups; ++g) {
    if (g >= call.group_count) break;
    const ScoreGroup& group = call.groups[g];
    const int64_t units = (group.n + V - 1) / V;
    const int64_t step = int64_t{score_threads} * call.blocks;
    const int64_t thread = int64_t{blockIdx.x} * score_threads + threadIdx.x;
    for (int64_t run = thread; run < units; run += step * score_run) {
      S losses[V] = {}, scores[V] = {};
      for (int64_t unit = run; unit < run + step * score_run && unit < units; unit += step) {
        const Operands<T> o(call, group, unit * V);
        with_form(call.form, [&](auto form) {
          constexpr Loss L = decltype(form)::value;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (v >= o.count) continue;
            losses[v] += o.template loss<L>(v);
            if (scored) scores[v] += score_of<L, ScalarMath>(o.x[v]);
          }
        });
      }
      for (int v = 0; v < V; ++v) {
        totals[2 * g] += static_cast<double>(losses[v]);
        totals[2 * g + 1] += static_cast<double>(scores[v]);
      }
    }
  }
  sum_in_first_warp(totals, room);
  if (threadIdx.x != 0) return;
  if (call.blocks == 1) {
    write_results<T>(call, totals);
  } else {
    for (int i = 0; i < 4; ++i) call.partials[int64_t{blockIdx.x} * 4 + i] = totals[i];
  }
}

// One block adds up what the blocks of score_sums found, and writes the results.
template <typename T>
__global__ void __launch_bounds__(score_threads)
    score_results(const __grid_constant__ ScoreCall call) {
  auto& room = shared_storage<WarpSums<double, 4>>();
  wait_for_previous_kernel();
  double totals[4] = {};
  for (int block = static_cast<int>(threadIdx.x); block < call.blocks; block += score_threads) {
    for (int i = 0; i < 4; ++i) totals[i] += call.partials[int64_t{block} * 4 + i];
  }
  sum_in_first_warp(totals, room);
  if (threadIdx.x == 0) write_results<T>(call, totals);
}

// One block writes the loss or the gradient of its part of each group's scores.
template <typename T, bool gradient>
__global__ void __launch_bounds__(score_threads) score_map(const __grid_constant__ ScoreCall call) {
  using S = Scalar<T>;
  constexpr int V = word_values<T>;
  for (int g = 0; g < call.group_count; ++g) {
    const ScoreGroup& group = call.groups[g];
    T* const out = static_cast<T*>(group.out);
    S factor{};
    if (gradient && call.dy == nullptr) {
      factor = static_cast<S>(static_cast<double>(call.dloss.get<T>(0, 0)) / group.divisor);
    }
    const int64_t step = int64_t{score_threads} * call.blocks * V;
    const int64_t thread = int64_t{blockIdx.x} * score_threads + threadIdx.x;
    for (int64_t i = thread * V; i < group.n; i += step) {
      const Operands<T> o(call, group, i);
      S results[V];
      with_form(call.form, [&](auto form) {
        constexpr Loss L = decltype(form)::value;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if constexpr (gradient) {
            const T* const dy = static_cast<const T*>(call.dy);
            const S of_score = dy && v < o.count ? static_cast<S>(dy[i + v]) : factor;
            results[v] = o.template gradient<L>(v, of_score);
          } else {
            results[v] = o.template loss<L>(v);
          }
        }
      });
      if (o.count == V && call.aligned) {
        store<T, V>(out + i, pack<T, V>(results));
        continue;
      }
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (v < o.count) out[i + v] = static_cast<T>(results[v]);
      }
    }
  }
}

// Whether every group begins at a multiple of 16 bytes.
bool is_aligned(const ScoreCall& call) {
  for (int g = 0; g < call.group_count; ++g) {
    for (const void* p : {call.groups[g].x, static_cast<const void*>(call.groups[g].out)}) {
      if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
    }
  }
  return true;
}

LaunchShape shape_of(int64_t blocks, bool starts_early = false) {
  return {static_cast<unsigned>(blocks), dim3(score_threads), 1, starts_early};
}

template <typename T, bool gradient>
cudaError_t map(ScoreCall call, cudaStream_t stream) {
  int64_t n = 0;
  for (int g = 0; g < call.group_count; ++g) n = std::max(n, call.groups[g].n);
  if (n == 0) return cudaSuccess;
  constexpr int64_t of_block = int64_t{score_threads} * word_values<T>;
  call.blocks = static_cast<int>(std::min(most_score_blocks, (n + of_block - 1) / of_block));
  call.aligned = is_aligned(call);
  return launch(score_map<T, gradient>, shape_of(call.blocks), stream, call);
}

}  // namespace

template <typename T>
cudaError_t ScoreKernels<T>::reduce(ScoreCall call, bool starts_early, cudaStream_t stream) {
  call.aligned = is_aligned(call);
  const cudaError_t error = launch(score_sums<T>, shape_of(call.blocks), stream, call);
  if (error != cudaSuccess || call.blocks == 1) return error;
  return launch(score_results<T>, shape_of(1, starts_early), stream, call);
}

template <typename T>
cudaError_t ScoreKernels<T>::losses(const ScoreCall& call, cudaStream_t stream) {
  return map<T, false>(call, stream);
}

template <typename T>
cudaError_t ScoreKernels<T>::gradients(const ScoreCall& call, cudaStream_t stream) {
  return map<T, true>(call, stream);
}

template struct ScoreKernels<float>;
template struct ScoreKernels<double>;
template struct ScoreKernels<c10::Half>;
template struct ScoreKernels<c10::BFloat16>;

}  // namespace ganfast
