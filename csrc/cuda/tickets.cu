// Tickets that the blocks of a kernel take to find the last of them: memory that is 0 before a
// kernel, and that the kernel's last block leaves so.
//
// They are a variable of the device, which is 0 when the code is loaded. So nothing has to be
// filled before a launch, not even the first, and nothing is allocated: a tensor that outlives its
// call in a CUDA graph's memory is an error to torch.compile. Kernels that may run at the same time
// must not share them: each stream has a range of its own, and so has each stream of each graph
// that is captured, which may be replayed on any other. Ranges are never given back.
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "cuda/host.h"

namespace ganfast {
namespace {

constexpr int64_t all_tickets = int64_t{1} << 19, least_range = 64, most_range = 1 << 14;
__device__ unsigned ticket_memory[all_tickets];

struct Range {
  int64_t first = 0, count = 0;
};

struct DeviceTickets {
  unsigned* memory = nullptr;
  int64_t used = 0;
  std::map<std::tuple<unsigned long long, unsigned long long>, Range> range_of;
};

}  // namespace

unsigned* lent_tickets(int device, cudaStream_t stream, int64_t count) {
  if (count > most_range) return nullptr;
  unsigned long long id = 0, capture = 0;
  cudaStreamCaptureStatus status{};
  C10_CUDA_CHECK(cudaStreamGetId(stream, &id));
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &capture));
  if (status != cudaStreamCaptureStatusActive) capture = 0;

  static std::mutex mutex;
  static std::vector<DeviceTickets> devices(c10::cuda::device_count());
  const std::lock_guard<std::mutex> lock(mutex);
  DeviceTickets& tickets = devices.at(device);
  if (tickets.memory == nullptr) {
    void* memory = nullptr;
    C10_CUDA_CHECK(cudaGetSymbolAddress(&memory, ticket_memory));
    tickets.memory = static_cast<unsigned*>(memory);
  }
  Range& range = tickets.range_of[{id, capture}];
  if (range.count < count) {
    int64_t wanted = least_range;
    while (wanted < count) wanted *= 2;
    if (tickets.used + wanted > all_tickets) return nullptr;
    range = {tickets.used, wanted};
    tickets.used += wanted;
  }
  return tickets.memory + range.first;
}

}  // namespace ganfast
