// The numbers that launches depend on. GANFAST_CUDA="pdl=0 wanted_items=8" overrides any of them,
// in builds for a GPU as in the tests' emulator; batch_norm_act/README.md has the table of names.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/batch_norm_act/limits.h"
#include "cuda/losses/limits.h"

namespace ganfast {

// What launches depend on of a device.
struct DeviceFacts {
  int multiprocessors;
  int64_t cache_bytes;  // of the second-level cache
  // sm_90 or newer, and this build has code for it: clusters of blocks share memory, and a kernel
  // can start before the one before has ended.
  bool has_clusters;
};

// No default has been measured: they follow from counting bytes and registers, as
// batch_norm_act/README.md does.
struct Settings {
  int pdl = 1;              // programmatic dependent launch, if the device has it
  int clusters = 1;         // if the device has them
  int multiprocessors = 0;  // 0: the device's
  int streaming_kib = -1;   // results above this are stored past the cache; -1: half of it

  // batch_norm_act on chip.
  int on_chip = 1;
  int most_cluster = ganfast::most_cluster;
  int most_on_chip_threads = ganfast::most_on_chip_threads;
  int preferred_threads = ganfast::most_on_chip_threads;  // exceeded if no cluster is large enough
  int wanted_items = few_items;                           // below this a block gets fewer threads
  int least_units_of_block = 128;                         // a cluster grows no further

  // batch_norm_act in two kernels.
  int threads = most_block_threads;
  int row_bytes = 128;                             // channels-last: of a row, by one block
  int blocks_of_multiprocessor = resident_blocks;  // that run at the same time
  int most_waves = 4;
  int least_items = 8;   // units of a thread before a channel is cut into more chunks
  int fewest_items = 2;  // likewise, while blocks are fewer than multiprocessors
  int most_chunks = 1024;
  int finish_items = 16;  // partial sums that a thread adds before chunks are put into groups

  // The losses.
  int scores_of_one_block = 8192;  // which then needs no second kernel
  int scores_of_block = 4096;
};

struct Setting {
  const char* name;
  int Settings::* value;
  int least, most;
  bool power_of_two = false;
};

inline constexpr int any = 1 << 30;
inline constexpr Setting setting_table[] = {
    {"pdl", &Settings::pdl, 0, 1},
    {"clusters", &Settings::clusters, 0, 1},
    {"multiprocessors", &Settings::multiprocessors, 0, any},
    {"streaming_kib", &Settings::streaming_kib, -1, any},
    {"on_chip", &Settings::on_chip, 0, 1},
    {"most_cluster", &Settings::most_cluster, 1, most_cluster, true},
    {"most_on_chip_threads", &Settings::most_on_chip_threads, 32, most_on_chip_threads, true},
    {"preferred_threads", &Settings::preferred_threads, 32, most_on_chip_threads, true},
    {"wanted_items", &Settings::wanted_items, 1, most_items},
    {"least_units_of_block", &Settings::least_units_of_block, 1, any},
    {"threads", &Settings::threads, 32, most_block_threads, true},
    {"row_bytes", &Settings::row_bytes, 16, most_row_bytes, true},
    {"blocks_of_multiprocessor", &Settings::blocks_of_multiprocessor, 1, 64},
    {"most_waves", &Settings::most_waves, 1, 64},
    {"least_items", &Settings::least_items, 1, any},
    {"fewest_items", &Settings::fewest_items, 1, any},
    {"most_chunks", &Settings::most_chunks, 1, most_chunks},
    {"finish_items", &Settings::finish_items, 0, any},
    {"scores_of_one_block", &Settings::scores_of_one_block, 1, any},
    {"scores_of_block", &Settings::scores_of_block, 1, any},
};

// The settings of "name=value name=value"; what is wrong with it, if anything, goes to `error`.
Settings parse_settings(const std::string& text, std::string& error);

// Those of this process: GANFAST_CUDA as it was at the first call, or what was chosen since with
// ganfast_cuda_configure. Throws std::runtime_error if they cannot be understood.
const Settings& settings();

}  // namespace ganfast
