// Tickets that the blocks of a kernel take to find the last of them: memory that is 0 before a
// kernel, and that the kernel's last block leaves so.
//
// They are a variable of the device, which is 0 when the code is loaded. So nothing has to be
// filled before a launch, not even the first, and nothing is allocated: a tensor that outlives its
// call in a CUDA graph's memory is an error to torch.compile. Kernels that may run at the same time
// must not share them: each stream has a range of its own, and so has each stream of each graph
// that is captured, which may be replayed on any other.
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "cuda/host.h"

namespace ganfast {
namespace {

constexpr int64_t range_tickets = 1024, ranges = 512;
__device__ unsigned ticket_memory[ranges * range_tickets];

struct DeviceTickets {
  unsigned* memory = nullptr;
  std::map<std::tuple<unsigned long long, unsigned long long>, int64_t> range_of;
};

}  // namespace

unsigned* lent_tickets(int device, cudaStream_t stream, int64_t count) {
  if (count > range_tickets) return nullptr;
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
  const auto next = static_cast<int64_t>(tickets.range_of.size());
  const auto entry = tickets.range_of.find({id, capture});
  if (entry != tickets.range_of.end()) return tickets.memory + entry->second * range_tickets;
  if (next == ranges) return nullptr;
  tickets.range_of.emplace(std::make_tuple(id, capture), next);
  return tickets.memory + next * range_tickets;
}

}  // namespace ganfast
