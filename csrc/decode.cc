#include "decode.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"

namespace dgc {
namespace {

constexpr size_t kCoordinatesPerThread = 1 << 15;  // fewer are not worth a thread

// Coordinates [range.begin, range.end) of every payload.
void add_sparse(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
                Range range) {
  constexpr size_t kBatch = 256;
  uint32_t indices[kBatch];
  float values[kBatch];
  for (size_t p = 0; p < count; ++p) {
    const uint8_t* payload = payloads + p * layout.nbytes();
    IndexReader reader(layout.indices(), layout.n(), layout.k(), layout.index_part(payload));
    if (range.begin > 0) reader.seek(range.begin);
    for (;;) {
      const size_t first = reader.position();
      size_t length = reader.read(indices, kBatch);
      while (length > 0 && indices[length - 1] >= range.end) --length;
      if (length == 0) break;
      for (size_t j = 0; j < length; ++j) __builtin_prefetch(out + indices[j], 1);
      decode_values(layout.values(), layout.k(), payload, first, length, values);
      for (size_t j = 0; j < length; ++j) out[indices[j]] += scale * values[j];
    }
  }
}

constexpr size_t kPiece = 2048;

// out[0..length) += scale * the sum of the payloads at coordinates first..; length <= kPiece.
void add_piece(const Layout& layout, const uint8_t* payloads, size_t count, size_t first, size_t length,
               float scale, float* out) {
  float values[kPiece];
  for (size_t p = 0; p < count; ++p) {
    decode_values(layout.values(), layout.k(), payloads + p * layout.nbytes(), first, length, values);
    for (size_t j = 0; j < length; ++j) out[j] += scale * values[j];
  }
}

void add_dense(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
               Range range) {
  for (size_t first = range.begin; first < range.end; first += kPiece) {
    add_piece(layout, payloads, count, first, std::min(kPiece, range.end - first), scale, out + first);
  }
}

void vote_dense(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
                Range range) {
  float sums[kPiece];
  for (size_t first = range.begin; first < range.end; first += kPiece) {
    const size_t length = std::min(kPiece, range.end - first);
    std::fill(sums, sums + length, 0.0f);
    add_piece(layout, payloads, count, first, length, 1.0f, sums);
    vote(sums, length);
    for (size_t j = 0; j < length; ++j) out[first + j] += scale * sums[j];
  }
}

size_t useful_threads(size_t coordinates, int threads) {
  return std::min(static_cast<size_t>(std::max(1, threads)), 1 + coordinates / kCoordinatesPerThread);
}

}  // namespace

void validate_each(size_t count, size_t coordinates, int threads,
                   const std::function<std::string(size_t)>& check) {
  std::vector<std::string> wrong(count);
  const size_t workers = std::min(std::max<size_t>(1, count), useful_threads(coordinates, threads));
  run_parallel(workers, [&](size_t worker) {
    for (size_t p = worker; p < count; p += workers) wrong[p] = check(p);
  });
  for (size_t p = 0; p < count; ++p) {
    if (!wrong[p].empty()) throw std::invalid_argument("payloads[" + std::to_string(p) + "]: " + wrong[p]);
  }
}

void validate(const Layout& layout, const uint8_t* payloads, size_t count, int threads) {
  validate_each(count, layout.k() * count, threads,
                [&](size_t p) { return layout.check(payloads + p * layout.nbytes()); });
}

void add_valid(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
               int threads) {
  const std::vector<Range> ranges =
      split(layout.n(), static_cast<int>(useful_threads(layout.k() * count, threads)), 1);
  run_parallel(ranges.size(), [&](size_t i) {
    (layout.dense() ? add_dense : add_sparse)(layout, payloads, count, out, scale, ranges[i]);
  });
}

void vote_valid(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
                int threads) {
  const std::vector<Range> ranges =
      split(layout.n(), static_cast<int>(useful_threads(layout.k() * count, threads)), 1);
  run_parallel(ranges.size(), [&](size_t i) { vote_dense(layout, payloads, count, out, scale, ranges[i]); });
}

void vote(float* sums, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const float above = sums[i] > 0.0f ? 1.0f : 0.0f;
    const float below = sums[i] < 0.0f ? 1.0f : 0.0f;
    // The product is NaN where the sum is not finite, and 0 elsewhere.
    sums[i] = above - below + sums[i] * 0.0f;
  }
}

void decode_add(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
                int threads) {
  validate(layout, payloads, count, threads);
  add_valid(layout, payloads, count, out, scale, threads);
}

}  // namespace dgc
