// Which values a thread reads, and in which order: the part of the CUDA kernels of batch_norm_act
// that is the same for every op of pointwise.h.
//
// A thread adds up to 32 units in its arithmetic's type before they go to double, so that the error
// does not grow with the batch.
#pragma once

#include "cuda/batch_norm_act/calls.h"
#include "cuda/block_sum.cuh"

namespace ganfast {
namespace device {

template <typename T>
using Vec = Scalar<T>;  // one "vector" of pointwise.h is one value

// An activation that a kernel is told, in place of pointwise.h's slope. As two selections: a switch
// over the rows of GANFAST_ACTIVATIONS costs a branch for each value.
template <typename S>
struct AnyActivation {
  S slope;
  bool relu;
};
static_assert(activation_count == 3,
              "say here what the two selections of AnyActivation give for the new activation");

using ganfast::activate;
using ganfast::gate;

// common/activation.h's relu and leaky_relu, bit for bit.
template <Activation, typename S>
__device__ __forceinline__ S activate(S z, AnyActivation<S> a) {
  const S below = a.relu ? S{0} : z * a.slope;
  return (a.relu ? !(z < S{0}) : z > S{0}) ? z : below;
}
template <Activation, typename S>
__device__ __forceinline__ S gate(S dy, S z, AnyActivation<S> a) {
  const S below = a.relu ? S{0} : dy * a.slope;
  return (a.relu ? !(z <= S{0}) : z > S{0}) ? dy : below;
}

#include "common/pointwise.h"

inline constexpr auto at_run_time = static_cast<Activation>(-1);  // AnyActivation says which

}  // namespace device

template <typename T>
using AnyActivation = device::AnyActivation<Scalar<T>>;

template <typename T>
__device__ __forceinline__ AnyActivation<T> activation_of(const GivenActivation& given) {
  return {static_cast<Scalar<T>>(given.slope), given.activation == Activation::relu};
}

// The ops of a call's kernels.
template <typename T, typename Call, bool act_norm>
struct OpsOf;
template <typename T, bool act_norm>
struct OpsOf<T, ForwardCall, act_norm> {
  using type = device::Forward<T, device::at_run_time, act_norm>;
};
template <typename T, bool act_norm>
struct OpsOf<T, BackwardCall, act_norm> {
  using type = device::Backward<T, device::at_run_time, act_norm>;
};
template <typename T, bool act_norm>
struct OpsOf<T, DoubleBackwardCall, act_norm> {
  using type = device::DoubleBackward<T, device::at_run_time, act_norm>;
};
template <typename T, typename Call, bool act_norm>
using Ops = typename OpsOf<T, Call, act_norm>::type;

// Calls f with the flag as a constant. Both branches lie in one kernel, around its loops.
template <typename F>
__device__ __forceinline__ void with_constant(bool flag, const F& f) {
  if (flag) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

template <typename T>
__device__ __forceinline__ const T* input_of(const void* tensor) {
  return static_cast<const T*>(tensor);
}

// The op on one unit of V values. k: the op's vectors, of each channel of the unit.
template <typename T, typename Op, bool ROWS, int V>
struct Unit {
  using S = Scalar<T>;
  static constexpr int channels = ROWS ? V : 1;  // of a unit
  static constexpr int vectors = Op::vectors;
  using Words = Word<T, V>[Op::inputs];
  using Factors = S[channels][Op::vectors];

  template <typename Slope>
  static __device__ __forceinline__ void apply(const Words& in, const Factors& k, Slope slope,
                                               S (&results)[V][Op::results]) {
    S values[Op::inputs][V];
#pragma unroll
    for (int i = 0; i < Op::inputs; ++i) unpack<T, V>(in[i], values[i]);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      S of_value[Op::inputs];
#pragma unroll
      for (int i = 0; i < Op::inputs; ++i) of_value[i] = values[i][v];
      Op::apply(of_value, k[ROWS ? v : 0], slope, results[v]);
    }
  }
  template <typename Slope>
  static __device__ __forceinline__ void add(const Words& in, const Factors& k, Slope slope,
                                             S (&sums)[V][Op::results]) {
    S results[V][Op::results];
    apply(in, k, slope, results);
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int i = 0; i < Op::results; ++i) sums[v][i] += results[v][i];
    }
  }
  template <typename Slope>
  static __device__ __forceinline__ void map(const Words& in, const Factors& k, Slope slope,
                                             Word<T, V> (&out)[Op::results]) {
    S results[V][Op::results];
    apply(in, k, slope, results);
#pragma unroll
    for (int i = 0; i < Op::results; ++i) {
      S values[V];
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = results[v][i];
      out[i] = pack<T, V>(values);
    }
  }
  // Adds lanes' sums to the totals of their channels, in double.
  static __device__ __forceinline__ void flush(const S (&sums)[V][Op::results],
                                               double (&totals)[channels][Op::results]) {
#pragma unroll
    for (int i = 0; i < Op::results; ++i) {
#pragma unroll
      for (int v = 0; v < V; ++v) totals[ROWS ? v : 0][i] += static_cast<double>(sums[v][i]);
    }
  }
};

// What one block works on: a part of some channels' units in one split.
template <bool ROWS, int V>
struct Part {
  int split, chunk;
  int64_t first_channel;  // of the block
  int64_t channel;        // of the thread, the first of its unit
  int block_channels;
  int columns;  // threads with different channels
  bool active;  // channels-last: the thread's channels exist
  int64_t begin, end;
  int thread, step;  // of the threads that share the block's units

  __device__ __forceinline__ Part(const Geometry& at, unsigned block) {
    const unsigned channel_block = block % at.channel_blocks, rest = block / at.channel_blocks;
    chunk = static_cast<int>(rest % at.chunks);
    split = static_cast<int>(rest / at.chunks);
    columns = ROWS ? static_cast<int>(blockDim.x) : 1;
    block_channels = columns * (ROWS ? V : 1);
    first_channel = int64_t{channel_block} * block_channels;
    channel = first_channel + (ROWS ? int64_t{threadIdx.x} * V : 0);
    active = channel < at.channels;
    begin = chunk * at.units_per_block;
    end = begin + at.units_per_block < at.units ? begin + at.units_per_block : at.units;
    thread = ROWS ? static_cast<int>(threadIdx.y) : thread_of_block();
    step = ROWS ? static_cast<int>(blockDim.y) : threads_of_block();
  }

  // The element at which a unit of the thread's channel begins.
  __device__ __forceinline__ int64_t offset(const Geometry& at, int64_t unit) const {
    if (ROWS) return split * at.split_stride + unit * at.channels + channel;
    const auto& plane = at.units_of_plane;
    const int64_t image = at.units < (int64_t{1} << 31)
                              ? int64_t{plane.quotient(static_cast<uint32_t>(unit))}
                              : unit / plane.divisor;
    const int64_t position = unit - image * plane.divisor;
    return split * at.split_stride + (image * at.channels + channel) * at.positions + position * V;
  }
};

template <typename T, int INPUTS>
struct Inputs {
  const T* of[INPUTS];  // a null pointer stands for zeros
};

// Units that a thread loads before it uses the first; fewer of many channels, whose sums fill the
// registers.
template <typename Op, int channels>
inline constexpr int unroll = Op::inputs == 3                                       ? 2
                              : Op::inputs == 2 && Op::results == 2 && channels > 4 ? 2
                              : Op::inputs == 2 || channels > 4                     ? 4
                                                                                    : 8;
inline constexpr int run_units = 32;

template <typename T, typename Op, bool ROWS, int V>
struct Walk {
  using S = Scalar<T>;
  using U = Unit<T, Op, ROWS, V>;
  using Place = Part<ROWS, V>;
  static constexpr int count = unroll<Op, U::channels>;

  // Adds the op's results over the thread's units to `totals`.
  template <typename Slope>
  static __device__ __forceinline__ void reduce(const Geometry& at, const Place& part,
                                                const Inputs<T, Op::inputs>& in,
                                                const typename U::Factors& k, Slope slope,
                                                double (&totals)[U::channels][Op::results]) {
    if (!part.active) return;
    const int64_t step = part.step;
    for (int64_t run = part.begin + part.thread; run < part.end; run += step * run_units) {
      S sums[V][Op::results] = {};
      for (int64_t first = run; first < run + step * run_units && first < part.end;
           first += step * count) {
        typename U::Words words[count];
#pragma unroll
        for (int j = 0; j < count; ++j) {
          const int64_t unit = first + j * step;
          if (unit >= part.end) continue;
          const int64_t offset = part.offset(at, unit);
#pragma unroll
          for (int i = 0; i < Op::inputs; ++i) {
            words[j][i] = in.of[i] ? load<T, V>(in.of[i] + offset) : Word<T, V>{};
          }
        }
#pragma unroll
        for (int j = 0; j < count; ++j) {
          if (first + j * step < part.end) U::add(words[j], k, slope, sums);
        }
      }
      U::flush(sums, totals);
    }
  }

  // The op on each of the thread's units. Nothing of it is read again by this call.
  template <typename Slope>
  static __device__ __forceinline__ void map(const Geometry& at, const Place& part,
                                             const Inputs<T, Op::inputs>& in,
                                             T* const (&out)[Op::results],
                                             const typename U::Factors& k, Slope slope) {
    if (!part.active) return;
    const int64_t step = part.step;
    for (int64_t first = part.begin + part.thread; first < part.end; first += step * count) {
      typename U::Words words[count];
      int64_t offsets[count];
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const int64_t unit = first + j * step;
        if (unit >= part.end) continue;
        offsets[j] = part.offset(at, unit);
#pragma unroll
        for (int i = 0; i < Op::inputs; ++i) {
          words[j][i] = in.of[i] ? load_last<T, V>(in.of[i] + offsets[j]) : Word<T, V>{};
        }
      }
#pragma unroll
      for (int j = 0; j < count; ++j) {
        if (first + j * step >= part.end) continue;
        Word<T, V> result[Op::results];
        U::map(words[j], k, slope, result);
#pragma unroll
        for (int i = 0; i < Op::results; ++i) {
          if (at.streams) {
            store_streaming<T, V>(out[i] + offsets[j], result[i]);
          } else {
            store<T, V>(out[i] + offsets[j], result[i]);
          }
        }
      }
    }
  }
};

}  // namespace ganfast
