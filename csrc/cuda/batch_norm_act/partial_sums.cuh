// How the blocks that share a channel put their sums together, always in the same order: each block
// adds its threads' sums and leaves them in memory; the last block to arrive adds what all have
// left.
#pragma once

#include "cuda/batch_norm_act/finish.cuh"
#include "cuda/batch_norm_act/loops.cuh"

namespace ganfast {

static_assert(most_block_threads <= most_warps * warp_threads);

// Sums over threads: R for each channel of a block.
template <bool ROWS, int V, int R>
struct ChannelSums {
  static constexpr int channels = most_block_channels<ROWS, V>;
  static constexpr int warps = most_block_threads / warp_threads;
  static constexpr int slots_of_sum =
      warps * channels > most_block_threads ? warps * channels : most_block_threads;
  SharedArray<double, R * slots_of_sum> slots;
  SharedArray<SharedArray<double, channels>, R> totals;
  SharedArray<int, 1> last;

  // totals[i][c] from all threads' sums: thread t has those of W channels from t % columns * W on.
  // `columns` is a power of two.
  template <int W>
  __device__ __forceinline__ void add(int columns, double (&sums)[W][R]) {
    const int thread = thread_of_block(), width = columns * W;
    const int row_threads = columns < warp_threads ? warp_threads : columns;
    const int row = thread / row_threads, rows = threads_of_block() / row_threads;
    for (int distance = warp_threads / 2; distance >= columns; distance /= 2) {
#pragma unroll
      for (int w = 0; w < W; ++w) {
#pragma unroll
        for (int i = 0; i < R; ++i)
          sums[w][i] += __shfl_xor_sync(0xffffffffu, sums[w][i], distance);
      }
    }
    if (const int column = thread % row_threads * W; column < width) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int w = 0; w < W; ++w) slots[(i * rows + row) * width + column + w] = sums[w][i];
      }
    }
    __syncthreads();
    for (int j = thread; j < R * width; j += threads_of_block()) {
      const int i = j / width, c = j % width;
      double sum = slots[i * rows * width + c];
      for (int r = 1; r < rows; ++r) sum += slots[(i * rows + r) * width + c];
      totals[i][c] = sum;
    }
    __syncthreads();
  }
};

// k[v][i] from a row of C values, v channels on.
template <typename S, int CHANNELS, int VECTORS>
__device__ __forceinline__ void load_channels(const S* row, int i, S (&k)[CHANNELS][VECTORS]) {
  constexpr int W = CHANNELS % 4 == 0 && sizeof(S) == 4 ? 4 : 1;  // units of V channels divide C
#pragma unroll
  for (int v = 0; v < CHANNELS; v += W) {
    S some[W];
    unpack<S, W>(load<S, W>(row + v), some);
#pragma unroll
    for (int w = 0; w < W; ++w) k[v + w][i] = some[w];
  }
}

// Sums as they are; pieces of a channel are added.
template <int R>
struct PlainSums {
  static constexpr int results = R;
  static __device__ __forceinline__ double reference(double) { return 0; }
  static __device__ __forceinline__ void prepare(double (&)[R], double, double) {}
  static __device__ __forceinline__ void conclude(double (&)[R], double, double) {}
};

// Mean and sum of squares about it; those of pieces are put together about a reference near them.
struct MomentSums {
  static constexpr int results = 2;
  static __device__ __forceinline__ double reference(double first_mean) {
    return usable(first_mean);
  }
  static __device__ __forceinline__ void prepare(double (&sums)[2], double reference, double n) {
    const double distance = sums[0] - reference;
    sums[0] = n * distance;
    sums[1] += n * distance * distance;
  }
  static __device__ __forceinline__ void conclude(double (&sums)[2], double reference, double n) {
    const Moments m = moments_about(reference, sums[0], sums[1], 1.0 / n);
    sums[0] = m.mean;
    sums[1] = m.m2;
  }
};

// Values of a channel from unit `begin` on, at most those of `count` units.
template <bool ROWS, int V>
__device__ __forceinline__ double values_of_units(const Geometry& at, int64_t begin,
                                                  int64_t count) {
  const int64_t left = at.units - begin;
  return static_cast<double>((left < count ? left : count) * (ROWS ? 1 : V));
}

// Sums of `count` pieces of a channel's units in one split, from unit `begin` on.
struct Pieces {
  const double* sums;  // (count, R, C)
  int count;
  int64_t begin, units_of_piece;
};

// Puts pieces together. Thread t of the block then has the result of its t-th channel; false if
// there is none.
template <typename Sums, bool ROWS, int V, int R>
__device__ __forceinline__ bool merge_pieces(const Geometry& at, const Part<ROWS, V>& part,
                                             ChannelSums<ROWS, V, R>& room, const Pieces& pieces,
                                             double (&result)[R]) {
  const int thread = thread_of_block(), columns = part.block_channels;
  const int64_t channel = part.first_channel + thread % columns;
  double sums[1][R] = {};
  double reference = 0;
  if (channel < at.channels) {
    reference = Sums::reference(__ldcg(pieces.sums + channel));
    const int rows = threads_of_block() / columns;
#pragma unroll 4
    for (int piece = thread / columns; piece < pieces.count; piece += rows) {
      double of_piece[R];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        of_piece[i] = __ldcg(pieces.sums + (int64_t{piece} * R + i) * at.channels + channel);
      }
      const int64_t begin = pieces.begin + piece * pieces.units_of_piece;
      Sums::prepare(of_piece, reference,
                    values_of_units<ROWS, V>(at, begin, pieces.units_of_piece));
#pragma unroll
      for (int i = 0; i < R; ++i) sums[0][i] += of_piece[i];
    }
  }
  room.add(columns, sums);
  if (thread >= columns || channel >= at.channels) return false;
#pragma unroll
  for (int i = 0; i < R; ++i) result[i] = room.totals[i][thread];
  Sums::conclude(result, reference,
                 values_of_units<ROWS, V>(at, pieces.begin, pieces.count * pieces.units_of_piece));
  return true;
}

// Whether this block is the last of `count` to take the ticket: then it can read what all of them
// have written. The ticket, 0 before the first, is 0 after the last.
__device__ __forceinline__ bool comes_last(unsigned* ticket, int count, SharedArray<int, 1>& last) {
  if (count > 1) __threadfence();
  __syncthreads();
  if (count == 1) return true;
  if (thread_of_block() == 0) {
    const auto wraps_at = static_cast<unsigned>(count - 1);
    last[0] = atomicInc(ticket, wraps_at) == wraps_at;
  }
  __syncthreads();
  if (last[0] == 0) return false;
  __threadfence();
  return true;
}

// Leaves the sums of a block's chunk, one channel a thread if it `has` one. The last block of a
// group of chunks puts these together, and the last of all puts the groups together and calls
// finish(split, channel, sums) for each split in order, by the same thread for the same channel.
template <typename Sums, bool ROWS, int V, int R, typename Finish>
__device__ __forceinline__ void finish_channels(const Geometry& at, const Part<ROWS, V>& part,
                                                ChannelSums<ROWS, V, R>& room,
                                                const Workspace& work, bool has,
                                                const double (&of_chunk)[R], const Finish& finish) {
  const int64_t of_piece = R * at.channels, channel = part.first_channel + thread_of_block();
  const auto leave = [&](double* sums, const double (&values)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) sums[i * at.channels + channel] = values[i];
  };
  double* const chunks = work.partials + int64_t{part.split} * at.chunks * of_piece;
  if (has) leave(chunks + part.chunk * of_piece, of_chunk);

  const auto channel_block = static_cast<int>(blockIdx.x % at.channel_blocks);
  const bool grouped = at.group_chunks > 1;
  double* const groups = work.partials + int64_t{at.splits} * at.chunks * of_piece;
  if (grouped) {
    const int group = part.chunk / at.group_chunks, first = group * at.group_chunks;
    const int count = at.chunks - first < at.group_chunks ? at.chunks - first : at.group_chunks;
    const int of_split = part.split * at.groups + group;
    unsigned* const ticket = work.tickets + int64_t{1 + of_split} * at.channel_blocks;
    if (!comes_last(ticket + channel_block, count, room.last)) return;
    double sums[R];
    const Pieces pieces{chunks + first * of_piece, count, first * at.units_per_block,
                        at.units_per_block};
    if (merge_pieces<Sums>(at, part, room, pieces, sums)) {
      leave(groups + of_split * of_piece, sums);
    }
  }
  if (!comes_last(work.tickets + channel_block, at.splits * at.groups, room.last)) return;
  for (int split = 0; split < at.splits; ++split) {
    double sums[R];
    const double* const of_split = grouped ? groups : static_cast<const double*>(work.partials);
    const Pieces pieces{of_split + int64_t{split} * at.groups * of_piece, at.groups, 0,
                        at.units_per_block * at.group_chunks};
    if (merge_pieces<Sums>(at, part, room, pieces, sums)) finish(split, channel, sums);
  }
}

}  // namespace ganfast
