#include "threshold.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "half.h"
#include "selection.h"

namespace dgc {
namespace {

// Two cache lines of float32: they are fetched in pairs, and the page walks cost most.
constexpr size_t kRun = 32;

void gather(const void* data, Scalar type, size_t runs, const size_t* starts, void* out) {
  const size_t bytes = kRun * scalar_size(type);
  for (size_t r = 0; r < runs; ++r) {
    std::memcpy(static_cast<char*>(out) + r * bytes,
                static_cast<const char*>(data) + starts[r] * scalar_size(type), bytes);
  }
}

}  // namespace

size_t sample_size(size_t n, double sample_ratio) {
  constexpr size_t kLeast = 4096;
  constexpr size_t kMost = 65536;
  if (n < 4 * kLeast) return 0;
  const double wanted = static_cast<double>(n) * sample_ratio;
  const double bounded = std::min(std::max(wanted, static_cast<double>(kLeast)), static_cast<double>(kMost));
  return static_cast<size_t>(bounded) / kRun * kRun;
}

size_t sample_rank(size_t size, size_t n, size_t k) {
  // Mean and 3 standard deviations of the number of sampled elements among the best k, and a fifth on top.
  const double expected = static_cast<double>(size) * static_cast<double>(k) / static_cast<double>(n);
  return static_cast<size_t>(1.2 * expected + 3.0 * std::sqrt(expected)) + 1;
}

int32_t guess_threshold(const Kernels& kernels, const Arrays& a, const Coefficients& c, Memory memory,
                        size_t k, double sample_ratio) {
  const size_t size = sample_size(a.n, sample_ratio);
  const size_t rank = sample_rank(size, a.n, k);
  if (rank >= size) return kEverything;

  std::vector<float> sample(size);
  const size_t runs = size / kRun;
  const size_t lines = a.n / kRun;
  alignas(64) float grad[kTile], weights[kTile], velocity[kTile], residual[kTile], widened[2 * kTile];
  constexpr size_t kRuns = kTile / kRun;
  for (size_t first = 0; first < runs; first += kRuns) {
    const size_t count = std::min(kRuns, runs - first);
    size_t starts[kRuns];
    for (size_t r = 0; r < count; ++r) starts[r] = (first + r) * lines / runs * kRun;
    gather(a.grad, a.grad_type, count, starts, grad);
    if (a.residual) {
      gather(a.residual, Scalar::float32, count, starts, residual);
    } else {
      std::fill(residual, residual + count * kRun, 0.0f);
    }
    if (a.velocity) gather(a.velocity, Scalar::float32, count, starts, velocity);
    if (a.weights) gather(a.weights, a.weights_type, count, starts, weights);
    const float* g = as_float32(kernels, grad, a.grad_type, 0, count * kRun, widened);
    const float* w =
        a.weights ? as_float32(kernels, weights, a.weights_type, 0, count * kRun, widened + kTile) : nullptr;
    int32_t maxima[kTileBlocks];
    kernels.preview[static_cast<int>(memory)][a.weights != nullptr](
        c, g, w, velocity, residual, sample.data() + first * kRun, maxima, count * kRun);
  }
  return std::min(kth_magnitude(sample.data(), size, rank), kInfinityBits - 1);
}

}  // namespace dgc
