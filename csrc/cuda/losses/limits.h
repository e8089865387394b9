// What the CUDA kernels of the losses are compiled for.
#pragma once

#include <cstdint>

namespace ganfast {

inline constexpr int score_threads = 256;
// Units that a thread adds up in its arithmetic's type before they go to double.
inline constexpr int score_run = 32;
inline constexpr int64_t most_score_blocks = 1024;  // that share one mean
inline constexpr int most_score_groups = 2;         // real and generated images

static_assert(score_threads % 32 == 0, "whole warps");
static_assert(most_score_blocks % score_threads == 0,
              "the last block's threads add up as many each");

}  // namespace ganfast
