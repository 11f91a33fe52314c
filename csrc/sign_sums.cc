#include "sign_sums.h"

#include <algorithm>
#include <vector>

#include "half.h"
#include "instruction_sets.h"
#include "parallel.h"

namespace dgc {
namespace {

constexpr size_t kGrain = 1 << 16;  // elements per partial sum, and per thread at least
constexpr size_t kLanes = 32;
constexpr size_t kFetched = 512;  // values that are fetched from memory while as many are summed
constexpr size_t kLine = 64 / sizeof(float);
constexpr size_t kStrip = 1024;  // columns that are summed together: their sums stay in the cache

// Arrays of one element per column.
struct Strip {
  double positive[kStrip];
  double negative[kStrip];
  int32_t positives[kStrip];
  int32_t negatives[kStrip];
};

// What is not above 0 is the other's, NaN with it. By masks, so that it vectorises (see half.h).
DGC_INLINE float positive_part(float x) {
  return bits_float(float_bits(x) & (0u - static_cast<uint32_t>(x > 0.0f)));
}
DGC_INLINE float negative_part(float x) {
  return bits_float(float_bits(x) & (static_cast<uint32_t>(x > 0.0f) - 1u));
}

DGC_INLINE void sum_piece(const float* __restrict values, size_t count, SignSums* sums) {
  double positive[kLanes] = {};
  double negative[kLanes] = {};
  int32_t positives[kLanes] = {};
  int32_t negatives[kLanes] = {};
  size_t i = 0;
  while (i + kLanes <= count) {
    const size_t end = std::min(i + kFetched, count - count % kLanes);
    if (end + kFetched <= count) {
      for (size_t line = 0; line < kFetched; line += kLine) __builtin_prefetch(values + end + line);
    }
    for (; i < end; i += kLanes) {
      for (size_t j = 0; j < kLanes; ++j) positive[j] += static_cast<double>(positive_part(values[i + j]));
      for (size_t j = 0; j < kLanes; ++j) negative[j] += static_cast<double>(negative_part(values[i + j]));
      for (size_t j = 0; j < kLanes; ++j) positives[j] += values[i + j] > 0.0f ? 1 : 0;
      for (size_t j = 0; j < kLanes; ++j) negatives[j] += values[i + j] < 0.0f ? 1 : 0;
    }
  }
  for (size_t j = 0; i < count; ++i, ++j) {
    positive[j] += static_cast<double>(positive_part(values[i]));
    negative[j] += static_cast<double>(negative_part(values[i]));
    positives[j] += values[i] > 0.0f ? 1 : 0;
    negatives[j] += values[i] < 0.0f ? 1 : 0;
  }
  for (size_t width = kLanes / 2; width > 0; width /= 2) {
    for (size_t j = 0; j < width; ++j) {
      positive[j] += positive[j + width];
      negative[j] += negative[j + width];
      positives[j] += positives[j + width];
      negatives[j] += negatives[j + width];
    }
  }
  *sums = {positive[0], negative[0], static_cast<uint64_t>(positives[0]),
           static_cast<uint64_t>(negatives[0])};
}

DGC_INLINE void add_one_row(const float* __restrict values, size_t count, Strip* __restrict strip) {
  for (size_t j = 0; j < count; ++j) {
    const float x = values[j];
    strip->positive[j] += static_cast<double>(positive_part(x));
    strip->negative[j] += static_cast<double>(negative_part(x));
    strip->positives[j] += x > 0.0f ? 1 : 0;
    strip->negatives[j] += x < 0.0f ? 1 : 0;
  }
}

// Four rows, `stride` values apart: a quarter of the loads and stores of sums.
DGC_INLINE void add_four_rows(const float* __restrict values, size_t stride, size_t count,
                              Strip* __restrict strip) {
  for (size_t j = 0; j < count; ++j) {
    const float a = values[j];
    const float b = values[j + stride];
    const float c = values[j + 2 * stride];
    const float d = values[j + 3 * stride];
    strip->positive[j] += (static_cast<double>(positive_part(a)) + static_cast<double>(positive_part(b))) +
                          (static_cast<double>(positive_part(c)) + static_cast<double>(positive_part(d)));
    strip->negative[j] += (static_cast<double>(negative_part(a)) + static_cast<double>(negative_part(b))) +
                          (static_cast<double>(negative_part(c)) + static_cast<double>(negative_part(d)));
    strip->positives[j] += (a > 0.0f ? 1 : 0) + (b > 0.0f ? 1 : 0) + (c > 0.0f ? 1 : 0) + (d > 0.0f ? 1 : 0);
    strip->negatives[j] += (a < 0.0f ? 1 : 0) + (b < 0.0f ? 1 : 0) + (c < 0.0f ? 1 : 0) + (d < 0.0f ? 1 : 0);
  }
}

struct SumKernels {
  const char* name;
  void (*sum)(const float* values, size_t count, SignSums* sums);
  void (*add)(const float* values, size_t count, Strip* strip);
  void (*add_four)(const float* values, size_t stride, size_t count, Strip* strip);
};

#define DGC_DEFINE_SUMS(SET, TARGET)                                                                      \
  namespace SET {                                                                                         \
  TARGET void sum(const float* values, size_t count, SignSums* sums) { sum_piece(values, count, sums); }  \
  TARGET void add(const float* values, size_t count, Strip* strip) { add_one_row(values, count, strip); } \
  TARGET void add_four(const float* values, size_t stride, size_t count, Strip* strip) {                  \
    add_four_rows(values, stride, count, strip);                                                          \
  }                                                                                                       \
  const SumKernels table = {#SET, sum, add, add_four};                                                    \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_SUMS)

const SumKernels& sum_kernels() { return chosen<SumKernels>(DGC_TABLES); }

void add_to(SignSums* sums, const SignSums& more) {
  sums->positive += more.positive;
  sums->negative += more.negative;
  sums->positives += more.positives;
  sums->negatives += more.negatives;
}

}  // namespace

SignSums sum_signs(const float* values, size_t count, int threads) {
  const SumKernels& kernels = sum_kernels();
  SignSums sums;
  if (count <= kGrain) {
    kernels.sum(values, count, &sums);
    return sums;
  }
  std::vector<SignSums> partial((count + kGrain - 1) / kGrain);
  const std::vector<Range> ranges = split_units(partial.size(), threads, 1);
  run_parallel(ranges.size(), [&](size_t r) {
    for (size_t p = ranges[r].begin; p < ranges[r].end; ++p) {
      kernels.sum(values + p * kGrain, std::min(kGrain, count - p * kGrain), &partial[p]);
    }
  });
  for (const SignSums& p : partial) add_to(&sums, p);
  return sums;
}

void sum_column_signs(const float* values, size_t count, size_t columns, int threads, SignSums* sums) {
  std::fill(sums, sums + columns, SignSums());
  // Few columns are summed as if they were many: rows of several rows each.
  constexpr size_t kLeast = 256;
  const size_t width = columns < kLeast ? (kLeast + columns - 1) / columns * columns : columns;
  const SumKernels& kernels = sum_kernels();
  const std::vector<Range> ranges = split(width, count < kGrain ? 1 : threads, 64);
  std::vector<SignSums> folded(width == columns ? 0 : width);
  SignSums* wide = folded.empty() ? sums : folded.data();
  run_parallel(ranges.size(), [&](size_t r) {
    for (size_t begin = ranges[r].begin; begin < ranges[r].end; begin += kStrip) {
      const size_t end = std::min(begin + kStrip, ranges[r].end);
      Strip strip = {};
      size_t first = begin;
      for (; first + 3 * width + (end - begin) <= count; first += 4 * width) {
        kernels.add_four(values + first, width, end - begin, &strip);
      }
      for (; first < count; first += width) {
        kernels.add(values + first, std::min(end - begin, count - first), &strip);
      }
      for (size_t j = 0; j < end - begin; ++j) {
        wide[begin + j] = {strip.positive[j], strip.negative[j], static_cast<uint64_t>(strip.positives[j]),
                           static_cast<uint64_t>(strip.negatives[j])};
      }
    }
  });
  for (size_t j = 0; j < folded.size(); ++j) add_to(&sums[j % columns], folded[j]);
}

}  // namespace dgc
