// The inner loops of selectors.cc, compiled for several instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

#include "randomness.h"

namespace dgc {

struct SelectorKernels {
  const char* name;

  // hits[i] = 1 where |H| >= limit, with H = v + (v - r) one more step ahead, else 0. residual may be null:
  // 0.
  void (*find_ahead)(const float* values, const float* residual, size_t count, float limit, uint8_t* hits);

  // hits[i] = 1 where v^2 > alpha * (memory + squares) and |v| > tau, else 0.
  void (*find_unambiguous)(const float* values, const float* memory, const float* squares, size_t count,
                           float alpha, float tau, uint8_t* hits);

  // memory = zeta * (memory + squares).
  void (*decay)(const float* squares, size_t count, float zeta, float* memory);

  // Sum of values[i] - offset and of its square, in an order of additions that depends on `count` only.
  void (*sums_of_distances)(const float* values, size_t count, float offset, double* sum, double* squares);

  // out[i] = scale with the sign of values[i], with probability min(|values[i]|, limit) / scale, else 0.
  // values[i] is at position first + i.
  void (*ternarise)(const float* values, size_t count, float limit, float scale, Key key, uint32_t first,
                    float* out);
};

const SelectorKernels& selector_kernels();

}  // namespace dgc
