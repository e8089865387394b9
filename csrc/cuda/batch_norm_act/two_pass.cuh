// batch_norm_act in two kernels, for any size and layout: partial sums of chunks, then a map whose
// blocks first put the partial sums together, all in the same order.
#pragma once

#include "cuda/batch_norm_act/finish.cuh"
#include "cuda/batch_norm_act/loops.cuh"

namespace ganfast {

static_assert(most_block_threads <= most_warps * warp_threads, "block_sum has no more room");

// Blocks that a multiprocessor is to hold, but for double backward's sums, which need registers.
inline constexpr int resident_blocks = 2;
// Units a thread reads for a guess of the mean that its block's sums are taken about. The guess is
// the mean of a good part of what follows, so these sums lose few digits wherever the mean lies.
inline constexpr int guess_units = 4;

// Sums over threads: of R values for each channel of a block.
template <bool ROWS, int V, int R>
struct ChannelSums {
  static constexpr int channels = ROWS ? most_block_channels : 1;
  SharedArray<double, most_block_threads*(ROWS ? V : 1)> slots;
  WarpSums<R> warps;
  SharedArray<SharedArray<double, channels>, R> totals;

  // totals[i] of each channel from slots that hold `rows` rows of `columns` channels.
  __device__ __forceinline__ void add_rows(int i, int rows, int columns) {
    __syncthreads();
    for (int t = thread_of_block(); t < columns; t += threads_of_block()) {
      double sum = slots[t];
      for (int row = 1; row < rows; ++row) sum += slots[row * columns + t];
      totals[i][t] = sum;
    }
    __syncthreads();
  }

  // totals[i] from what each thread has summed up.
  template <int COUNT>
  __device__ __forceinline__ void add_threads(const Part<ROWS, V>& part,
                                              double (&values)[ROWS ? V : 1][COUNT]) {
    if constexpr (ROWS) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const int first = part.thread * part.block_channels + static_cast<int>(threadIdx.x) * V;
#pragma unroll
        for (int v = 0; v < V; ++v) slots[first + v] = values[v][i];
        add_rows(i, part.step, part.block_channels);
      }
    } else {
      double sums[R] = {};
      for (int i = 0; i < COUNT; ++i) sums[i] = values[0][i];
      block_sum(sums, warps);
      if (part.thread == 0) {
        for (int i = 0; i < COUNT; ++i) totals[i][0] = sums[i];
      }
      __syncthreads();
    }
  }

  // totals[i] from the partial sums of a split's chunks; terms(chunk, channel, values) has them.
  template <typename Terms>
  __device__ __forceinline__ void add_chunks(const Geometry& at, const Part<ROWS, V>& part,
                                             const Terms& terms) {
    const int columns = part.block_channels, groups_there = threads_of_block() / columns;
    const int groups = groups_there < at.chunks ? groups_there : at.chunks;
    const int thread = thread_of_block(), group = thread / columns;
    const int64_t channel = part.first_channel + thread % columns;
    double sums[R] = {};
    if (channel < at.channels) {
      for (int chunk = group; chunk < at.chunks && group < groups; chunk += groups) {
        double values[R];
        terms(chunk, channel, values);
        for (int i = 0; i < R; ++i) sums[i] += values[i];
      }
    }
    for (int i = 0; i < R; ++i) {
      if (group < groups) slots[thread] = sums[i];
      add_rows(i, groups, columns);
    }
  }
};

template <int R>
__device__ __forceinline__ double* partial(const Geometry& at, double* partials, int split,
                                           int chunk, int i, int64_t channel) {
  return partials + ((int64_t{split} * at.chunks + chunk) * R + i) * at.channels + channel;
}

template <int R, bool ROWS, int V>
__device__ __forceinline__ void write_partials(const Geometry& at, const Part<ROWS, V>& part,
                                               ChannelSums<ROWS, V, R>& room, double* partials) {
  for (int t = thread_of_block(); t < part.block_channels; t += threads_of_block()) {
    const int64_t c = part.first_channel + t;
    if (c >= at.channels) break;
    for (int i = 0; i < R; ++i) {
      *partial<R>(at, partials, part.split, part.chunk, i, c) = room.totals[i][t];
    }
  }
}

// Values of a channel in one chunk.
template <bool ROWS, int V>
__device__ __forceinline__ double values_of_chunk(const Geometry& at, int chunk) {
  const int64_t begin = chunk * at.units_per_block, left = at.units - begin;
  const int64_t units = left < at.units_per_block ? left : at.units_per_block;
  return static_cast<double>(units * (ROWS ? 1 : V));
}

// What an apply kernel keeps in shared memory: R sums and F factors of each channel.
template <typename T, bool ROWS, int V, int R, int F>
struct ApplyStorage {
  ChannelSums<ROWS, V, R> sums;
  SharedArray<SharedArray<Scalar<T>, F>, ROWS ? most_block_channels : 1> factors;
};

// Calls finish(split, t, channel) by one thread of the block a channel, for the block's own split.
// The first block of a channel goes through all splits in order, for what is summed over them.
template <typename Room, typename Terms, typename Finish, bool ROWS, int V>
__device__ __forceinline__ void finish_channels(const Geometry& at, const Part<ROWS, V>& part,
                                                Room& room, const Terms& terms,
                                                const Finish& finish) {
  const bool first = part.split == 0 && part.chunk == 0;
  const int end = first ? at.splits : part.split + 1;
  for (int split = part.split; split < end; ++split) {
    room.add_chunks(at, part, [&](int chunk, int64_t channel, double* values) {
      terms(split, chunk, channel, values);
    });
    const int t = thread_of_block();
    if (t < part.block_channels && part.first_channel + t < at.channels) {
      finish(split, t, part.first_channel + t);
    }
  }
  __syncthreads();
}

// Mean and sum of squares about it of one chunk of the batch, for each channel of a block.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    forward_partial(const __grid_constant__ ForwardCall call) {
  using S = Scalar<T>;
  using U = Unit<T, typename Ops<T, ForwardCall, false>::Sums, ROWS, V>;
  auto& room = shared_storage<ChannelSums<ROWS, V, 2>>();
  let_next_kernel_start();
  if (blockIdx.x == 0 && thread_of_block() == 0 && call.num_batches_tracked != nullptr) {
    *call.num_batches_tracked += call.at.splits;
  }
  const Part<ROWS, V> part(call.at, blockIdx.x);
  typename U::Factors center = {};
  double sums[U::channels][2] = {};
  const auto reduce = [&](const Part<ROWS, V>& units) {
    with_constant(call.activation.act_norm, [&](auto act_norm) {
      using Op = typename Ops<T, ForwardCall, decltype(act_norm)::value>::Sums;
      Walk<T, Op, ROWS, V>::reduce(call.at, units, {{input_of<T>(call.x)}}, center,
                                   activation_of<T>(call.activation), sums);
    });
  };

  Part<ROWS, V> beginning = part;
  const int64_t guessed = part.begin + int64_t{part.step} * guess_units;
  beginning.end = guessed < part.end ? guessed : part.end;
  reduce(beginning);
  double guess[U::channels][1];
  for (int v = 0; v < U::channels; ++v) guess[v][0] = sums[v][0];
  room.add_threads(part, guess);
  const double values_guessed = static_cast<double>((beginning.end - part.begin) * (ROWS ? 1 : V));
  for (int v = 0; v < U::channels; ++v) {
    const double sum = room.totals[0][ROWS ? static_cast<int>(threadIdx.x) * V + v : 0];
    center[v][0] = usable(static_cast<S>(sum / values_guessed));
    sums[v][0] = sums[v][1] = 0;
  }

  reduce(part);
  const double inverse_n = 1.0 / values_of_chunk<ROWS, V>(call.at, part.chunk);
  room.add_threads(part, sums);
  for (int v = 0; v < U::channels; ++v) {
    if (!part.active || part.thread != 0) break;
    const int t = ROWS ? static_cast<int>(threadIdx.x) * V + v : 0;
    const Moments m = moments_about(center[v][0], room.totals[0][t], room.totals[1][t], inverse_n);
    *partial<2>(call.at, call.partials, part.split, part.chunk, 0, part.channel + v) = m.mean;
    *partial<2>(call.at, call.partials, part.split, part.chunk, 1, part.channel + v) = m.m2;
  }
}

// Puts a split's moments together, then normalises and activates one chunk of it.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    forward_apply(const __grid_constant__ ForwardCall call) {
  using S = Scalar<T>;
  using U = Unit<T, typename Ops<T, ForwardCall, false>::Map, ROWS, V>;
  auto& storage = shared_storage<ApplyStorage<T, ROWS, V, 2, 3>>();
  // From the end, which the first kernel has left in the second-level cache.
  const Part<ROWS, V> part(call.at, gridDim.x - 1 - blockIdx.x);
  wait_for_previous_kernel();
  if (call.training) {
    const auto mean_of = [&](int split, int chunk, int64_t c) {
      return *partial<2>(call.at, call.partials, split, chunk, 0, c);
    };
    finish_channels(
        call.at, part, storage.sums,
        [&](int split, int chunk, int64_t c, double* values) {
          const double n = values_of_chunk<ROWS, V>(call.at, chunk);
          const double distance = mean_of(split, chunk, c) - usable(mean_of(split, 0, c));
          values[0] = n * distance;
          values[1] =
              *partial<2>(call.at, call.partials, split, chunk, 1, c) + n * distance * distance;
        },
        [&](int split, int t, int64_t c) {
          auto& totals = storage.sums.totals;
          const Moments m = moments_about(usable(mean_of(split, 0, c)), totals[0][t], totals[1][t],
                                          call.at.inverse_values);
          const double var = m.m2 * call.at.inverse_values;
          if (part.split == 0 && part.chunk == 0) {
            update_running<T>(call, split, c, m.mean, var);
          }
          if (split != part.split) return;
          forward_factors<T>(call, split, c, m.mean, var, part.chunk == 0, &storage.factors[t][0]);
        });
  } else {
    const int t = thread_of_block();
    const int64_t c = part.first_channel + t;
    if (t < part.block_channels && c < call.at.channels) {
      const double mean = call.running_mean.get<T>(c, S{0});
      const double var = call.running_var.get<T>(c, S{1});
      forward_factors<T>(call, 0, c, mean, var, part.chunk == 0, &storage.factors[t][0]);
    }
    __syncthreads();
  }

  if (!part.active) return;
  typename U::Factors k;
  for (int v = 0; v < U::channels; ++v) {
    const int t = static_cast<int>(part.channel - part.first_channel) + v;
    for (int i = 0; i < 3; ++i) k[v][i] = storage.factors[t][i];
  }
  with_constant(call.activation.act_norm, [&](auto act_norm) {
    using Op = typename Ops<T, ForwardCall, decltype(act_norm)::value>::Map;
    Walk<T, Op, ROWS, V>::map(call.at, part, {{input_of<T>(call.x)}}, {static_cast<T*>(call.y)}, k,
                              activation_of<T>(call.activation));
  });
}

// The vectors that every backward op begins with: mean, scale and shift.
template <typename T, typename Call, bool ROWS, int V, int CHANNELS, int VECTORS>
__device__ __forceinline__ void read_stats(const Call& call, const Part<ROWS, V>& part,
                                           Scalar<T> (&k)[CHANNELS][VECTORS]) {
  if (!part.active) return;
  for (int v = 0; v < CHANNELS; ++v) {
    k[v][0] = stats_row<T>(call, part.split, row_mean)[part.channel + v];
    k[v][1] = stats_row<T>(call, part.split, row_scale)[part.channel + v];
    k[v][2] = stats_row<T>(call, part.split, row_shift)[part.channel + v];
  }
}

__device__ __forceinline__ double partial_sum(const BackwardCall& call, int split, int chunk, int i,
                                              int64_t c) {
  return *partial<2>(call.at, call.partials, split, chunk, i, c);
}

template <typename T>
__device__ __forceinline__ Inputs<T, 2> inputs_of(const BackwardCall& call) {
  return {{input_of<T>(call.x), input_of<T>(call.dy)}};
}
template <typename T>
__device__ __forceinline__ Inputs<T, 3> inputs_of(const DoubleBackwardCall& call) {
  return {{input_of<T>(call.x), input_of<T>(call.dy), input_of<T>(call.ddx)}};
}

template <typename T, typename Call>
inline constexpr int gradient_sums = Ops<T, Call, false>::Sums::results;

// The sums over one chunk of the batch, for each channel of a block.
template <typename T, typename Call, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads,
                                  gradient_sums<T, Call> > 2 ? 1 : resident_blocks)
    gradient_partial(const __grid_constant__ Call call) {
  using U = Unit<T, typename Ops<T, Call, false>::Sums, ROWS, V>;
  constexpr int results = gradient_sums<T, Call>;
  auto& room = shared_storage<ChannelSums<ROWS, V, results>>();
  let_next_kernel_start();
  const Part<ROWS, V> part(call.at, blockIdx.x);
  typename U::Factors k;
  read_stats<T>(call, part, k);
  double sums[U::channels][results] = {};
  with_constant(call.activation.act_norm, [&](auto act_norm) {
    using Op = typename Ops<T, Call, decltype(act_norm)::value>::Sums;
    Walk<T, Op, ROWS, V>::reduce(call.at, part, inputs_of<T>(call), k,
                                 activation_of<T>(call.activation), sums);
  });
  room.add_threads(part, sums);
  write_partials<results>(call.at, part, room, call.partials);
}

// The map over the block's chunk, once its channels' factors are in shared memory.
template <typename T, bool ROWS, int V, typename Call, typename Storage, int RESULTS>
__device__ __forceinline__ void map_gradients(const Call& call, const Part<ROWS, V>& part,
                                              Storage& storage, T* const (&out)[RESULTS]) {
  with_constant(call.training, [&](auto training) {
    using U =
        Unit<T, typename Ops<T, Call, false>::template Map<decltype(training)::value>, ROWS, V>;
    typename U::Factors k;
    read_stats<T>(call, part, k);
    if (!part.active) return;
    for (int v = 0; v < U::channels; ++v) {
      const int t = static_cast<int>(part.channel - part.first_channel) + v;
      for (int i = 3; i < U::vectors; ++i) k[v][i] = storage.factors[t][i - 3];
    }
    with_constant(call.activation.act_norm, [&](auto act_norm) {
      using Op =
          typename Ops<T, Call, decltype(act_norm)::value>::template Map<decltype(training)::value>;
      Walk<T, Op, ROWS, V>::map(call.at, part, inputs_of<T>(call), out, k,
                                activation_of<T>(call.activation));
    });
  });
}

// Puts the sums of g and g d together, then writes dx of one chunk.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    backward_apply(const __grid_constant__ BackwardCall call) {
  using S = Scalar<T>;
  auto& storage = shared_storage<ApplyStorage<T, ROWS, V, 2, 2>>();
  const Part<ROWS, V> part(call.at, gridDim.x - 1 - blockIdx.x);
  wait_for_previous_kernel();
  if (call.partials != nullptr) {
    double dweight = 0, dbias = 0;
    finish_channels(
        call.at, part, storage.sums,
        [&](int split, int chunk, int64_t c, double* values) {
          for (int i = 0; i < 2; ++i) values[i] = partial_sum(call, split, chunk, i, c);
        },
        [&](int split, int t, int64_t c) {
          const double sums[] = {storage.sums.totals[0][t], storage.sums.totals[1][t]};
          dweight += sums[1] * stats_row<T>(call, split, row_rstd)[c];
          dbias += sums[0];
          if (split == part.split)
            backward_factors<T>(call, split, c, sums, &storage.factors[t][0]);
          if (part.split != 0 || part.chunk != 0 || call.dweight == nullptr) return;
          static_cast<S*>(call.dweight)[c] = static_cast<S>(dweight);
          static_cast<S*>(call.dbias)[c] = static_cast<S>(dbias);
        });
  }
  if (call.dx == nullptr) return;
  T* const out[] = {static_cast<T*>(call.dx)};
  map_gradients<T>(call, part, storage, out);
}

// Puts the five sums of double backward together, then writes d_dy and d_x of one chunk.
template <typename T, bool ROWS, int V>
__global__ void __launch_bounds__(most_block_threads, resident_blocks)
    double_backward_apply(const __grid_constant__ DoubleBackwardCall call) {
  auto& storage = shared_storage<ApplyStorage<T, ROWS, V, 5, 5>>();
  const Part<ROWS, V> part(call.at, gridDim.x - 1 - blockIdx.x);
  wait_for_previous_kernel();
  double d_weight = 0;
  finish_channels(
      call.at, part, storage.sums,
      [&](int split, int chunk, int64_t c, double* values) {
        for (int i = 0; i < 5; ++i) {
          values[i] = *partial<5>(call.at, call.partials, split, chunk, i, c);
        }
      },
      [&](int split, int t, int64_t c) {
        double sums[5];
        for (int i = 0; i < 5; ++i) sums[i] = storage.sums.totals[i][t];
        Scalar<T> factors[5];
        d_weight += double_backward_factors<T>(call, split, c, sums, factors);
        for (int i = 0; i < 5 && split == part.split; ++i) storage.factors[t][i] = factors[i];
        if (part.split != 0 || part.chunk != 0) return;
        static_cast<Scalar<T>*>(call.d_weight)[c] = static_cast<Scalar<T>>(d_weight);
      });
  T* const out[] = {static_cast<T*>(call.d_dy), static_cast<T*>(call.d_x)};
  map_gradients<T>(call, part, storage, out);
}

}  // namespace ganfast
