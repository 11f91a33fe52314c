#include "tiled_coding.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

#include "code_packing.h"
#include "parallel.h"

namespace dgc {
namespace {

constexpr size_t kShortGroup = 1 << 15;
constexpr size_t kGrain = 1 << 16;  // values per thread at least
constexpr size_t kPrefetch = 1280;  // how many values before they are needed

}  // namespace

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

void TiledCoding::write_group(const float*, size_t, size_t, size_t, int, uint8_t*) const {}

void TiledCoding::write_header(const float* values, size_t k, int threads, uint8_t* bytes) const {
  const size_t size = group_size();
  for (size_t first = 0; size > 0 && first < k; first += size) {
    write_group(values + first, std::min(size, k - first), k, first / size, threads, bytes);
  }
}

void TiledCoding::encode(const float* values, size_t k, Key key, int threads, uint8_t* bytes,
                         float* sent) const {
  // Values of a short group are still in the cache when their codes are found right after its numbers. Ranges
  // then begin with a group, because one of another thread's may have been overwritten if sent is values; and
  // at a multiple of 8, where codes of any width begin a byte.
  const size_t size = group_size();
  const bool with_groups = size > 0 && size <= kShortGroup;
  if (!with_groups) write_header(values, k, threads, bytes);
  const size_t unit = with_groups ? std::lcm(size, size_t{8}) : kCodingTile;
  const std::vector<Range> ranges = split_units((k + unit - 1) / unit, threads, kGrain / unit);
  run_parallel(ranges.size(), [&](size_t r) {
    const size_t end = std::min(k, ranges[r].end * unit);
    encode_range(values, k, ranges[r].begin * unit, end, key, with_groups, bytes, sent);
  });
}

void TiledCoding::encode_range(const float* values, size_t k, size_t begin, size_t end, Key key,
                               bool with_groups, uint8_t* bytes, float* sent) const {
  constexpr size_t kLine = 64 / sizeof(float);
  const size_t size = group_size();
  size_t grouped = with_groups ? begin : k;
  for (size_t first = begin; first < end; first += kCodingTile) {
    const size_t count = std::min(kCodingTile, end - first);
    const size_t ahead = std::min(first + kPrefetch, k - count);
    for (size_t i = 0; i < count; i += kLine) __builtin_prefetch(sent + ahead + i, 1, 2);
    for (size_t i = 0; i < count; i += kLine) __builtin_prefetch(values + ahead + i, 0, 2);
    for (; grouped < first + count; grouped += size) {
      write_group(values + grouped, std::min(size, k - grouped), k, grouped / size, 1, bytes);
    }
    encode_tile(values + first, k, first, count, key, bytes, sent + first);
  }
}

size_t PackedCoding::nbytes(size_t k) const { return header_bytes(k) + packed_bytes(k, width_); }

void PackedCoding::encode_tile(const float* values, size_t k, size_t first, size_t count, Key key,
                               uint8_t* bytes, float* sent) const {
  uint8_t codes[kCodingTile];
  quantise(values, k, bytes, first, count, key, codes);
  pack_codes(codes, count, width_, bytes + header_bytes(k) + packed_bytes(first, width_));
  restore(codes, k, bytes, first, count, sent);
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
