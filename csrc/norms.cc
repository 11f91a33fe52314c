#include "norms.h"

#include <algorithm>
#include <vector>

#include "half.h"
#include "kernels.h"
#include "parallel.h"

namespace dgc {
namespace {

constexpr size_t kGrain = 1 << 16;  // elements per thread at least, and per partial sum

// work(values, count) over [begin, end) as float32: in one piece where nothing has to be converted.
template <class Work>
void for_each_piece(const Kernels& k, const void* data, Scalar type, size_t begin, size_t end,
                    const Work& work) {
  float buffer[kTile];
  const size_t piece = type == Scalar::float32 ? end - begin : kTile;
  for (size_t first = begin; first < end; first += piece) {
    const size_t count = std::min(piece, end - first);
    work(as_float32(k, data, type, first, count, buffer), count);
  }
}

}  // namespace

double sum_squares(const void* data, Scalar type, size_t n, int threads) {
  const Kernels& k = kernels();
  std::vector<double> partial((n + kGrain - 1) / kGrain);
  const std::vector<Range> ranges = split(partial.size(), threads, 1);
  run_parallel(ranges.size(), [&](size_t r) {
    for (size_t p = ranges[r].begin; p < ranges[r].end; ++p) {
      for_each_piece(k, data, type, p * kGrain, std::min(n, (p + 1) * kGrain),
                     [&](const float* values, size_t count) { partial[p] += k.sum_squares(values, count); });
    }
  });
  double sum = 0.0;
  for (const double p : partial) sum += p;
  return sum;
}

float max_magnitude(const void* data, Scalar type, size_t n, int threads) {
  // A single stream of reads does not use all of the memory's bandwidth.
  constexpr size_t kStreams = 4;
  const Kernels& k = kernels();
  const std::vector<Range> ranges = split(n, threads, kGrain);
  std::vector<int32_t> largest(ranges.size(), 0);
  run_parallel(ranges.size(), [&](size_t r) {
    float buffer[kTile];
    const size_t tiles = (ranges[r].end - ranges[r].begin + kTile - 1) / kTile;
    const size_t tiles_per_stream = (tiles + kStreams - 1) / kStreams;
    for (size_t i = 0; i < tiles_per_stream * kStreams; ++i) {
      const size_t tile = i % kStreams * tiles_per_stream + i / kStreams;
      if (tile >= tiles) continue;
      const size_t first = ranges[r].begin + tile * kTile;
      const size_t count = std::min(kTile, ranges[r].end - first);
      largest[r] = std::max(largest[r], k.max_magnitude(as_float32(k, data, type, first, count, buffer), count));
    }
  });
  return bits_float(static_cast<uint32_t>(*std::max_element(largest.begin(), largest.end())));
}

bool all_finite(const void* data, Scalar type, size_t n) {
  return magnitude(max_magnitude(data, type, n, 1)) < kInfinityBits;
}

}  // namespace dgc
