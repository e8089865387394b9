// Which form of batch_norm_act serves a tensor on a GPU, with how many blocks of how many threads.
//
// No number here has been measured: they follow from counting bytes and registers, as README.md
// beside this file does.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "cuda/batch_norm_act/calls.h"
#include "cuda/host.h"

namespace ganfast {

using at::Tensor;

// The limits of the forms, all not yet measured.
struct Limits {
  bool on_chip = true;
  int most_cluster = ganfast::most_cluster;
  int most_on_chip_threads = ganfast::most_on_chip_threads;
  int wanted_items = few_items;    // below this a block gets fewer threads instead
  int least_units_of_block = 128;  // on chip: a cluster grows no further
  int threads = most_block_threads;
  int least_items = 8;  // units of a thread before a channel is cut into more chunks
  int blocks_of_multiprocessor = 4;
  int most_chunks = 256;  // partial sums that every block of the second kernel reads

  static Limits current() {
    Limits l;
#if defined(GANFAST_EMULATE_CUDA)
    l.on_chip = emulated("on_chip", l.on_chip) != 0;
    l.most_cluster = emulated("most_cluster", l.most_cluster);
    l.most_on_chip_threads = emulated("most_on_chip_threads", l.most_on_chip_threads);
    l.wanted_items = emulated("wanted_items", l.wanted_items);
    l.least_units_of_block = emulated("least_units_of_block", l.least_units_of_block);
    l.threads = emulated("threads", l.threads);
    l.least_items = emulated("least_items", l.least_items);
    l.most_chunks = emulated("most_chunks", l.most_chunks);
#endif
    return l;
  }
};

inline int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

inline int power_of_two_from(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

inline GivenActivation given_activation(std::optional<std::string_view> name, double slope,
                                        std::string_view order) {
  if (!name) return {1.0, false, false};  // both orders are the same
  const bool relu = *name == "relu";
  TORCH_CHECK(relu || *name == "leaky_relu", "ganfast: the native kernels have no activation '",
              *name, "'");
  return {slope, relu, order == "act_norm"};
}

struct Plan {
  Plan(const Tensor& x, int64_t splits, std::optional<std::string_view> activation, double slope,
       std::string_view order)
      : format(x.suggest_memory_format()), arithmetic(arithmetic_type(x)), facts(device_facts(x)) {
    TORCH_CHECK(splits >= 1 && x.size(0) % splits == 0, "splits must divide the batch of ",
                x.size(0), ", got ", splits);
    at.channels = x.size(1);
    at.splits = static_cast<int>(splits);
    const int64_t values = x.numel() == 0 ? 0 : x.numel() / (at.channels * splits);
    images = x.size(0) / splits;
    const int64_t positions = images == 0 ? 0 : values / images;
    at.values = static_cast<double>(values);
    at.inverse_values = 1.0 / at.values;
    at.split_stride = values * at.channels;
    recipe.channels_last = format != at::MemoryFormat::Contiguous || positions <= 1;
    at.positions = recipe.channels_last ? 1 : positions;
    rows = recipe.channels_last ? values : images;
    recipe.activation = given_activation(activation, slope, order);
    recipe.starts_early = facts.has_clusters;
  }

  // Decides whether units are of `vector` values or of one: every row or plane must begin at a
  // multiple of a unit's bytes.
  void choose_units(int64_t vector, int64_t element_size,
                    std::initializer_list<const void*> tensors) {
    const int64_t run = recipe.channels_last ? at.channels : at.positions;
    recipe.vectors = run % vector == 0;
    for (const void* tensor : tensors) {
      const auto address = reinterpret_cast<uintptr_t>(tensor);
      recipe.vectors = recipe.vectors && address % (vector * element_size) == 0;
    }
    unit = recipe.vectors ? vector : 1;
    const int64_t units_of_plane = recipe.channels_last ? 1 : at.positions / unit;
    at.units = rows * units_of_plane;
    at.units_of_plane = Divider(static_cast<uint32_t>(units_of_plane));
  }

  // On chip: one cluster a channel, of as many blocks as its values need, and of more while
  // multiprocessors would have nothing to do. False where it does not fit.
  bool choose_on_chip() {
    const Limits limits = Limits::current();
    const int most_cluster = facts.has_clusters ? limits.most_cluster : 1;
    const int64_t block_holds = int64_t{most_items} * limits.most_on_chip_threads;
    if (!limits.on_chip || recipe.channels_last || !recipe.vectors || arithmetic == at::kDouble ||
        at.units > most_cluster * block_holds) {
      return false;
    }
    int cluster = power_of_two_from(divide_up(at.units, block_holds));
    while (cluster * 2 <= most_cluster && at.channels * cluster < facts.multiprocessors &&
           divide_up(at.units, cluster * 2) >= limits.least_units_of_block) {
      cluster *= 2;
    }
    at.units_per_block = divide_up(at.units, cluster);
    const int threads =
        std::clamp(power_of_two_from(divide_up(at.units_per_block, limits.wanted_items)), 32,
                   limits.most_on_chip_threads);
    recipe.form = Form::on_chip;
    recipe.many_items = divide_up(at.units_per_block, threads) > few_items;
    recipe.cluster = cluster;
    recipe.threads = dim3(threads);
    recipe.blocks = static_cast<unsigned>(at.channels * cluster);
    at.chunks = 1;
    at.channel_blocks = static_cast<int>(at.channels);
    return true;
  }

  // In two kernels: enough blocks to fill the device, of chunks that are worth one. The number of
  // splits is not asked for, so that their bits are those of separate calls.
  void choose_two_kernels() {
    const Limits limits = Limits::current();
    int threads_x = limits.threads;
    int64_t block_channels = 1;
    if (recipe.channels_last) {
      threads_x = power_of_two_from(divide_up(at.channels, unit));
      threads_x = std::min<int>(threads_x, std::min<int>(most_row_threads, limits.threads / unit));
      block_channels = threads_x * unit;
    }
    const int threads_y = limits.threads / threads_x;
    recipe.form = Form::two_kernels;
    recipe.threads = dim3(threads_x, threads_y);
    at.channel_blocks = static_cast<int>(divide_up(at.channels, block_channels));
    const int64_t sharing = recipe.channels_last ? threads_y : limits.threads;
    const int64_t wanted = divide_up(
        int64_t{facts.multiprocessors} * limits.blocks_of_multiprocessor, at.channel_blocks);
    const int64_t worth = divide_up(at.units, sharing * limits.least_items);
    const int64_t chunks = std::clamp<int64_t>(std::min(wanted, worth), 1, limits.most_chunks);
    at.units_per_block = divide_up(at.units, chunks);
    at.chunks = static_cast<int>(divide_up(at.units, at.units_per_block));
    recipe.blocks = static_cast<unsigned>(int64_t{at.splits} * at.chunks * at.channel_blocks);
  }

  Tensor partials(const Tensor& x, int64_t results) const {
    return empty_for_kernel({at.splits, at.chunks, results, at.channels},
                            x.options().dtype(at::kDouble).memory_format(std::nullopt));
  }

  at::MemoryFormat format;
  at::ScalarType arithmetic;
  DeviceFacts facts;
  int64_t images, rows, unit = 1;
  Geometry at{};
  Recipe recipe{};
};

}  // namespace ganfast
