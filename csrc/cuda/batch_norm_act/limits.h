// What the CUDA kernels of batch_norm_act are compiled for: the most that a launch may ask of them.
#pragma once

namespace ganfast {

// On chip.
inline constexpr int most_on_chip_threads = 512;
inline constexpr int most_cluster = 8;  // blocks; more are not portable
// Units that a thread keeps in its registers of each input, one or the other.
inline constexpr int few_items = 4, most_items = 8;

// In two kernels.
inline constexpr int most_block_threads = 256;
inline constexpr int most_row_threads = 32;  // channels-last: threads along a row
// One thread of a block finishes each of its channels.
inline constexpr int most_block_channels = most_block_threads;

static_assert(most_on_chip_threads % 32 == 0 && most_block_threads % 32 == 0, "whole warps");
static_assert(most_cluster <= 32, "one thread of a warp tells each block of the cluster");
static_assert(few_items < most_items);

}  // namespace ganfast
