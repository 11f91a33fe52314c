// The bare memory traffic of the core's passes: plain streaming loops over the same arrays, compiled for the
// instruction sets of csrc/kernels.cc and run on the one that the core chooses. Loaded by floors.py; no part of the
// package.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "parallel.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FLOORS_X86 1
#else
#define FLOORS_X86 0
#endif

namespace {

constexpr size_t kGrain = 1 << 16;  // fewer elements are not worth a thread

// The loops of one instruction set, each over the elements [begin, end).
struct Floors {
  uint32_t (*read)(const uint32_t* grad, const uint32_t* velocity, const uint32_t* residual, size_t begin, size_t end);
  void (*update)(const float* grad, float* velocity, float* residual, float momentum, size_t begin, size_t end);
  void (*update_and_zero)(float* grad, float* velocity, float* residual, float momentum, size_t begin, size_t end);
};

// Bitwise or: whatever order the compiler picks, it need not keep partial sums.
#define FLOORS_DEFINE(SET, TARGET)                                                                               \
  namespace SET {                                                                                                \
  TARGET uint32_t read(const uint32_t* __restrict grad, const uint32_t* __restrict velocity,                     \
                       const uint32_t* __restrict residual, size_t begin, size_t end) {                          \
    uint32_t seen = 0;                                                                                           \
    for (size_t i = begin; i < end; ++i) seen |= grad[i] | velocity[i] | residual[i];                            \
    return seen;                                                                                                 \
  }                                                                                                              \
  TARGET void update(const float* __restrict grad, float* __restrict velocity, float* __restrict residual,       \
                     float momentum, size_t begin, size_t end) {                                                 \
    for (size_t i = begin; i < end; ++i) {                                                                       \
      velocity[i] = momentum * velocity[i] + grad[i];                                                            \
      residual[i] += velocity[i];                                                                                \
    }                                                                                                            \
  }                                                                                                              \
  TARGET void update_and_zero(float* __restrict grad, float* __restrict velocity, float* __restrict residual,    \
                              float momentum, size_t begin, size_t end) {                                        \
    for (size_t i = begin; i < end; ++i) {                                                                       \
      velocity[i] = momentum * velocity[i] + grad[i];                                                            \
      residual[i] += velocity[i];                                                                                \
      grad[i] = 0.0f;                                                                                            \
    }                                                                                                            \
  }                                                                                                              \
  const Floors table = {read, update, update_and_zero};                                                          \
  }

FLOORS_DEFINE(portable, )
#if FLOORS_X86
FLOORS_DEFINE(avx2, __attribute__((target("avx2"))))
FLOORS_DEFINE(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))))
#endif

const Floors& floors() {
#if FLOORS_X86
  if (std::strcmp(dgc::kernels().name, "avx512") == 0) return avx512::table;
  if (std::strcmp(dgc::kernels().name, "avx2") == 0) return avx2::table;
#endif
  return portable::table;
}

template <class Work>
void in_parallel(size_t n, int threads, const Work& work) {
  const std::vector<dgc::Range> ranges = dgc::split(n, threads, kGrain);
  dgc::run_parallel(ranges.size(), [&](size_t i) { work(ranges[i], i); });
}

}  // namespace

extern "C" {

// Name of the instruction set that the core, and so every floor, uses.
const char* floor_instructions() { return dgc::kernels().name; }

// Reads 12 bytes per element.
uint32_t floor_read(const uint32_t* grad, const uint32_t* velocity, const uint32_t* residual, size_t n, int threads) {
  std::vector<uint32_t> seen(static_cast<size_t>(threads > 0 ? threads : 1));
  in_parallel(n, threads, [&](dgc::Range r, size_t i) {
    seen[i] = floors().read(grad, velocity, residual, r.begin, r.end);
  });
  uint32_t all = 0;
  for (const uint32_t part : seen) all |= part;
  return all;
}

// Reads 4 bytes per element.
uint32_t floor_read_one(const uint32_t* grad, size_t n, int threads) {
  // The same loop: the other arrays' lines are in the cache already.
  return floor_read(grad, grad, grad, n, threads);
}

// velocity = momentum * velocity + grad, residual += velocity: reads 12 bytes per element and writes 8.
void floor_update(const float* grad, float* velocity, float* residual, float momentum, size_t n, int threads) {
  in_parallel(n, threads, [&](dgc::Range r, size_t) {
    floors().update(grad, velocity, residual, momentum, r.begin, r.end);
  });
}

// The same, and grad = 0: reads 12 bytes per element and writes 12.
void floor_update_and_zero(float* grad, float* velocity, float* residual, float momentum, size_t n, int threads) {
  in_parallel(n, threads, [&](dgc::Range r, size_t) {
    floors().update_and_zero(grad, velocity, residual, momentum, r.begin, r.end);
  });
}

}  // extern "C"
