#include "tiled_coding.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "code_packing.h"
#include "parallel.h"

namespace dgc {

float header_scale(double x) {
  if (!std::isfinite(x)) return std::numeric_limits<float>::quiet_NaN();
  if (x < static_cast<double>(FLT_MIN)) return 0.0f;
  return static_cast<float>(std::min(x, static_cast<double>(FLT_MAX)));
}

std::string check_scale(const uint8_t* bytes, size_t index, bool negative) {
  const float x = header_float(bytes, index);
  const float scale = negative ? -x : x;
  if (std::isnan(scale) || scale == 0.0f || (scale >= FLT_MIN && scale <= FLT_MAX)) return {};
  return "number " + std::to_string(index) + " of the header is " + std::to_string(x) +
         ", allowed: NaN, 0 or a finite normal number " + (negative ? "below" : "above") + " 0";
}

void TiledCoding::encode(const float* values, size_t k, Key key, int threads, uint8_t* bytes,
                         float* sent) const {
  write_header(values, k, threads, bytes);
  const std::vector<Range> ranges = split((k + kCodingTile - 1) / kCodingTile, threads, 1);
  run_parallel(ranges.size(), [&](size_t r) {
    for (size_t tile = ranges[r].begin; tile < ranges[r].end; ++tile) {
      const size_t first = tile * kCodingTile;
      const size_t count = std::min(kCodingTile, k - first);
      write_codes(values + first, k, first, count, key, bytes);
      decode(k, bytes, first, count, sent + first);
    }
  });
}

size_t PackedCoding::nbytes(size_t k) const { return header_bytes(k) + packed_bytes(k, width_); }

void PackedCoding::write_codes(const float* values, size_t k, size_t first, size_t count, Key key,
                               uint8_t* bytes) const {
  uint8_t codes[kCodingTile];
  quantise(values, k, bytes, first, count, key, codes);
  pack_codes(codes, count, width_, bytes + header_bytes(k) + packed_bytes(first, width_));
}

void PackedCoding::decode(size_t k, const uint8_t* bytes, size_t first, size_t count, float* values) const {
  uint8_t codes[kCodingTile];
  while (count > 0) {
    const size_t length = std::min(count, kCodingTile);
    unpack_codes(bytes + header_bytes(k), first, length, width_, codes);
    restore(codes, k, bytes, first, length, values);
    first += length;
    count -= length;
    values += length;
  }
}

std::string PackedCoding::check(size_t k, const uint8_t* bytes) const {
  const std::string wrong = check_header(k, bytes);
  if (!wrong.empty()) return wrong;
  const uint8_t* codes = bytes + header_bytes(k);
  if (!unused_bits_are_zero(codes, k, width_)) return "the unused bits of the last byte are not 0";
  return check_codes(k, codes);
}

}  // namespace dgc
