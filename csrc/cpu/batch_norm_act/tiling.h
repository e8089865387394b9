// How the CPU form of batch_norm_act shares a tensor out to threads, and the C-sized vectors that
// its passes hand to each other.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "common/checks.h"
#include "cpu/batch_norm_act/kernels.h"
#include "cpu/dispatch.h"

namespace ganfast {

// Elements below which a second thread costs more than it saves.
inline constexpr int64_t elements_per_thread = 32768;
// Elements that stay in the second-level cache between sums and map.
inline constexpr int64_t cached_elements = 131072;
// NC*: contiguous elements that a task should find at a time, so that it walks whole pages, and how
// many it may take where its channels' values stay in cache.
inline constexpr int64_t least_contiguous = 1024;
inline constexpr int64_t most_contiguous = 4096;
// Tasks to cut the batch into where there are fewer channels. A constant, not the thread count:
// the order of additions, and so the bits of the result, must not depend on the machine's load.
inline constexpr int64_t wanted_tasks = 32;

// How one tensor's elements are shared out: over chunks of the batch (splits), blocks of channels
// and parts of the images or rows. `inputs` tensors are read for sums; none, and there is only a
// map.
struct Tiling {
  Tiling(const Tensor& x, int64_t splits_, std::optional<std::string_view> name, double slope,
         std::string_view order, int64_t inputs)
      : format(x.suggest_memory_format()),
        arithmetic(arithmetic_type(x)),
        splits(splits_),
        channels(x.size(1)),
        values(x.numel() == 0 ? 0 : x.numel() / (channels * splits)),
        element_size(static_cast<int64_t>(x.element_size())),
        activation(parse_activation(name)),
        negative_slope(slope) {
    const int64_t images = x.size(0) / splits;
    const int64_t all_positions = images == 0 ? 0 : values / images;
    const bool channels_last = format != at::MemoryFormat::Contiguous || all_positions <= 1;
    positions = channels_last ? 1 : all_positions;
    outer = channels_last ? images * all_positions : images;
    kernels = &select_kernels<Selection>(
        {element_type("batch_norm_act", x), activation, order == "act_norm", channels_last});
    if (channels_last || inputs == 0) {
      block = std::max<int64_t>(1, channels);  // a task takes whole rows, or images
      // What is read twice should stay in cache; two inputs or three are worth a thread sooner.
      const int64_t elements =
          channels_last ? cached_elements / (inputs > 1 ? 2 : 1) : elements_per_thread;
      outer_per_part = elements / (block * positions);
    } else {
      block = channels_per_block();
      outer_per_part = images_per_part();
    }
    outer_per_part = std::max<int64_t>(1, outer_per_part);
    blocks = (channels + block - 1) / block;
    parts = std::max<int64_t>(1, (outer + outer_per_part - 1) / outer_per_part);
  }

  // What every kernel is told, whatever its tensors.
  Call call() const {
    Call c{};
    c.channels = channels;
    c.positions = positions;
    c.activation = activation;
    c.negative_slope = negative_slope;
    return c;
  }

  // The bytes from the start of a tensor to chunk `split` of it.
  int64_t offset_bytes(int64_t split) const { return split * channels * values * element_size; }

  Range range(int64_t block_index, int64_t part) const {
    return {block_index * block, std::min(channels, (block_index + 1) * block),
            part * outer_per_part, std::min(outer, (part + 1) * outer_per_part)};
  }

  // The channels of one block, for a finish.
  template <typename K>
  K channels_of(int64_t block_index, const double* sums, void* stats) const {
    const Range all = range(block_index, 0);
    K k{};
    k.begin = all.channel_begin;
    k.end = all.channel_end;
    k.channels = channels;
    k.sums = sums;
    k.values = static_cast<double>(values);
    k.stats = stats;
    return k;
  }

  int64_t grain(int64_t tasks) const {
    const int64_t elements = splits * channels * values / std::max<int64_t>(1, tasks);
    return std::max<int64_t>(1, elements_per_thread / std::max<int64_t>(1, elements));
  }

  // Calls f(split, block, part) for all of them, in parallel.
  template <typename F>
  void for_each_part(const F& f) const {
    const int64_t tasks = splits * blocks * parts;
    at::parallel_for(0, tasks, grain(tasks), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i / parts / blocks, i / parts % blocks, i % parts);
    });
  }

  // NC*, with sums: channels enough to walk whole pages, and few enough to keep their values in
  // cache and all threads at work.
  int64_t channels_per_block() const {
    const int64_t in_cache = cached_elements / std::max<int64_t>(1, values);
    int64_t wanted = std::min(most_contiguous / positions, in_cache);
    wanted = std::max(wanted, least_contiguous / positions);
    wanted = std::clamp<int64_t>(wanted, 1, max_channel_block);
    return std::min(wanted, std::max<int64_t>(1, channels / at::get_num_threads()));
  }

  // NC*, with sums: the batch is cut if there are fewer channels than wanted tasks.
  int64_t images_per_part() const {
    const int64_t tasks = splits * channels;
    const int64_t parts_wanted = std::max<int64_t>(1, (wanted_tasks + tasks - 1) / tasks);
    const int64_t least = elements_per_thread / (channels * positions);
    return std::max((outer + parts_wanted - 1) / parts_wanted, least);
  }

  at::MemoryFormat format;
  at::ScalarType arithmetic;
  int64_t splits, channels;
  int64_t values;  // per channel and split: M
  int64_t element_size;
  Activation activation;
  double negative_slope;
  int64_t positions, outer;
  int64_t block, blocks, outer_per_part, parts;
  const Kernels* kernels;
};

// Sums of one pass, and their totals over the parts of a chunk.
class Sums {
 public:
  Sums(const Tiling& tiling, int64_t count)
      : tiling_(tiling),
        count_(count),
        data_(tiling.splits * tiling.parts * count * tiling.channels, 0.0) {}

  double* of(int64_t split, int64_t part) {
    return data_.data() + (split * tiling_.parts + part) * count_ * tiling_.channels;
  }
  // Adds the sums of all parts to those of part 0, and returns these.
  const double* fold(int64_t split, const Range& range) {
    double* total = of(split, 0);
    for (int64_t part = 1; part < tiling_.parts; ++part) {
      const double* more = of(split, part);
      for (int64_t i = 0; i < count_ * tiling_.channels; i += tiling_.channels) {
        for (int64_t c = range.channel_begin; c < range.channel_end; ++c)
          total[i + c] += more[i + c];
      }
    }
    return total;
  }
  void clear(int64_t split, int64_t part, const Range& range) {
    for (int64_t i = 0; i < count_; ++i) {
      double* row = of(split, part) + i * tiling_.channels;
      std::fill(row + range.channel_begin, row + range.channel_end, 0.0);
    }
  }

 private:
  const Tiling& tiling_;
  int64_t count_;
  std::vector<double> data_;
};

// Runs sums, finish (once a block of channels has all its sums) and map over the whole tensor. A
// block whose images are not shared out goes through all three while its data is in cache.
template <typename SumUp, typename Finish, typename Map>
void sums_then_map(const Tiling& tiling, const SumUp& sum_up, const Finish& finish,
                   const Map& map) {
  if (tiling.parts == 1) {
    tiling.for_each_part([&](int64_t split, int64_t block, int64_t part) {
      sum_up(split, block, part);
      finish(split, block);
      map(split, block, part);
    });
    return;
  }
  tiling.for_each_part(sum_up);
  at::parallel_for(0, tiling.splits * tiling.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) finish(i / tiling.blocks, i % tiling.blocks);
  });
  tiling.for_each_part(map);
}

// Calls f with a zero of the arithmetic's type.
template <typename F>
void with_scalar(const Tiling& tiling, const F& f) {
  if (tiling.arithmetic == at::kDouble) {
    f(double{});
  } else {
    f(float{});
  }
}

// A parameter or running statistic in the arithmetic's type; the default where there is none. The
// usual one is taken as it is: a dispatched conversion costs more than a small layer's arithmetic.
inline Tensor vector_or(const Tiling& tiling, const std::optional<Tensor>& vector, double standard,
                        const Tensor& x) {
  if (!has(vector)) {
    return at::full({tiling.channels}, standard, x.options().dtype(tiling.arithmetic));
  }
  if (vector->scalar_type() == tiling.arithmetic && vector->is_contiguous()) return *vector;
  return vector->to(tiling.arithmetic).contiguous();
}

inline char* row(const Tiling& tiling, const Tensor& stats, int64_t split, StatsRow index) {
  const int64_t size = static_cast<int64_t>(stats.element_size());
  return const_cast<char*>(data(stats)) + (split * 4 + index) * tiling.channels * size;
}

// The vectors that every map, and every sum of backward, begins with.
inline void set_stats(Call& call, const Tiling& tiling, const Tensor& stats, int64_t split) {
  call.vectors[0] = row(tiling, stats, split, row_mean);
  call.vectors[1] = row(tiling, stats, split, row_scale);
  call.vectors[2] = row(tiling, stats, split, row_shift);
}

// C-sized vectors of the arithmetic's type, `count` per split.
class Vectors {
 public:
  Vectors(const Tiling& tiling, int64_t count)
      : tiling_(tiling), count_(count), data_(tiling.splits * count * tiling.channels, 0.0) {}
  // Room for doubles serves floats too; rows lie `channels` values of the arithmetic apart.
  void* of(int64_t split, int64_t index) {
    const int64_t size = tiling_.arithmetic == at::kDouble ? sizeof(double) : sizeof(float);
    return reinterpret_cast<char*>(data_.data()) +
           (split * count_ + index) * tiling_.channels * size;
  }

 private:
  const Tiling& tiling_;
  int64_t count_;
  std::vector<double> data_;
};

}  // namespace ganfast
