// CUDA's execution model on the CPU, for tests of the kernels' own code: the threads of a cluster
// are fibers that run until a barrier, one cluster after another. csrc/cuda/launch.cuh includes
// this in place of the CUDA runtime, with -DGANFAST_EMULATE_CUDA.
//
// Clusters run one after another: GANFAST_EMULATION_ORDER=backwards turns their order and that of
// threads round, =shuffled draws that of clusters.
//
// It reports threads that end while others wait at a barrier, barriers that nobody else comes to,
// shared memory that was never written (it holds NaN), kernels that start early but never wait, and
// tickets that a call has not left at 0.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0;

namespace ganfast::emulation {

inline constexpr size_t stack_bytes = 128 << 10, shared_bytes = 48 << 10;

struct Barrier {
  int expected = 0, arrived = 0, ended = 0;  // ended: threads that can come to no barrier again
  uint64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  unsigned char slots[2][32][8];
};

struct Block {
  dim3 index;
  int rank = 0;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<const void*> keys;  // of what lies in shared memory
  std::vector<size_t> offsets;
  size_t used = 0;
  alignas(128) unsigned char shared[shared_bytes];
};

struct Fiber {
  Block* block = nullptr;
  dim3 thread;
  int index = 0;
  uint64_t shuffles = 0, cluster_generation = 0;
  bool alive = false;
  ucontext_t start;
  jmp_buf context;
  std::unique_ptr<unsigned char[]> stack;
};

// The machine: one cluster at a time.
struct Machine {
  std::mutex mutex;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::unique_ptr<Block>> blocks;
  Barrier cluster;
  Fiber* current = nullptr;
  size_t running = 0;  // fibers of this cluster
  size_t alive = 0, polls = 0;
  dim3 block_size, grid_size;
  std::function<void()> kernel;
  std::string failure;
  bool waited = false;      // for the previous kernel
  bool backwards = false;   // the order in which threads run
  std::minstd_rand random;  // of shuffled clusters
  std::vector<unsigned> tickets;
  int launches = 0, largest_cluster = 0;  // since a test last asked
  ucontext_t main;
  jmp_buf main_context;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

inline Fiber& self() { return *machine().current; }

[[noreturn]] inline void fail(const char* reason) {
  Machine& m = machine();
  m.failure = reason;
  _longjmp(m.main_context, 1);
}

// Runs the next fiber that has not ended.
inline void run_another() {
  Machine& m = machine();
  Fiber* from = m.current;
  size_t i = static_cast<size_t>(from->index);
  do {
    i = m.backwards ? (i + m.running - 1) % m.running : (i + 1) % m.running;
  } while (!m.fibers[i]->alive);
  if (m.fibers[i].get() == from) return;
  m.current = m.fibers[i].get();
  if (_setjmp(from->context) == 0) _longjmp(m.current->context, 1);
}

inline void arrive(Barrier& barrier) {
  machine().polls = 0;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

inline void wait(const Barrier& barrier, uint64_t generation) {
  Machine& m = machine();
  while (barrier.generation == generation) {
    if (++m.polls > 4 * m.running) fail("threads wait at a barrier that others do not come to");
    run_another();
  }
}

inline void meet(Barrier& barrier) {
  if (barrier.ended > 0) fail("a barrier after a thread of the block has ended");
  const uint64_t generation = barrier.generation;
  arrive(barrier);
  wait(barrier, generation);
}

inline void end_fiber() {
  Machine& m = machine();
  Fiber& fiber = self();
  Block& block = *fiber.block;
  const unsigned thread = fiber.thread.y * m.block_size.x + fiber.thread.x;
  for (Barrier* barrier : {&block.barrier, &block.warps[thread / 32].barrier}) {
    if (barrier->arrived > 0) fail("a thread has ended while others wait at a barrier");
    ++barrier->ended;
  }
  m.polls = 0;
  fiber.alive = false;
  if (--m.alive > 0) {
    run_another();
  } else if (_setjmp(fiber.context) == 0) {
    _longjmp(m.main_context, 1);
  }
}

inline void fiber_main() {
  Machine& m = machine();
  if (_setjmp(self().context) == 0) swapcontext(&self().start, &m.main);
  for (;;) {
    m.kernel();
    end_fiber();
  }
}

inline void make_fiber(Fiber& fiber) {
  Machine& m = machine();
  if (!fiber.stack) fiber.stack = std::make_unique<unsigned char[]>(stack_bytes);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = stack_bytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  m.current = &fiber;
  swapcontext(&m.main, &fiber.start);
}

// Runs one cluster of blocks to its end.
inline void run_cluster(unsigned first_block, int cluster) {
  Machine& m = machine();
  const size_t threads = m.block_size.x * m.block_size.y;
  m.running = m.alive = threads * static_cast<size_t>(cluster);
  m.polls = 0;
  m.cluster = {static_cast<int>(m.running), 0, 0, 0};
  while (m.blocks.size() < static_cast<size_t>(cluster)) {
    m.blocks.push_back(std::make_unique<Block>());
  }
  while (m.fibers.size() < m.running) {
    m.fibers.push_back(std::make_unique<Fiber>());
    m.fibers.back()->index = static_cast<int>(m.fibers.size() - 1);
    make_fiber(*m.fibers.back());
  }
  for (int rank = 0; rank < cluster; ++rank) {
    Block& block = *m.blocks[rank];
    block.index = dim3(first_block + rank);
    block.rank = rank;
    block.barrier = {static_cast<int>(threads), 0, 0, 0};
    block.warps.resize(threads / 32);
    for (Warp& warp : block.warps) warp.barrier = {32, 0, 0, 0};
    memset(block.shared, 0xff, block.used);
    block.used = 0;
    block.keys.clear();
    block.offsets.clear();
  }
  for (size_t i = 0; i < m.running; ++i) {
    Fiber& fiber = *m.fibers[i];
    const unsigned thread = static_cast<unsigned>(i % threads);
    fiber.block = m.blocks[i / threads].get();
    fiber.thread = dim3(thread % m.block_size.x, thread / m.block_size.x, 0);
    fiber.shuffles = fiber.cluster_generation = 0;
    fiber.alive = true;
  }
  m.current = m.fibers[m.backwards ? m.running - 1 : 0].get();
  if (_setjmp(m.main_context) == 0) _longjmp(m.current->context, 1);
}

inline void run_grid(dim3 grid, dim3 block, int cluster, bool starts_early,
                     std::function<void()> kernel) {
  Machine& m = machine();
  std::lock_guard<std::mutex> lock(m.mutex);
  const char* variable = std::getenv("GANFAST_EMULATION_ORDER");
  const std::string order = variable != nullptr ? variable : "";
  ++m.launches;
  m.largest_cluster = std::max(m.largest_cluster, cluster);
  m.backwards = order == "backwards";
  m.block_size = block;
  m.grid_size = grid;
  m.kernel = std::move(kernel);
  m.waited = false;
  if (block.x * block.y % 32 != 0 || grid.x == 0 || grid.x % static_cast<unsigned>(cluster) != 0) {
    throw std::runtime_error("emulated CUDA: a launch of this shape fails");
  }
  std::vector<unsigned> clusters(grid.x / static_cast<unsigned>(cluster));
  std::iota(clusters.begin(), clusters.end(), 0);
  if (m.backwards) std::reverse(clusters.begin(), clusters.end());
  if (order == "shuffled") std::shuffle(clusters.begin(), clusters.end(), m.random);
  for (size_t i = 0; i < clusters.size() && m.failure.empty(); ++i) {
    run_cluster(clusters[i] * static_cast<unsigned>(cluster), cluster);
  }
  if (m.failure.empty() && starts_early && !m.waited) {
    m.failure = "a kernel that starts early does not wait for the one before";
  }
  if (m.failure.empty()) return;
  m.fibers.clear();  // they stand in the middle of the kernel
  throw std::runtime_error("emulated CUDA: " + std::exchange(m.failure, ""));
}

// Tickets for one call, which every call before has left at 0.
inline unsigned* tickets(int64_t count) {
  auto& all = machine().tickets;
  if (std::any_of(all.begin(), all.end(), [](unsigned ticket) { return ticket != 0; })) {
    all.assign(all.size(), 0);
    throw std::runtime_error("emulated CUDA: a kernel has left a ticket that is not 0");
  }
  if (all.size() < static_cast<size_t>(count)) all.resize(count);
  return all.data();
}

template <typename T>
T shuffle(T value, int other_lane) {
  static_assert(sizeof(T) <= 8);
  Fiber& fiber = self();
  const int thread = static_cast<int>(fiber.thread.y * machine().block_size.x + fiber.thread.x);
  Warp& warp = fiber.block->warps[thread / 32];
  auto& slots = warp.slots[fiber.shuffles++ % 2];
  memcpy(slots[thread % 32], &value, sizeof(T));
  meet(warp.barrier);
  memcpy(&value, slots[other_lane], sizeof(T));
  return value;
}

inline int lane() {
  return static_cast<int>((self().thread.y * machine().block_size.x + self().thread.x) % 32);
}

template <typename Storage>
inline constexpr char storage_key = 0;

template <typename Storage>
Storage& storage_of(Block& block) {
  static_assert(sizeof(Storage) <= shared_bytes, "more shared memory than a kernel may declare");
  const void* key = &storage_key<Storage>;
  for (size_t i = 0; i < block.keys.size(); ++i) {
    if (block.keys[i] == key) return *reinterpret_cast<Storage*>(block.shared + block.offsets[i]);
  }
  const size_t offset = (block.used + 127) / 128 * 128;
  if (offset + sizeof(Storage) > shared_bytes) fail("more shared memory than a block has");
  if (block.used == 0) memset(block.shared, 0xff, shared_bytes);
  block.keys.push_back(key);
  block.offsets.push_back(offset);
  block.used = offset + sizeof(Storage);
  return *reinterpret_cast<Storage*>(block.shared + offset);
}

}  // namespace ganfast::emulation

// For tests: the launches since the last call, and the largest cluster among them.
extern "C" inline __attribute__((used, visibility("default"))) int ganfast_emulated_launches(
    int* largest_cluster) {
  ganfast::emulation::Machine& m = ganfast::emulation::machine();
  *largest_cluster = std::exchange(m.largest_cluster, 0);
  return std::exchange(m.launches, 0);
}

#define threadIdx (::ganfast::emulation::self().thread)
#define blockIdx (::ganfast::emulation::self().block->index)
#define blockDim (::ganfast::emulation::machine().block_size)
#define gridDim (::ganfast::emulation::machine().grid_size)

inline void __syncthreads() {
  ::ganfast::emulation::meet(::ganfast::emulation::self().block->barrier);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return ::ganfast::emulation::shuffle(value, ::ganfast::emulation::lane() ^ mask);
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* p, unsigned wraps_at) {
  return std::exchange(*p, *p >= wraps_at ? 0 : *p + 1);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}

namespace ganfast {

template <typename Storage>
Storage& shared_storage() {
  return emulation::storage_of<Storage>(*emulation::self().block);
}

template <typename Storage>
Storage& shared_storage_of(int rank) {
  emulation::Machine& m = emulation::machine();
  if (m.cluster.generation == 0) emulation::fail("a cluster's memory before all blocks arrived");
  if (rank < 0 || rank * m.block_size.x * m.block_size.y >= m.running) {
    emulation::fail("there is no such block in the cluster");
  }
  if (m.blocks[rank]->barrier.ended > 0) emulation::fail("memory of a block that has ended");
  return emulation::storage_of<Storage>(*m.blocks[rank]);
}

inline int cluster_rank() { return emulation::self().block->rank; }
inline int cluster_size() {
  emulation::Machine& m = emulation::machine();
  return static_cast<int>(m.running / (m.block_size.x * m.block_size.y));
}
inline void cluster_arrive() {
  emulation::Machine& m = emulation::machine();
  emulation::self().cluster_generation = m.cluster.generation;
  emulation::arrive(m.cluster);
}
inline void cluster_wait() {
  emulation::wait(emulation::machine().cluster, emulation::self().cluster_generation);
}
inline void let_next_kernel_start() {}
inline void wait_for_previous_kernel() { emulation::machine().waited = true; }

struct LaunchShape {
  unsigned blocks;
  dim3 threads;
  int cluster = 1;
  bool starts_early = false;
};

template <typename Call>
cudaError_t launch(void (*kernel)(Call), const LaunchShape& shape, cudaStream_t, const Call& call) {
  emulation::run_grid(dim3(shape.blocks), shape.threads, shape.cluster, shape.starts_early,
                      [&] { kernel(call); });
  return cudaSuccess;
}

template <typename Call>
bool cluster_fits(void (*)(Call), const LaunchShape&) {
  return true;
}

}  // namespace ganfast
