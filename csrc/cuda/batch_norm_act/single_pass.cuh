// batch_norm_act in one kernel, where a channel's values fit into the registers of a cluster of
// blocks: each value is read once and each result written once. NC* only, in units of 16 bytes.
#pragma once

#include "cuda/batch_norm_act/finish.cuh"
#include "cuda/batch_norm_act/loops.cuh"

namespace ganfast {

static_assert(most_on_chip_threads <= most_warps * warp_threads, "block_sum has no more room");

// Blocks that a multiprocessor is to hold, by the words that each thread keeps: more blocks would
// leave too few registers.
template <int WORDS>
inline constexpr int on_chip_blocks = WORDS < 8 ? 2 : 1;

// What blocks of a cluster tell each other, two values each; twice, as one split's may still be
// read when the next one's arrive.
struct OnChipStorage {
  WarpSums<1> guess;
  SharedArray<WarpSums<2>, 2> sums;
  SharedArray<SharedArray<SharedArray<double, 2>, most_cluster>, 2> told;
};

// The vectors of one channel that one block of its cluster holds, and how they are loaded.
template <typename T, int ITEMS>
struct Slice {
  static constexpr int V = word_values<T>;
  const Geometry& at;
  int rank, ranks;
  Part<false, V> part;

  __device__ __forceinline__ explicit Slice(const Geometry& at_)
      : at(at_), rank(cluster_rank()), ranks(cluster_size()), part(at_, blockIdx.x / ranks) {
    part.begin = rank * at.units_per_block;
    const int64_t end = part.begin + at.units_per_block;
    part.end = end < at.units ? end : at.units;
  }
  __device__ __forceinline__ int64_t unit(int item) const {
    return part.begin + item * part.step + part.thread;
  }
  __device__ __forceinline__ bool has(int item) const { return unit(item) < part.end; }
  __device__ __forceinline__ double values_of(int other) const {
    const int64_t begin = other * at.units_per_block, left = at.units - begin;
    const int64_t units = left < at.units_per_block ? left : at.units_per_block;
    return units < 0 ? 0 : static_cast<double>(units * V);
  }
  template <int INPUTS>
  __device__ __forceinline__ void load_items(const Inputs<T, INPUTS>& in,
                                             Word<T, V> (&words)[ITEMS][INPUTS]) const {
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      if (!has(item)) continue;
      const int64_t offset = part.offset(at, unit(item));
#pragma unroll
      for (int i = 0; i < INPUTS; ++i) {
        words[item][i] = load<T, V>(in.of[i] + offset);
      }
    }
  }
  // Tells `mine` to every block of the cluster, and waits for theirs.
  __device__ __forceinline__ void tell(const double (&mine)[2], int split) const {
    const int thread = thread_of_block();
    if (thread < ranks) {
      auto& theirs = shared_storage_of<OnChipStorage>(thread).told[split % 2][rank];
      for (int i = 0; i < 2; ++i) theirs[i] = mine[i];
    }
    cluster_arrive();
    cluster_wait();
  }
};

// One cluster normalises and activates one channel, split after split.
template <typename T, Activation A, bool act_norm, int ITEMS>
__global__ void __launch_bounds__(most_on_chip_threads, on_chip_blocks<ITEMS>)
    forward_on_chip(const __grid_constant__ ForwardCall call) {
  using S = Scalar<T>;
  using F = device::Forward<T, A, act_norm>;
  constexpr int V = word_values<T>;
  using SumsUnit = Unit<T, typename F::Sums, false, V>;
  using MapUnit = Unit<T, typename F::Map, false, V>;
  auto& storage = shared_storage<OnChipStorage>();
  Slice<T, ITEMS> slice(call.at);
  const int64_t c = slice.part.channel;
  const bool first_thread = thread_of_block() == 0 && slice.rank == 0;
  const S slope = static_cast<S>(call.activation.slope);
  if (slice.ranks > 1) cluster_arrive();  // this block can be told
  if (first_thread && c == 0 && call.num_batches_tracked != nullptr) {
    *call.num_batches_tracked += call.at.splits;
  }
  for (int split = 0; split < call.at.splits; ++split) {
    slice.part.split = split;
    Word<T, V> words[ITEMS][1];
    slice.load_items(Inputs<T, 1>{{input_of<T>(call.x)}}, words);

    const double n = slice.values_of(slice.rank);
    const double inverse_n = n == 0 ? 0 : 1.0 / n;
    S center[1][1] = {};
    S of_lane[V][2] = {};
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      if (slice.has(item)) SumsUnit::add(words[item], center, slope, of_lane);
    }
    S sum[1] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) sum[0] += of_lane[v][0];
    block_sum(sum, storage.guess);
    center[0][0] = usable(sum[0] * static_cast<S>(inverse_n));

    S about_center[V][2] = {};
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      if (slice.has(item)) SumsUnit::add(words[item], center, slope, about_center);
    }
    double sums[1][2] = {};
    SumsUnit::flush(about_center, sums);
    block_sum(sums[0], storage.sums[split % 2]);
    Moments m = moments_about(center[0][0], sums[0][0], sums[0][1], inverse_n);
    if (slice.ranks > 1) {
      if (split == 0) cluster_wait();  // all blocks can be told
      slice.tell({m.mean, m.m2}, split);
      auto& told = storage.told[split % 2];
      double total = 0;
      for (int r = 0; r < slice.ranks; ++r) {
        if (const double n_r = slice.values_of(r); n_r > 0) total += n_r * told[r][0];
      }
      m = {total * call.at.inverse_values, 0};
      for (int r = 0; r < slice.ranks; ++r) {
        const double n_r = slice.values_of(r), distance = told[r][0] - m.mean;
        if (n_r > 0) m.m2 += told[r][1] + n_r * distance * distance;
      }
    }

    const double var = m.m2 * call.at.inverse_values;
    S k[1][3];
    forward_factors<T>(call, split, c, m.mean, var, first_thread, k[0]);
    if (first_thread) update_running<T>(call, split, c, m.mean, var);
    T* const y = static_cast<T*>(call.y);
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      if (!slice.has(item)) continue;
      Word<T, V> out[1];
      MapUnit::map(words[item], k, slope, out);
      store<T, V>(y + slice.part.offset(call.at, slice.unit(item)), out[0]);
    }
  }
}

// One cluster computes dx, dweight and dbias of one channel in training, split after split.
template <typename T, Activation A, bool act_norm, int ITEMS>
__global__ void __launch_bounds__(most_on_chip_threads, on_chip_blocks<2 * ITEMS>)
    backward_on_chip(const __grid_constant__ BackwardCall call) {
  using S = Scalar<T>;
  using B = device::Backward<T, A, act_norm>;
  constexpr int V = word_values<T>;
  using SumsUnit = Unit<T, typename B::Sums, false, V>;
  using MapUnit = Unit<T, typename B::template Map<true>, false, V>;
  auto& storage = shared_storage<OnChipStorage>();
  Slice<T, ITEMS> slice(call.at);
  const int64_t c = slice.part.channel;
  const S slope = static_cast<S>(call.activation.slope);
  if (slice.ranks > 1) cluster_arrive();  // this block can be told
  double dweight = 0, dbias = 0;
  for (int split = 0; split < call.at.splits; ++split) {
    slice.part.split = split;
    Word<T, V> words[ITEMS][2];
    slice.load_items(Inputs<T, 2>{{input_of<T>(call.x), input_of<T>(call.dy)}}, words);
    const S mean = stats_row<T>(call, split, row_mean)[c];
    const S scale = stats_row<T>(call, split, row_scale)[c];
    const S shift = stats_row<T>(call, split, row_shift)[c];

    const S known[1][3] = {{mean, scale, shift}};
    S of_lane[V][2] = {};
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      if (slice.has(item)) SumsUnit::add(words[item], known, slope, of_lane);
    }
    double sums[1][2] = {};
    SumsUnit::flush(of_lane, sums);
    block_sum(sums[0], storage.sums[split % 2]);
    if (slice.ranks > 1) {
      if (split == 0) cluster_wait();  // all blocks can be told
      slice.tell(sums[0], split);
      auto& told = storage.told[split % 2];
      for (int i = 0; i < 2; ++i) {
        sums[0][i] = told[0][i];
        for (int r = 1; r < slice.ranks; ++r) sums[0][i] += told[r][i];
      }
    }

    dweight += sums[0][1] * stats_row<T>(call, split, row_rstd)[c];
    dbias += sums[0][0];
    if (call.dx == nullptr) continue;
    S k[1][5] = {{mean, scale, shift}};
    backward_factors<T>(call, split, c, sums[0], &k[0][3]);
    T* const dx = static_cast<T*>(call.dx);
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      if (!slice.has(item)) continue;
      Word<T, V> out[1];
      MapUnit::map(words[item], k, slope, out);
      store<T, V>(dx + slice.part.offset(call.at, slice.unit(item)), out[0]);
    }
  }
  if (call.dweight != nullptr && thread_of_block() == 0 && slice.rank == 0) {
    static_cast<S*>(call.dweight)[c] = static_cast<S>(dweight);
    static_cast<S*>(call.dbias)[c] = static_cast<S>(dbias);
  }
}

}  // namespace ganfast
