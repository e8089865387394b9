// batch_norm_act in one kernel, where a channel's values fit into the registers of a cluster of
// blocks: each value is read once and each result written once. NC* only, in units of 16 bytes.
#pragma once

#include "cuda/batch_norm_act/finish.cuh"
#include "cuda/batch_norm_act/loops.cuh"

namespace ganfast {

static_assert(most_on_chip_threads <= most_warps * warp_threads, "no more room for sums of warps");

// The first warp of a block adds up what its warps have found, tells the other blocks of the
// cluster, puts together what these tell it, and leaves the factors of the map for all threads.
template <typename S, int FACTORS>
struct OnChipStorage {
  WarpSums<S, 1> guess;
  WarpSums<double, 2> sums;
  SharedArray<SharedArray<double, 2>, most_cluster> told;  // two values of each block
  SharedArray<S, FACTORS> factors;
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
  // Lets offsets be computed again for the stores: from the loads on they would take registers.
  __device__ __forceinline__ void forget_offsets() {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+l"(part.begin));
#endif
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
  // Tells `mine`, of the first warp, to every block of the cluster, and waits for theirs. Thread r
  // then has rank r's; others have none. All threads of the cluster come here.
  template <typename Storage>
  __device__ __forceinline__ void exchange(double (&mine)[2], Storage& storage) const {
    if (ranks == 1) return;
    const int thread = thread_of_block();
    cluster_wait();  // all blocks can be told
    if (thread < ranks) {
      auto& theirs = shared_storage_of<Storage>(thread).told[rank];
      for (int i = 0; i < 2; ++i) theirs[i] = mine[i];
    }
    cluster_arrive();
    cluster_wait();
    if (thread >= most_cluster) return;
    for (int i = 0; i < 2; ++i) mine[i] = thread < ranks ? storage.told[thread][i] : 0;
  }
};

// Leaves two values of a channel in one split, by one thread of its cluster, and calls
// finish(split, values) for each split in order by the last of these threads.
template <typename Finish>
__device__ __forceinline__ void finish_splits(const Geometry& at, const Workspace& work, int split,
                                              int64_t c, const double (&values)[2],
                                              const Finish& finish) {
  if (at.splits == 1) return finish(0, values);
  for (int i = 0; i < 2; ++i) work.partials[(int64_t{split} * 2 + i) * at.channels + c] = values[i];
  __threadfence();
  const auto wraps_at = static_cast<unsigned>(at.splits - 1);
  if (atomicInc(work.tickets + c, wraps_at) != wraps_at) return;
  __threadfence();
  for (int other = 0; other < at.splits; ++other) {
    const double* const of_other = work.partials + int64_t{other} * 2 * at.channels + c;
    const double theirs[2] = {__ldcg(of_other), __ldcg(of_other + at.channels)};
    finish(other, theirs);
  }
}

// One cluster normalises and activates one channel in one split.
template <typename T, Activation A, bool act_norm, int ITEMS>
__global__ void __launch_bounds__(most_on_chip_threads, on_chip_blocks(ITEMS))
    forward_on_chip(const __grid_constant__ ForwardCall call) {
  using S = Scalar<T>;
  using F = device::Forward<T, A, act_norm>;
  constexpr int V = word_values<T>;
  using SumsUnit = Unit<T, typename F::Sums, false, V>;
  using MapUnit = Unit<T, typename F::Map, false, V>;
  auto& storage = shared_storage<OnChipStorage<S, 3>>();
  Slice<T, ITEMS> slice(call.at);
  const int64_t c = slice.part.channel;
  const int split = slice.part.split, thread = thread_of_block();
  const bool first_thread = thread == 0 && slice.rank == 0;
  const S slope = static_cast<S>(call.activation.slope);
  if (slice.ranks > 1) cluster_arrive();  // this block can be told
  if (first_thread && c == 0 && split == 0 && call.num_batches_tracked != nullptr) {
    *call.num_batches_tracked += call.at.splits;
  }
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
  S sum{};
#pragma unroll
  for (int v = 0; v < V; ++v) sum += of_lane[v][0];
  center[0][0] = usable(block_sum(sum, storage.guess) * static_cast<S>(inverse_n));

  S about_center[V][2] = {};
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    if (slice.has(item)) SumsUnit::add(words[item], center, slope, about_center);
  }
  double sums[1][2] = {};
  SumsUnit::flush(about_center, sums);
  sum_in_first_warp(sums[0], storage.sums);
  Moments m = moments_about(center[0][0], sums[0][0], sums[0][1], inverse_n);
  double mine[2] = {m.mean, m.m2};
  slice.exchange(mine, storage);
  if (thread < warp_threads) {
    if (slice.ranks > 1) {
      const double n_r = thread < slice.ranks ? slice.values_of(thread) : 0;
      const double total = warp_sum<most_cluster>(n_r > 0 ? n_r * mine[0] : 0);
      m.mean = total * call.at.inverse_values;
      const double distance = mine[0] - m.mean;
      m.m2 = warp_sum<most_cluster>(n_r > 0 ? mine[1] + n_r * distance * distance : 0);
    }
    if (thread == 0) {
      const double var = m.m2 * call.at.inverse_values;
      S factors[3];
      forward_factors<T>(call, split, c, m.mean, var, first_thread, factors);
      for (int i = 0; i < 3; ++i) storage.factors[i] = factors[i];
    }
  }
  __syncthreads();

  S k[1][3];
  for (int i = 0; i < 3; ++i) k[0][i] = storage.factors[i];
  T* const y = static_cast<T*>(call.y);
  slice.forget_offsets();
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    if (!slice.has(item)) continue;
    Word<T, V> out[1];
    MapUnit::map(words[item], k, slope, out);
    store<T, V>(y + slice.part.offset(call.at, slice.unit(item)), out[0]);
  }
  if (!first_thread || (!call.running_mean && !call.running_var)) return;
  const double var = m.m2 * call.at.inverse_values;
  finish_splits(call.at, call.work, split, c, {m.mean, var}, [&](int of, const double (&both)[2]) {
    update_running<T>(call, of, c, both[0], both[1]);
  });
}

// One cluster computes dx of one channel in one split, and the last dweight and dbias.
template <typename T, Activation A, bool act_norm, int ITEMS>
__global__ void __launch_bounds__(most_on_chip_threads, on_chip_blocks(2 * ITEMS))
    backward_on_chip(const __grid_constant__ BackwardCall call) {
  using S = Scalar<T>;
  using B = device::Backward<T, A, act_norm>;
  constexpr int V = word_values<T>;
  using SumsUnit = Unit<T, typename B::Sums, false, V>;
  using MapUnit = Unit<T, typename B::template Map<true>, false, V>;
  auto& storage = shared_storage<OnChipStorage<S, 2>>();
  Slice<T, ITEMS> slice(call.at);
  const int64_t c = slice.part.channel;
  const int split = slice.part.split, thread = thread_of_block();
  const S slope = static_cast<S>(call.activation.slope);
  if (slice.ranks > 1) cluster_arrive();  // this block can be told
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
  sum_in_first_warp(sums[0], storage.sums);
  slice.exchange(sums[0], storage);
  if (thread < warp_threads) {
    if (slice.ranks > 1) {
      for (int i = 0; i < 2; ++i) sums[0][i] = warp_sum<most_cluster>(sums[0][i]);
    }
    if (thread == 0) {
      S factors[2];
      finish_backward<T>(call, split, c, sums[0], factors);
      for (int i = 0; i < 2; ++i) storage.factors[i] = factors[i];
    }
  }
  __syncthreads();

  if (call.dx != nullptr) {
    const S k[1][5] = {{mean, scale, shift, storage.factors[0], storage.factors[1]}};
    T* const dx = static_cast<T*>(call.dx);
    slice.forget_offsets();
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      if (!slice.has(item)) continue;
      Word<T, V> out[1];
      MapUnit::map(words[item], k, slope, out);
      store<T, V>(dx + slice.part.offset(call.at, slice.unit(item)), out[0]);
    }
  }
  if (call.dweight == nullptr || thread != 0 || slice.rank != 0) return;
  double dweight = 0, dbias = 0;
  finish_splits(call.at, call.work, split, c, sums[0], [&](int of, const double (&both)[2]) {
    dweight += both[1] * stats_row<T>(call, of, row_rstd)[c];
    dbias += both[0];
    if (of < call.at.splits - 1) return;
    static_cast<S*>(call.dweight)[c] = static_cast<S>(dweight);
    static_cast<S*>(call.dbias)[c] = static_cast<S>(dbias);
  });
}

}  // namespace ganfast
