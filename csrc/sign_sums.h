// Sums and numbers of the positive and of the negative values of an array, from which the means that sign
// coders send follow.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dgc {

struct SignSums {
  double positive = 0.0;  // sum of the values above 0
  double negative = 0.0;  // sum of the values below 0, NaN if one is NaN
  uint64_t positives = 0;
  uint64_t negatives = 0;

  double magnitudes() const { return positive - negative; }
};

// In double precision and in an order of additions that depends on `count` only. Values that are equal, up to
// 2^29 of them, add up without an error. A sum with an infinite value is not finite.
SignSums sum_signs(const float* values, size_t count, int threads);

// Sums of the columns of a matrix with rows of `columns` values, of which there are `count` in all: the last
// row may be shorter. sums: `columns`, overwritten.
void sum_column_signs(const float* values, size_t count, size_t columns, int threads, SignSums* sums);

}  // namespace dgc
