#include "kernels.h"

#include <atomic>

#include "half.h"
#include "instruction_sets.h"

namespace dgc {
namespace {

template <Memory kMemory, bool kWeights, bool kApply>
DGC_INLINE int32_t update_block(const Coefficients& c, const float* __restrict grad,
                                const float* __restrict weights, float* __restrict velocity,
                                float* __restrict residual, float* __restrict values, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    float ghat = c.unscale * grad[i];
    if (kWeights) ghat += c.weight_decay * weights[i];
    float u = 0.0f;
    if (kMemory != Memory::plain) {
      u = next_velocity(c, ghat, velocity[i]);
      if (kApply) velocity[i] = u;
    }
    const float v = residual[i] + step_of<kMemory>(c, ghat, u);
    if (kApply) {
      residual[i] = v;
    } else {
      values[i] = v;
    }
    const int32_t m = magnitude(v);
    largest = m > largest ? m : largest;
  }
  return largest;
}

template <Memory kMemory, bool kWeights, bool kApply>
DGC_INLINE void update_tile(const Coefficients& coefficients, const float* grad, const float* weights,
                            float* velocity, float* residual, float* values, int32_t* maxima, size_t count) {
  const Coefficients c = coefficients;
  for (size_t i = 0; i < count; i += kBlock) {
    // Absent arrays are null, and null must not be advanced.
    const float* w = kWeights ? weights + i : nullptr;
    float* u = kMemory != Memory::plain ? velocity + i : nullptr;
    float* out = kApply ? nullptr : values + i;
    // The constant length is what lets the compiler unroll the loop over a block completely.
    maxima[i / kBlock] =
        i + kBlock <= count
            ? update_block<kMemory, kWeights, kApply>(c, grad + i, w, u, residual + i, out, kBlock)
            : update_block<kMemory, kWeights, kApply>(c, grad + i, w, u, residual + i, out, count - i);
  }
}

DGC_INLINE int32_t largest_magnitude(const float* values, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const int32_t m = magnitude(values[i]);
    largest = m > largest ? m : largest;
  }
  return largest;
}

DGC_INLINE void maxima_of_blocks(const float* values, int32_t* maxima, size_t count) {
  size_t i = 0;
  for (; i + kBlock <= count; i += kBlock) maxima[i / kBlock] = largest_magnitude(values + i, kBlock);
  if (i < count) maxima[i / kBlock] = largest_magnitude(values + i, count - i);
}

DGC_INLINE void hits_of_block(const float* __restrict values, int32_t threshold, uint8_t* __restrict hits) {
  for (size_t i = 0; i < kBlock; ++i) hits[i] = magnitude(values[i]) > threshold ? 1 : 0;
}

DGC_INLINE double squares(const float* values, size_t count) {
  constexpr size_t kLanes = 32;
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      const double x = values[i + j];
      lanes[j] += x * x;
    }
  }
  for (; i < count; ++i) {
    const double x = values[i];
    lanes[i % kLanes] += x * x;
  }
  double sum = 0.0;
  for (size_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

DGC_INLINE void widen_float16(const uint16_t* __restrict in, float* __restrict out, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] = half_to_float(in[i]);
}

DGC_INLINE void widen_bfloat16(const uint16_t* __restrict in, float* __restrict out, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] = bfloat16_to_float(in[i]);
}

#define DGC_UPDATE_ROW(MEMORY, APPLY) {update<MEMORY, false, APPLY>, update<MEMORY, true, APPLY>}
#define DGC_UPDATE_TABLE(APPLY)                                                   \
  {DGC_UPDATE_ROW(Memory::plain, APPLY), DGC_UPDATE_ROW(Memory::momentum, APPLY), \
   DGC_UPDATE_ROW(Memory::nesterov, APPLY)}

#define DGC_DEFINE_KERNELS(SET, TARGET)                                                                     \
  namespace SET {                                                                                           \
  template <Memory kMemory, bool kWeights, bool kApply>                                                     \
  TARGET void update(const Coefficients& c, const float* grad, const float* weights, float* velocity,       \
                     float* residual, float* values, int32_t* maxima, size_t count) {                       \
    update_tile<kMemory, kWeights, kApply>(c, grad, weights, velocity, residual, values, maxima, count);    \
  }                                                                                                         \
  TARGET void block_maxima(const float* values, int32_t* maxima, size_t count) {                            \
    maxima_of_blocks(values, maxima, count);                                                                \
  }                                                                                                         \
  TARGET void find_hits(const float* values, int32_t threshold, uint8_t* hits) {                            \
    hits_of_block(values, threshold, hits);                                                                 \
  }                                                                                                         \
  TARGET int32_t max_magnitude(const float* values, size_t count) {                                         \
    return largest_magnitude(values, count);                                                                \
  }                                                                                                         \
  TARGET double sum_squares(const float* values, size_t count) { return squares(values, count); }           \
  TARGET void from_float16(const uint16_t* in, float* out, size_t count) { widen_float16(in, out, count); } \
  TARGET void from_bfloat16(const uint16_t* in, float* out, size_t count) {                                 \
    widen_bfloat16(in, out, count);                                                                         \
  }                                                                                                         \
  const Kernels table = {#SET,                                                                              \
                         DGC_UPDATE_TABLE(false),                                                           \
                         DGC_UPDATE_TABLE(true),                                                            \
                         block_maxima,                                                                      \
                         find_hits,                                                                         \
                         max_magnitude,                                                                     \
                         sum_squares,                                                                       \
                         from_float16,                                                                      \
                         from_bfloat16};                                                                    \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_KERNELS)

std::atomic<const Kernels*> forced{nullptr};

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> sets{&portable::table};
#if DGC_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) sets.push_back(&avx2::table);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    sets.push_back(&avx512::table);
  }
#endif
  return sets;
}

const Kernels& kernels() {
  static const Kernels* const fastest = available_kernels().back();
  const Kernels* chosen = forced.load(std::memory_order_relaxed);
  return chosen ? *chosen : *fastest;
}

void force_kernels(const Kernels* chosen) { forced.store(chosen, std::memory_order_relaxed); }

const float* as_float32(const Kernels& k, const void* data, Scalar type, size_t first, size_t count,
                        float* buffer) {
  if (data == nullptr) return nullptr;
  if (type == Scalar::float32) return static_cast<const float*>(data) + first;
  const uint16_t* halves = static_cast<const uint16_t*>(data) + first;
  (type == Scalar::float16 ? k.from_float16 : k.from_bfloat16)(halves, buffer, count);
  return buffer;
}

}  // namespace dgc
