// Prints how batch_norm_act's launch configuration serves DCGAN's layers, one JSON object a line;
// cuda_launch_table.py compiles and runs it. No GPU is asked: it takes an H100's or H200's numbers.
#include <cstdio>

#include "cuda/batch_norm_act/launch_config.h"

namespace {

using namespace ganfast;

constexpr DeviceFacts hopper{/*multiprocessors=*/132, /*cache_bytes=*/50 << 20,
                             /*has_clusters=*/true};

struct Layer {
  int64_t channels, side;
};
constexpr Layer layers[] = {{512, 4}, {256, 8}, {128, 16}, {64, 32}};

void print(const Layer& layer, int64_t batch, int64_t element_bytes, bool channels_last) {
  const TensorShape x{batch, layer.channels, layer.side * layer.side, element_bytes, channels_last};
  Plan plan(x, /*splits=*/1, GivenActivation{1.0, Activation::leaky_relu, false}, hopper, Settings{});
  plan.choose_units(16 / element_bytes, {});
  const bool on_chip = plan.choose_on_chip();
  if (!on_chip) plan.choose_two_kernels();
  const Recipe& recipe = plan.recipe;
  const int threads = static_cast<int>(recipe.threads.x * recipe.threads.y);
  // Blocks that a multiprocessor holds of forward's kernels and of backward's.
  const auto resident = [&](int inputs) {
    if (!on_chip) return resident_blocks;
    const int items = recipe.many_items ? most_items : few_items;
    return on_chip_blocks(inputs * items) * most_on_chip_threads / threads;
  };
  printf("{\"channels\": %d, \"side\": %d, \"batch\": %d, \"element_bytes\": %d, ",
         static_cast<int>(layer.channels), static_cast<int>(layer.side), static_cast<int>(batch),
         static_cast<int>(element_bytes));
  printf("\"channels_last\": %s, \"on_chip\": %s, \"blocks\": %u, \"threads\": [%u, %u], ",
         channels_last ? "true" : "false", on_chip ? "true" : "false", recipe.blocks,
         recipe.threads.x, recipe.threads.y);
  printf("\"cluster\": %d, \"chunks\": %d, \"groups\": %d, ", recipe.cluster, plan.at.chunks,
         plan.at.group_chunks > 1 ? plan.at.groups : 0);
  printf("\"multiprocessors\": %d, \"resident\": [%d, %d]}\n", hopper.multiprocessors, resident(1),
         resident(2));
}

}  // namespace

int main() {
  for (const Layer& layer : layers) {
    for (const int64_t batch : {64, 128, 256}) {
      for (const bool channels_last : {false, true}) {
        for (const int64_t element_bytes : {4, 2}) {
          print(layer, batch, element_bytes, channels_last);
        }
      }
    }
  }
}
