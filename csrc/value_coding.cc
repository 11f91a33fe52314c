#include "value_coding.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"

namespace dgc {
namespace {

constexpr int kLargestInt8 = 127;
constexpr int kLargestInt4 = 7;

size_t scale_bytes(size_t k) { return (k + kChunk - 1) / kChunk * sizeof(float); }

float load_float(const uint8_t* bytes) {
  float x;
  std::memcpy(&x, bytes, sizeof x);
  return x;
}

float chunk_scale(const float* values, size_t count, int largest_code) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(values[i]));
  if (largest >= kInfinityBits) return std::numeric_limits<float>::quiet_NaN();
  const float codes = static_cast<float>(largest_code);
  float scale = bits_float(static_cast<uint32_t>(largest)) / codes;
  if (scale < FLT_MIN) return 0.0f;
  if (!std::isfinite(scale * codes)) scale = std::nextafter(scale, 0.0f);
  return scale;
}

// Codes of `count` <= kChunk values as int8.
void quantise(const float* values, size_t count, float scale, int largest_code, int8_t* codes) {
  if (!(scale > 0.0f)) {
    std::memset(codes, 0, count);
    return;
  }
  const float reciprocal = 1.0f / scale;
  const float limit = static_cast<float>(largest_code);
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, and vectorises everywhere.
  constexpr float kRounder = 12582912.0f;
  for (size_t i = 0; i < count; ++i) {
    float x = values[i] * reciprocal;
    x = x > limit ? limit : x;
    x = x < -limit ? -limit : x;
    codes[i] = static_cast<int8_t>(static_cast<int>((x + kRounder) - kRounder));
  }
}

int nibble_value(unsigned nibble) { return static_cast<int>(nibble ^ 8u) - 8; }

void encode_scaled(ValueCoder coder, const float* values, size_t k, uint8_t* bytes, float* sent) {
  const int largest_code = coder == ValueCoder::int8 ? kLargestInt8 : kLargestInt4;
  uint8_t* out = bytes + scale_bytes(k);
  for (size_t first = 0; first < k; first += kChunk) {
    const size_t count = std::min(kChunk, k - first);
    const float scale = chunk_scale(values + first, count, largest_code);
    std::memcpy(bytes + first / kChunk * sizeof scale, &scale, sizeof scale);
    int8_t codes[kChunk + 1];
    quantise(values + first, count, scale, largest_code, codes);
    for (size_t i = 0; i < count; ++i) sent[first + i] = static_cast<float>(codes[i]) * scale;
    if (coder == ValueCoder::int8) {
      std::memcpy(out, codes, count);
      out += count;
      continue;
    }
    codes[count] = 0;
    for (size_t i = 0; i < count; i += 2) {
      *out++ = static_cast<uint8_t>((codes[i] & 0xf) | ((codes[i + 1] & 0xf) << 4));
    }
  }
}

void decode_scaled(ValueCoder coder, size_t k, const uint8_t* bytes, size_t first, size_t count,
                   float* values) {
  const uint8_t* codes = bytes + scale_bytes(k);
  for (size_t i = 0; i < count;) {
    const size_t position = first + i;
    const size_t chunk = position / kChunk;
    const size_t end = std::min(count, (chunk + 1) * kChunk - first);
    const float scale = load_float(bytes + chunk * sizeof scale);
    if (coder == ValueCoder::int8) {
      for (; i < end; ++i) values[i] = static_cast<float>(static_cast<int8_t>(codes[first + i])) * scale;
    } else {
      for (; i < end; ++i) {
        const unsigned byte = codes[(first + i) / 2];
        values[i] = static_cast<float>(nibble_value((byte >> ((first + i) % 2 * 4)) & 0xfu)) * scale;
      }
    }
  }
}

template <uint16_t (*kNarrow)(float), float (*kWiden)(uint16_t)>
void encode_halves(const float* values, size_t k, uint8_t* bytes, float* sent) {
  for (size_t i = 0; i < k; ++i) {
    const uint16_t half = kNarrow(values[i]);
    std::memcpy(bytes + 2 * i, &half, 2);
    sent[i] = kWiden(half);
  }
}

template <float (*kWiden)(uint16_t)>
void decode_halves(const uint8_t* bytes, size_t count, float* values) {
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, bytes + 2 * i, 2);
    values[i] = kWiden(half);
  }
}

}  // namespace

size_t value_bytes(ValueCoder coder, size_t k) {
  switch (coder) {
    case ValueCoder::float32:
      return 4 * k;
    case ValueCoder::float16:
    case ValueCoder::bfloat16:
      return 2 * k;
    case ValueCoder::int8:
      return scale_bytes(k) + k;
    case ValueCoder::int4:
      return scale_bytes(k) + (k + 1) / 2;
  }
  return 0;
}

void encode_values(ValueCoder coder, const float* values, size_t k, uint8_t* bytes, float* sent) {
  if (k == 0) return;
  switch (coder) {
    case ValueCoder::float32:
      std::memcpy(bytes, values, 4 * k);
      if (sent != values) std::memcpy(sent, values, 4 * k);
      break;
    case ValueCoder::float16:
      encode_halves<float_to_half, half_to_float>(values, k, bytes, sent);
      break;
    case ValueCoder::bfloat16:
      encode_halves<float_to_bfloat16, bfloat16_to_float>(values, k, bytes, sent);
      break;
    case ValueCoder::int8:
    case ValueCoder::int4:
      encode_scaled(coder, values, k, bytes, sent);
      break;
  }
}

void decode_values(ValueCoder coder, size_t k, const uint8_t* bytes, size_t first, size_t count,
                   float* values) {
  if (count == 0) return;
  switch (coder) {
    case ValueCoder::float32:
      std::memcpy(values, bytes + 4 * first, 4 * count);
      break;
    case ValueCoder::float16:
      decode_halves<half_to_float>(bytes + 2 * first, count, values);
      break;
    case ValueCoder::bfloat16:
      decode_halves<bfloat16_to_float>(bytes + 2 * first, count, values);
      break;
    case ValueCoder::int8:
    case ValueCoder::int4:
      decode_scaled(coder, k, bytes, first, count, values);
      break;
  }
}

std::string check_values(ValueCoder coder, size_t k, const uint8_t* bytes) {
  if (coder != ValueCoder::int8 && coder != ValueCoder::int4) return {};
  for (size_t chunk = 0; chunk * kChunk < k; ++chunk) {
    const float scale = load_float(bytes + chunk * sizeof(float));
    if (std::isinf(scale) || scale < 0.0f) {
      return "scale " + std::to_string(scale) + " of chunk " + std::to_string(chunk) +
             ", allowed: NaN or finite and not negative";
    }
  }
  if (coder == ValueCoder::int4 && k % 2 != 0 && bytes[scale_bytes(k) + k / 2] >> 4 != 0) {
    return "the unused nibble is not 0";
  }
  return {};
}

}  // namespace dgc
