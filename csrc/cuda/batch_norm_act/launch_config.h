// Which form of batch_norm_act serves a tensor on a GPU, with how many blocks of how many threads.
// It knows sizes and addresses alone, so that benchmarks/cuda_launch_table.cpp can ask it as well.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "cuda/batch_norm_act/calls.h"
#include "cuda/settings.h"

namespace ganfast {

inline int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

inline int power_of_two_from(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

struct TensorShape {
  int64_t batch, channels, positions;  // positions: of one image
  int64_t element_bytes;
  bool channels_last;
};

struct Plan {
  Plan(const TensorShape& x, int64_t splits, const GivenActivation& activation,
       const DeviceFacts& device, const Settings& settings_)
      : facts(device), settings(settings_), element_bytes(x.element_bytes) {
    if (settings.multiprocessors > 0) facts.multiprocessors = settings.multiprocessors;
    const bool empty = x.batch == 0 || x.positions == 0 || x.channels == 0;
    const int64_t images = empty ? 0 : x.batch / splits;
    const int64_t values = images * x.positions;
    at.channels = x.channels;
    at.splits = static_cast<int>(splits);
    at.values = static_cast<double>(values);
    at.inverse_values = 1.0 / at.values;
    at.split_stride = values * at.channels;
    recipe.channels_last = x.channels_last || x.positions <= 1;
    at.positions = recipe.channels_last ? 1 : x.positions;
    rows = recipe.channels_last ? values : images;
    recipe.activation = activation;
    recipe.starts_early = facts.has_clusters && settings.pdl != 0;
    const int64_t streaming_bytes =
        settings.streaming_kib < 0 ? facts.cache_bytes / 2 : int64_t{settings.streaming_kib} << 10;
    at.streams = at.split_stride * splits * element_bytes > streaming_bytes;
  }

  // Decides whether units are of `vector` values or of one: every row or plane must begin at a
  // multiple of a unit's bytes.
  void choose_units(int64_t vector, std::initializer_list<const void*> tensors) {
    const int64_t run = recipe.channels_last ? at.channels : at.positions;
    recipe.vectors = run % vector == 0;
    for (const void* tensor : tensors) {
      const auto address = reinterpret_cast<uintptr_t>(tensor);
      recipe.vectors = recipe.vectors && address % (vector * element_bytes) == 0;
    }
    unit = recipe.vectors ? vector : 1;
    const int64_t units_of_plane = recipe.channels_last ? 1 : at.positions / unit;
    at.units = rows * units_of_plane;
    at.units_of_plane = Divider(static_cast<uint32_t>(units_of_plane));
  }

  // On chip: one cluster a channel and split, of as many blocks as its values need, and of more
  // while multiprocessors would have nothing to do. False if it does not fit.
  bool choose_on_chip() {
    const bool has_clusters = facts.has_clusters && settings.clusters != 0;
    const int most_cluster = has_clusters ? settings.most_cluster : 1;
    if (settings.on_chip == 0 || recipe.channels_last || !recipe.vectors || element_bytes == 8) {
      return false;
    }
    int most_threads = std::min(settings.preferred_threads, settings.most_on_chip_threads);
    const auto cluster_holds = [&] { return int64_t{most_cluster} * most_items * most_threads; };
    if (at.units > cluster_holds()) most_threads = settings.most_on_chip_threads;
    if (at.units > cluster_holds()) return false;
    int cluster = power_of_two_from(divide_up(at.units, int64_t{most_items} * most_threads));
    while (cluster * 2 <= most_cluster && at.channels * cluster < facts.multiprocessors &&
           divide_up(at.units, cluster * 2) >= settings.least_units_of_block) {
      cluster *= 2;
    }
    at.units_per_block = divide_up(at.units, cluster);
    const int threads = std::clamp(
        power_of_two_from(divide_up(at.units_per_block, settings.wanted_items)), 32, most_threads);
    recipe.form = Form::on_chip;
    recipe.many_items = divide_up(at.units_per_block, threads) > few_items;
    recipe.cluster = cluster;
    recipe.threads = dim3(threads);
    recipe.blocks = static_cast<unsigned>(at.channels * cluster * at.splits);
    at.chunks = at.groups = at.group_chunks = 1;
    at.channel_blocks = static_cast<int>(at.channels);
    return true;
  }

  // In two kernels. Neither form's sums depend on the number of splits, so that their bits are
  // those of separate calls.
  void choose_two_kernels() {
    int threads_x = settings.threads, block_channels = 1;
    if (recipe.channels_last) {
      const int most_x = unit == 1 ? most_row_threads<1> : most_row_threads<2>;
      const int64_t of_row = std::max<int64_t>(settings.row_bytes / (unit * element_bytes), 1);
      threads_x = power_of_two_from(divide_up(at.channels, unit));
      threads_x = static_cast<int>(std::min<int64_t>(threads_x, std::min<int64_t>(most_x, of_row)));
      threads_x = std::min(threads_x, settings.threads / static_cast<int>(unit));
      block_channels = threads_x * static_cast<int>(unit);
    }
    const int threads_y = settings.threads / threads_x;
    recipe.form = Form::two_kernels;
    recipe.cluster = 1;
    recipe.threads = dim3(threads_x, threads_y);
    at.channel_blocks = static_cast<int>(divide_up(at.channels, block_channels));
    const int64_t sharing = recipe.channels_last ? threads_y : settings.threads;
    at.units_per_block = divide_up(at.units, wanted_chunks(sharing));
    at.chunks = static_cast<int>(divide_up(at.units, at.units_per_block));
    // A block puts the chunks of a channel together. Many of them go by groups, as many groups as
    // a group has chunks, so that no thread adds more than the root of them.
    at.group_chunks = 1;
    if (int64_t{at.chunks} * block_channels > int64_t{settings.threads} * settings.finish_items) {
      while (at.group_chunks * at.group_chunks < at.chunks) ++at.group_chunks;
    }
    at.groups = static_cast<int>(divide_up(at.chunks, at.group_chunks));
    recipe.blocks = static_cast<unsigned>(int64_t{at.splits} * at.chunks * at.channel_blocks);
  }

  // Doubles that blocks leave for one another.
  int64_t partials(int64_t results) const {
    const int64_t sums = at.chunks + (at.group_chunks > 1 ? at.groups : 0);
    return at.splits * sums * results * at.channels;
  }

  // Tickets that they take; none if each is alone with its channels.
  int64_t tickets() const {
    if (int64_t{at.splits} * at.chunks == 1) return 0;
    return at.channel_blocks * (1 + (at.group_chunks > 1 ? int64_t{at.splits} * at.groups : 0));
  }

  DeviceFacts facts;
  const Settings& settings;
  int64_t element_bytes, rows, unit = 1;
  Geometry at{};
  Recipe recipe{};

 private:
  // Chunks of a channel whose blocks, `sharing` threads of which share a channel's units, fill the
  // device's slots for blocks a whole number of times, or nearly.
  int64_t wanted_chunks(int64_t sharing) const {
    const int64_t slots = int64_t{facts.multiprocessors} * settings.blocks_of_multiprocessor;
    const int64_t wanted = divide_up(facts.multiprocessors, at.channel_blocks);
    const auto worth = [&](int64_t items) { return at.units / (sharing * items); };
    int64_t most = worth(settings.least_items);
    most = std::max(most, std::min(wanted, worth(settings.fewest_items)));
    most = std::clamp<int64_t>(most, 1, settings.most_chunks);
    int64_t best = 1;
    double best_share = 0;
    for (int64_t waves = 1; waves <= settings.most_waves; ++waves) {
      const int64_t chunks = std::clamp<int64_t>(slots * waves / at.channel_blocks, 1, most);
      const int64_t blocks = chunks * at.channel_blocks;
      const double share =
          static_cast<double>(blocks) / static_cast<double>(divide_up(blocks, slots) * slots);
      if (share <= best_share) continue;
      best = chunks;
      best_share = share;
    }
    return best;
  }
};

}  // namespace ganfast
