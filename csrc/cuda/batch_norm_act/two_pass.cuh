// batch_norm_act in two kernels, for any size and layout: sums of chunks, which the last block of
// each channel puts together and finishes, then a map that reads a few numbers a channel.
#pragma once

#include "cuda/batch_norm_act/partial_sums.cuh"

namespace ganfast {

// Units that a thread reads for a guess of the mean that its sums are taken about. The guess is the
// mean of a good part of what follows, so these sums lose few digits wherever the mean lies.
inline constexpr int guess_units = 4;

// Units of a chunk that one thread works on.
template <bool ROWS, int V>
__device__ __forceinline__ int64_t units_of_thread(const Part<ROWS, V>& part) {
  const int64_t left = part.end - part.begin - part.thread;
  return left <= 0 ? 0 : (left + part.step - 1) / part.step;
}

// What the normalisation sees of x from element `offset` on, or 0 if that is not finite.
template <typename T, int COUNT>
__device__ __forceinline__ void references_at(const ForwardCall& call, int64_t offset,
                                              Scalar<T> (&values)[COUNT]) {
  unpack<T, COUNT>(load<T, COUNT>(input_of<T>(call.x) + offset), values);
  const auto activation = activation_of<T>(call.activation);
#pragma unroll
  for (int v = 0; v < COUNT; ++v) {
    if (call.activation.act_norm) {
      values[v] = device::activate<device::at_run_time>(values[v], activation);
    }
    values[v] = usable(values[v]);
  }
}

// Sums of the thread's values and of their squares, about the first values of its channels in the
// chunk: these all threads of the chunk know without asking. They are taken about a guess of the
// mean of the thread's own values, and moved in double.
template <typename T, bool act_norm, bool ROWS, int V, int CHANNELS>
__device__ __forceinline__ void add_moments(const ForwardCall& call, const Part<ROWS, V>& part,
                                            double (&sums)[CHANNELS][2]) {
  using S = Scalar<T>;
  using Op = typename Ops<T, ForwardCall, act_norm>::Sums;
  using W = Walk<T, Op, ROWS, V>;
  if (!part.active) return;
  const Inputs<T, 1> inputs{{input_of<T>(call.x)}};
  const auto activation = activation_of<T>(call.activation);
  constexpr int values_of_unit = ROWS ? 1 : V;
  const int64_t units = units_of_thread(part);
  S center[CHANNELS][1] = {};

  Part<ROWS, V> beginning = part;
  const int64_t guessed = part.begin + int64_t{part.step} * guess_units;
  beginning.end = guessed < part.end ? guessed : part.end;
  W::reduce(call.at, beginning, inputs, center, activation, sums);
  const auto units_guessed = static_cast<S>(units < guess_units ? units : guess_units);
  for (int v = 0; v < CHANNELS; ++v) {
    const S sum = static_cast<S>(sums[v][0]);
    center[v][0] = units > 0 ? usable(sum / (units_guessed * values_of_unit)) : S{0};
    sums[v][0] = sums[v][1] = 0;
  }

  W::reduce(call.at, part, inputs, center, activation, sums);
  const auto n = static_cast<double>(units * values_of_unit);
  S reference[CHANNELS];
  references_at<T>(call, part.offset(call.at, part.begin), reference);
  for (int v = 0; v < CHANNELS; ++v) {
    const double distance = static_cast<double>(center[v][0]) - static_cast<double>(reference[v]);
    sums[v][1] += distance * (2 * sums[v][0] + n * distance);
    sums[v][0] += n * distance;
  }
}

// Moments of one chunk of the batch, for each channel of a block; the last block of its channels
// makes their statistics of them.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    forward_partial(const __grid_constant__ ForwardCall call) {
  using S = Scalar<T>;
  auto& room = shared_storage<ChannelSums<ROWS, V, 2>>();
  let_next_kernel_start();
  const Part<ROWS, V> part(call.at, blockIdx.x);
  double sums[ROWS ? V : 1][2] = {};
  with_constant(call.activation.act_norm, [&](auto act_norm) {
    add_moments<T, decltype(act_norm)::value>(call, part, sums);
  });
  room.add(part.columns, sums);

  double moments[2];
  const int t = thread_of_block();
  const bool has = t < part.block_channels && part.first_channel + t < call.at.channels;
  if (has) {
    S reference[1];
    const int64_t from_thread = part.first_channel + t - part.channel;
    references_at<T>(call, part.offset(call.at, part.begin) + (ROWS ? from_thread : 0), reference);
    for (int i = 0; i < 2; ++i) moments[i] = room.totals[i][t];
    const int64_t units = call.at.units_per_block;
    MomentSums::conclude(moments, reference[0],
                         values_of_units<ROWS, V>(call.at, part.begin, units));
  }
  finish_channels<MomentSums>(call.at, part, room, call.work, has, moments,
                              [&](int split, int64_t c, const double (&m)[2]) {
                                const double var = m[1] * call.at.inverse_values;
                                update_running<T>(call, split, c, m[0], var);
                                S factors[3];
                                forward_factors<T>(call, split, c, m[0], var, true, factors);
                              });
}

// Mean, scale and shift, which the maps of all ops begin with.
template <typename T, typename Call, bool ROWS, int V, int CHANNELS, int VECTORS>
__device__ __forceinline__ void read_stats(const Call& call, const Part<ROWS, V>& part,
                                           Scalar<T> (&k)[CHANNELS][VECTORS]) {
  if (!part.active) return;
  const auto read = [&](int i, StatsRow row) {
    load_channels(stats_row<T>(call, part.split, row) + part.channel, i, k);
  };
  read(0, row_mean);
  read(1, row_scale);
  read(2, row_shift);
}

// Normalises and activates one chunk.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    forward_apply(const __grid_constant__ ForwardCall call) {
  using S = Scalar<T>;
  using U = Unit<T, typename Ops<T, ForwardCall, false>::Map, ROWS, V>;
  using Factors = SharedArray<SharedArray<S, 3>, most_block_channels<ROWS, V>>;
  // From the end, which the first kernel has left in the second-level cache.
  const Part<ROWS, V> part(call.at, gridDim.x - 1 - blockIdx.x);
  typename U::Factors k;
  wait_for_previous_kernel();
  if (call.training) {
    if (blockIdx.x == 0 && thread_of_block() == 0 && call.num_batches_tracked != nullptr) {
      *call.num_batches_tracked += call.at.splits;
    }
    read_stats<T>(call, part, k);
  } else {
    auto& factors = shared_storage<Factors>();
    const int t = thread_of_block();
    const int64_t c = part.first_channel + t;
    if (t < part.block_channels && c < call.at.channels) {
      const double mean = call.running_mean.get<T>(c, S{0});
      const double var = call.running_var.get<T>(c, S{1});
      S of_channel[3];
      forward_factors<T>(call, 0, c, mean, var, part.chunk == 0, of_channel);
      for (int i = 0; i < 3; ++i) factors[t][i] = of_channel[i];
    }
    __syncthreads();
    for (int v = 0; v < U::channels && part.active; ++v) {
      const int of_block = static_cast<int>(part.channel - part.first_channel) + v;
      for (int i = 0; i < 3; ++i) k[v][i] = factors[of_block][i];
    }
  }
  with_constant(call.activation.act_norm, [&](auto act_norm) {
    using Op = typename Ops<T, ForwardCall, decltype(act_norm)::value>::Map;
    Walk<T, Op, ROWS, V>::map(call.at, part, {{input_of<T>(call.x)}}, {static_cast<T*>(call.y)}, k,
                              activation_of<T>(call.activation));
  });
}

template <typename T>
__device__ __forceinline__ Inputs<T, 2> inputs_of(const BackwardCall& call) {
  return {{input_of<T>(call.x), input_of<T>(call.dy)}};
}
template <typename T>
__device__ __forceinline__ Inputs<T, 3> inputs_of(const DoubleBackwardCall& call) {
  return {{input_of<T>(call.x), input_of<T>(call.dy), input_of<T>(call.ddx)}};
}

// What is finished for one channel: factors of the map, and gradients of parameters, which are sums
// over the splits. The same object sees them in order.
template <typename T>
struct BackwardFinish {
  using S = Scalar<T>;
  static constexpr int sums = 2, factors = 2;
  double dweight = 0, dbias = 0;

  __device__ __forceinline__ void split(const BackwardCall& call, int split, int64_t c,
                                        const double (&sums)[2], S (&factors)[2]) {
    dweight += sums[1] * stats_row<T>(call, split, row_rstd)[c];
    dbias += sums[0];
    finish_backward<T>(call, split, c, sums, factors);
  }
  __device__ __forceinline__ void channel(const BackwardCall& call, int64_t c) const {
    if (call.dweight == nullptr) return;
    static_cast<S*>(call.dweight)[c] = static_cast<S>(dweight);
    static_cast<S*>(call.dbias)[c] = static_cast<S>(dbias);
  }
};

template <typename T>
struct DoubleBackwardFinish {
  using S = Scalar<T>;
  static constexpr int sums = 5, factors = 5;
  double d_weight = 0;

  __device__ __forceinline__ void split(const DoubleBackwardCall& call, int split, int64_t c,
                                        const double (&sums)[5], S (&factors)[5]) {
    d_weight += finish_double_backward<T>(call, split, c, sums, factors);
  }
  __device__ __forceinline__ void channel(const DoubleBackwardCall& call, int64_t c) const {
    static_cast<S*>(call.d_weight)[c] = static_cast<S>(d_weight);
  }
};

template <typename T, typename Call>
using FinishOf = std::conditional_t<std::is_same_v<Call, BackwardCall>, BackwardFinish<T>,
                                    DoubleBackwardFinish<T>>;

template <typename T, typename Call>
__device__ __forceinline__ Scalar<T>* factors_row(const Call& call, int split, int i) {
  constexpr int rows = FinishOf<T, Call>::factors;
  return static_cast<Scalar<T>*>(call.factors) + (int64_t{split} * rows + i) * call.at.channels;
}

// Sums over one chunk of the batch, for each channel of a block; the last block of its channels
// makes the map's factors and the gradients of parameters of them.
template <typename T, typename Call, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    gradient_partial(const __grid_constant__ Call call) {
  using U = Unit<T, typename Ops<T, Call, false>::Sums, ROWS, V>;
  using Finish = FinishOf<T, Call>;
  constexpr int R = Finish::sums;
  auto& room = shared_storage<ChannelSums<ROWS, V, R>>();
  let_next_kernel_start();
  const Part<ROWS, V> part(call.at, blockIdx.x);
  typename U::Factors k;
  read_stats<T>(call, part, k);
  double sums[U::channels][R] = {};
  with_constant(call.activation.act_norm, [&](auto act_norm) {
    using Op = typename Ops<T, Call, decltype(act_norm)::value>::Sums;
    Walk<T, Op, ROWS, V>::reduce(call.at, part, inputs_of<T>(call), k,
                                 activation_of<T>(call.activation), sums);
  });
  room.add(part.columns, sums);

  double of_chunk[R];
  const int t = thread_of_block();
  const bool has = t < part.block_channels && part.first_channel + t < call.at.channels;
  for (int i = 0; i < R && has; ++i) of_chunk[i] = room.totals[i][t];
  Finish finish;
  finish_channels<PlainSums<R>>(call.at, part, room, call.work, has, of_chunk,
                                [&](int split, int64_t c, const double (&of_split)[R]) {
                                  Scalar<T> factors[Finish::factors];
                                  finish.split(call, split, c, of_split, factors);
                                  for (int i = 0; i < Finish::factors; ++i)
                                    factors_row<T>(call, split, i)[c] = factors[i];
                                  if (split == call.at.splits - 1) finish.channel(call, c);
                                });
}

// The map over the block's chunk.
template <typename T, bool ROWS, int V, typename Call, int RESULTS>
__device__ __forceinline__ void map_gradients(const Call& call, const Part<ROWS, V>& part,
                                              T* const (&out)[RESULTS]) {
  with_constant(call.training, [&](auto training) {
    using U =
        Unit<T, typename Ops<T, Call, false>::template Map<decltype(training)::value>, ROWS, V>;
    typename U::Factors k;
    if (!part.active) return;
    read_stats<T>(call, part, k);
    for (int i = 3; i < U::vectors; ++i) {
      load_channels(factors_row<T>(call, part.split, i - 3) + part.channel, i, k);
    }
    with_constant(call.activation.act_norm, [&](auto act_norm) {
      using Op =
          typename Ops<T, Call, decltype(act_norm)::value>::template Map<decltype(training)::value>;
      Walk<T, Op, ROWS, V>::map(call.at, part, inputs_of<T>(call), out, k,
                                activation_of<T>(call.activation));
    });
  });
}

// Writes dx of one chunk.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    backward_apply(const __grid_constant__ BackwardCall call) {
  const Part<ROWS, V> part(call.at, gridDim.x - 1 - blockIdx.x);
  wait_for_previous_kernel();
  map_gradients<T>(call, part, {static_cast<T*>(call.dx)});
}

// Writes d_dy and d_x of one chunk.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    double_backward_apply(const __grid_constant__ DoubleBackwardCall call) {
  const Part<ROWS, V> part(call.at, gridDim.x - 1 - blockIdx.x);
  wait_for_previous_kernel();
  map_gradients<T>(call, part, {static_cast<T*>(call.d_dy), static_cast<T*>(call.d_x)});
}

}  // namespace ganfast
