// What the CUDA kernels of batch_norm_act are compiled for: the most that a launch may ask of them.
#pragma once

namespace ganfast {

// On chip.
inline constexpr int most_on_chip_threads = 512;
inline constexpr int most_cluster = 8;  // blocks; more are not portable
// Units that a thread keeps in its registers of each input, one or the other.
inline constexpr int few_items = 4, most_items = 8;
// Blocks of the most threads that a multiprocessor is to hold, by the words that each thread keeps:
// more would leave too few registers.
constexpr int on_chip_blocks(int words) { return words < 8 ? 2 : 1; }

// In two kernels.
inline constexpr int most_block_threads = 256;
// Blocks that a multiprocessor is to hold.
inline constexpr int resident_blocks = 2;
inline constexpr int most_chunks = 1 << 16;  // of a channel
// Channels-last: bytes of a row that a block reads, and threads that read them.
inline constexpr int most_row_bytes = 256;
template <int V>
inline constexpr int most_row_threads = V == 1 ? 32 : 16;
// Channels of a block. One of its threads finishes each.
template <bool ROWS, int V>
inline constexpr int most_block_channels = ROWS ? V * most_row_threads<V> : 1;

static_assert(most_on_chip_threads % 32 == 0 && most_block_threads % 32 == 0, "whole warps");
static_assert(most_cluster <= 32 && (most_cluster & (most_cluster - 1)) == 0,
              "lanes of a warp hear the blocks of a cluster, and add up what these say");
static_assert(few_items < most_items);
static_assert(most_block_channels<true, 8> <= most_block_threads);

}  // namespace ganfast
