#include "selector_kernels.h"

#include <cfloat>
#include <cmath>

#include "half.h"
#include "instruction_sets.h"

namespace dgc {
namespace {

constexpr size_t kLanes = 32;  // partial sums: so many that compilers keep them a loop, and vectorise it

// FLT_MAX where x, not negative, is above it.
DGC_INLINE float at_most_largest(float x) {
  return bits_float(
      select(float_bits(x) < static_cast<uint32_t>(kInfinityBits), float_bits(x), float_bits(FLT_MAX)));
}

DGC_INLINE void hits_ahead(const float* __restrict values, const float* __restrict residual, size_t count,
                           float limit, uint8_t* __restrict hits) {
  for (size_t i = 0; i < count; ++i) {
    const float ahead = values[i] + (values[i] - (residual ? residual[i] : 0.0f));
    hits[i] = bits_float(float_bits(ahead) & 0x7fffffffu) >= limit ? 1 : 0;
  }
}

DGC_INLINE void hits_unambiguous(const float* __restrict values, const float* __restrict memory,
                                 const float* __restrict squares, size_t count, float alpha, float tau,
                                 uint8_t* __restrict hits) {
  for (size_t i = 0; i < count; ++i) {
    const float square = at_most_largest(values[i] * values[i]);
    const float moment = at_most_largest(memory[i] + squares[i]);
    const bool clear = static_cast<double>(square) > static_cast<double>(alpha) * static_cast<double>(moment);
    const bool large = bits_float(float_bits(values[i]) & 0x7fffffffu) > tau;
    hits[i] = static_cast<uint8_t>(static_cast<unsigned>(clear) & static_cast<unsigned>(large));
  }
}

DGC_INLINE void decayed(const float* __restrict squares, size_t count, float zeta, float* __restrict memory) {
  for (size_t i = 0; i < count; ++i) memory[i] = zeta * at_most_largest(memory[i] + squares[i]);
}

DGC_INLINE void distances(const float* values, size_t count, float offset, double* sum, double* squares) {
  double sums[kLanes] = {};
  double square_sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      const double x = static_cast<double>(values[i + j]) - static_cast<double>(offset);
      sums[j] += x;
      square_sums[j] += x * x;
    }
  }
  for (; i < count; ++i) {
    const double x = static_cast<double>(values[i]) - static_cast<double>(offset);
    sums[i % kLanes] += x;
    square_sums[i % kLanes] += x * x;
  }
  *sum = 0.0;
  *squares = 0.0;
  for (size_t j = 0; j < kLanes; ++j) {
    *sum += sums[j];
    *squares += square_sums[j];
  }
}

DGC_INLINE void one_of_three(const float* __restrict values, size_t count, float limit, float scale, Key key,
                             uint32_t first, float* __restrict out) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(values[i]);
    const float size = bits_float(bits & 0x7fffffffu);
    const float clipped = size < limit ? size : limit;
    const bool up = random_uniform(key, first + static_cast<uint32_t>(i)) * scale < clipped;
    out[i] = bits_float(select(up, float_bits(scale) | (bits & 0x80000000u), 0u));
  }
}

#define DGC_DEFINE_SELECTORS(SET, TARGET)                                                                    \
  namespace SET {                                                                                            \
  TARGET void find_ahead(const float* values, const float* residual, size_t count, float limit,              \
                         uint8_t* hits) {                                                                    \
    hits_ahead(values, residual, count, limit, hits);                                                        \
  }                                                                                                          \
  TARGET void find_unambiguous(const float* values, const float* memory, const float* squares, size_t count, \
                               float alpha, float tau, uint8_t* hits) {                                      \
    hits_unambiguous(values, memory, squares, count, alpha, tau, hits);                                      \
  }                                                                                                          \
  TARGET void decay(const float* squares, size_t count, float zeta, float* memory) {                         \
    decayed(squares, count, zeta, memory);                                                                   \
  }                                                                                                          \
  TARGET void sums_of_distances(const float* values, size_t count, float offset, double* sum,                \
                                double* squares) {                                                           \
    distances(values, count, offset, sum, squares);                                                          \
  }                                                                                                          \
  TARGET void ternarise(const float* values, size_t count, float limit, float scale, Key key,                \
                        uint32_t first, float* out) {                                                        \
    one_of_three(values, count, limit, scale, key, first, out);                                              \
  }                                                                                                          \
  const SelectorKernels table = {#SET, find_ahead, find_unambiguous, decay, sums_of_distances, ternarise};   \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_SELECTORS)

}  // namespace

const SelectorKernels& selector_kernels() { return chosen<SelectorKernels>(DGC_TABLES); }

}  // namespace dgc
