// Runs CUDA kernels on the processor, so that they can be tested without a GPU: each thread of a block is a fiber,
// which gives way to the next one wherever threads wait for each other. Slow, deterministic, and no check of
// memory ordering. It has what csrc/cuda uses, in one dimension, and no more.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define DGC_SHARED(TYPE, NAME) TYPE& NAME = ::dgc::emulation::shared<TYPE>(__FILE__, __LINE__)

struct float4 {
  float x, y, z, w;
};
struct ushort4 {
  uint16_t x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline ushort4 make_ushort4(uint16_t x, uint16_t y, uint16_t z, uint16_t w) { return {x, y, z, w}; }

namespace dgc::emulation {

struct Index {
  uint32_t x = 0;
};

inline Index threadIdx, blockIdx, blockDim, gridDim;

// Threads that wait until all of them have come.
struct Barrier {
  uint32_t members = 0;
  uint32_t arrived = 0;
  uint64_t round = 0;

  void arrive() {
    if (++arrived == members) {
      arrived = 0;
      ++round;
    }
  }
};

struct Block {
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<uint32_t> lanes;  // what each thread shows to its warp
  std::map<std::pair<const char*, int>, std::shared_ptr<void>> shared;
};

constexpr size_t kStack = 1 << 15;

struct Fiber {
  ucontext_t start;
  jmp_buf where;
  std::unique_ptr<char[]> stack{new char[kStack]};
  uint32_t block = 0;
  uint32_t thread = 0;
  bool begun = false;
  bool done = false;
};

// Kept from one kernel to the next, for their stacks.
inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline Fiber* running = nullptr;
inline std::vector<Block>* blocks = nullptr;
inline Barrier* grid = nullptr;
inline const std::function<void()>* body = nullptr;

inline Block& block() { return (*blocks)[running->block]; }

// Back to the scheduler, which comes back here. Contexts themselves would save the signal mask by a system call.
inline void give_way() {
  if (_setjmp(running->where) == 0) _longjmp(scheduler, 1);
}

// To where the fiber gave way last, until it does so again.
inline void go_on(Fiber* fiber) {
  running = fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber->begun) _longjmp(fiber->where, 1);
  fiber->begun = true;
  setcontext(&fiber->start);
}

inline void wait(Barrier* barrier) {
  const uint64_t round = barrier->round;
  barrier->arrive();
  while (barrier->round == round) give_way();
}

template <class T>
T& shared(const char* file, int line) {
  std::shared_ptr<void>& place = block().shared[{file, line}];
  if (!place) place = std::make_shared<T>();
  return *static_cast<T*>(place.get());
}

inline void run_fiber() {
  (*body)();
  // A thread that has ended is not waited for.
  running->done = true;
  for (Barrier* barrier : {&block().all, &block().warps[running->thread / 32], grid}) {
    --barrier->members;
    if (barrier->members > 0 && barrier->arrived == barrier->members) {
      barrier->arrived = 0;
      ++barrier->round;
    }
  }
  give_way();
}

// Blocks [first, first + count) of a kernel, side by side.
inline void run_blocks(uint32_t first, uint32_t count, uint32_t threads, const std::function<void()>& kernel) {
  std::vector<Block> all(count);
  for (Block& each : all) {
    each.all.members = threads;
    each.warps.resize(threads / 32);
    for (Barrier& warp : each.warps) warp.members = 32;
    each.lanes.resize(threads);
  }
  Barrier together;
  together.members = count * threads;
  blocks = &all;
  grid = &together;
  body = &kernel;
  if (fibers.size() < together.members) fibers.resize(together.members);
  for (uint32_t f = 0; f < together.members; ++f) {
    Fiber& fiber = fibers[f];
    fiber.block = f / threads;
    fiber.thread = f % threads;
    fiber.begun = fiber.done = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_fiber, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (uint32_t f = 0; f < count * threads; ++f) {
      Fiber& fiber = fibers[f];
      if (fiber.done) continue;
      threadIdx.x = fiber.thread;
      blockIdx.x = first + fiber.block;
      go_on(&fiber);
      left = left || !fiber.done;
    }
  }
}

template <class Look>
uint32_t show(uint32_t value, const Look& look) {
  Block& own = block();
  Barrier* const warp = &own.warps[running->thread / 32];
  own.lanes[running->thread] = value;
  wait(warp);
  const uint32_t seen = look(&own.lanes[running->thread / 32 * 32]);
  wait(warp);
  return seen;
}

}  // namespace dgc::emulation

using dgc::emulation::blockDim;
using dgc::emulation::blockIdx;
using dgc::emulation::gridDim;
using dgc::emulation::threadIdx;

inline void __syncthreads() { dgc::emulation::wait(&dgc::emulation::block().all); }

inline uint32_t lane_of_thread() { return threadIdx.x % 32; }

template <class T>
T __shfl_up_sync(uint32_t, T value, uint32_t by) {
  const uint32_t lane = lane_of_thread();
  return static_cast<T>(dgc::emulation::show(static_cast<uint32_t>(value),
                                             [=](const uint32_t* l) { return l[lane >= by ? lane - by : lane]; }));
}

template <class T>
T __shfl_down_sync(uint32_t, T value, uint32_t by) {
  const uint32_t lane = lane_of_thread();
  return static_cast<T>(dgc::emulation::show(static_cast<uint32_t>(value),
                                             [=](const uint32_t* l) { return l[lane + by < 32 ? lane + by : lane]; }));
}

template <class T>
T __shfl_sync(uint32_t, T value, uint32_t from) {
  return static_cast<T>(dgc::emulation::show(static_cast<uint32_t>(value), [=](const uint32_t* l) { return l[from]; }));
}

template <class T>
T __shfl_xor_sync(uint32_t, T value, uint32_t with) {
  const uint32_t lane = lane_of_thread();
  return static_cast<T>(
      dgc::emulation::show(static_cast<uint32_t>(value), [=](const uint32_t* l) { return l[lane ^ with]; }));
}

inline uint32_t __match_any_sync(uint32_t, uint32_t value) {
  return dgc::emulation::show(value, [=](const uint32_t* l) {
    uint32_t same = 0;
    for (uint32_t i = 0; i < 32; ++i) same |= (l[i] == value ? 1u : 0u) << i;
    return same;
  });
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

inline uint32_t atomicAdd(uint32_t* at, uint32_t value) { return std::exchange(*at, *at + value); }
inline uint32_t atomicOr(uint32_t* at, uint32_t value) { return std::exchange(*at, *at | value); }
inline uint32_t atomicMax(uint32_t* at, uint32_t value) { return std::exchange(*at, value > *at ? value : *at); }

namespace dgc::cuda {

inline void grid_barrier() { emulation::wait(emulation::grid); }

template <class... Parameters, class... Arguments>
void launch(const char*, void (*kernel)(Parameters...), uint32_t count, uint32_t threads, void*,
            const Arguments&... arguments) {
  blockDim.x = threads;
  gridDim.x = count;
  for (uint32_t b = 0; b < count; ++b) emulation::run_blocks(b, 1, threads, [&] { kernel(arguments...); });
}

template <class... Parameters, class... Arguments>
void launch_together(const char*, void (*kernel)(Parameters...), uint32_t most, uint32_t threads, void*,
                     const Arguments&... arguments) {
  constexpr uint32_t kProcessors = 3;
  const uint32_t count = most < kProcessors ? most : kProcessors;
  blockDim.x = threads;
  gridDim.x = count;
  if (count > 0) emulation::run_blocks(0, count, threads, [&] { kernel(arguments...); });
}

}  // namespace dgc::cuda
