// The inner loops, compiled for several instruction sets and chosen once at run time. All sets give the same
// bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "update.h"

namespace dgc {

constexpr size_t kBlock = 64;   // elements that are looked at one by one only if their largest magnitude pays
constexpr size_t kTile = 1024;  // elements per kernel call: its arrays stay in the first-level cache
constexpr size_t kTileBlocks = kTile / kBlock;

struct Kernels {
  const char* name;

  // Computes u' and v' of `count` <= kTile elements; maxima[b] = largest magnitude of v' in block b (half.h).
  // weights and velocity may be null where the variant does not use them.
  // preview: values[0..count) = v', nothing else written. apply: velocity = u', residual = v'; values unused.
  // Indexed by [Memory][weight decay].
  using UpdateTile = void (*)(const Coefficients& c, const float* grad, const float* weights, float* velocity,
                              float* residual, float* values, int32_t* maxima, size_t count);
  UpdateTile preview[3][2];
  UpdateTile apply[3][2];

  // maxima[b] = largest magnitude in block b of `count` <= kTile values.
  void (*block_maxima)(const float* values, int32_t* maxima, size_t count);

  // hits[i] = 1 where the magnitude of values[i] is above threshold, else 0; kBlock values.
  void (*find_hits)(const float* values, int32_t threshold, uint8_t* hits);

  // Largest magnitude of `count` values, 0 if there are none.
  int32_t (*max_magnitude)(const float* values, size_t count);

  // Sum of squares in double precision, in an order of additions that depends on `count` only.
  double (*sum_squares)(const float* values, size_t count);

  // Conversion of `count` values to 16-bit patterns, and exact widening back (half.h). The patterns need not
  // be aligned.
  void (*to_float16)(const float* in, void* out, size_t count);
  void (*to_bfloat16)(const float* in, void* out, size_t count);
  void (*from_float16)(const void* in, float* out, size_t count);
  void (*from_bfloat16)(const void* in, float* out, size_t count);
};

// The fastest set that this processor runs.
const Kernels& kernels();

// Every set that this processor runs, portable first.
std::vector<const Kernels*> available_kernels();

// Makes kernels() return `chosen` (from available_kernels()), or the fastest again for null. For tests.
void force_kernels(const Kernels* chosen);

// `count` elements of an array from element `first` as float32: the array itself if it is float32, otherwise
// `buffer`, which is filled with `count` floats. Null for a null array.
const float* as_float32(const Kernels& k, const void* data, Scalar type, size_t first, size_t count,
                        float* buffer);

}  // namespace dgc
