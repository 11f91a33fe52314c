// A guess, from a sample, of a magnitude that somewhat more than k elements of v' exceed. It decides how much
// work the selection has, never its outcome.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arrays.h"
#include "kernels.h"

namespace dgc {

// Elements sampled from n: n * sample_ratio within [4096, 65536], in runs of 32; 0 where sampling does not
// pay.
size_t sample_size(size_t n, double sample_ratio);

// Rank in a sample of `size` elements whose magnitude somewhat more than k of n elements should exceed.
size_t sample_rank(size_t size, size_t n, size_t k);

// Reads about sample_size() elements at evenly spread positions, writes nothing. 1 <= k <= a.n.
// The result is kEverything or a finite magnitude (half.h), so that values that are not finite always exceed
// it.
int32_t guess_threshold(const Kernels& kernels, const Arrays& a, const Coefficients& c, Memory memory,
                        size_t k, double sample_ratio);

}  // namespace dgc
