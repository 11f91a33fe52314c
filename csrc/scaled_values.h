// The arithmetic of int8 and int4 values (value_coding.h), one value at a time.
#pragma once

#include <cfloat>
#include <cstdint>

#include "half.h"
#include "host_device.h"

namespace dgc {

DGC_HOST_DEVICE inline float largest_code(unsigned width) { return static_cast<float>((1 << (width - 1)) - 1); }

// Scale of values whose largest magnitude (half.h) is `largest`: NaN if that is not finite, 0 if it would be
// subnormal.
DGC_HOST_DEVICE inline float scale_of(int32_t largest, unsigned width) {
  if (largest >= kInfinityBits) return bits_float(0x7fc00000u);
  const float codes = largest_code(width);
  const float scale = bits_float(static_cast<uint32_t>(largest)) / codes;
  if (scale < FLT_MIN) return 0.0f;
  // One step down where the largest code would decode to infinity.
  return magnitude(scale * codes) < kInfinityBits ? scale : bits_float(float_bits(scale) - 1u);
}

// Two's complement in `width` bits of round(value / scale), ties to even, within the largest code. reciprocal:
// 1 / scale.
DGC_HOST_DEVICE inline uint8_t code_of_multiple(float value, float reciprocal, unsigned width) {
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, and vectorises everywhere.
  constexpr float kRounder = 12582912.0f;
  const float limit = largest_code(width);
  float x = value * reciprocal;
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  return static_cast<uint8_t>(static_cast<int32_t>((x + kRounder) - kRounder) & ((1 << width) - 1));
}

DGC_HOST_DEVICE inline float value_of_multiple(uint8_t code, float scale, unsigned width) {
  const int32_t sign = 1 << (width - 1);
  return static_cast<float>((code ^ sign) - sign) * scale;
}

}  // namespace dgc
