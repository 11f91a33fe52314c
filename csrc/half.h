// IEEE binary16 and bfloat16 conversions by bit manipulation, branch-free so that compilers vectorise them.
// (Selecting by masks: compilers move a floating-point operation into a branch if only one arm of a
// conditional needs it.)
//
// Widening is exact, NaN payloads included. Narrowing rounds to nearest even; a finite value beyond the
// largest finite half saturates to it; infinities and NaN become a quiet NaN, so that overflow upstream stays
// visible.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace dgc {

DGC_HOST_DEVICE inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

DGC_HOST_DEVICE inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

DGC_HOST_DEVICE inline uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

constexpr int32_t kInfinityBits = 0x7f800000;

// |x| as an integer: ordered like the magnitudes themselves, with infinities and NaN (>= kInfinityBits) on
// top. Signed, because SSE2 compares no unsigned integers.
DGC_HOST_DEVICE inline int32_t magnitude(float x) { return static_cast<int32_t>(float_bits(x) & 0x7fffffffu); }

DGC_HOST_DEVICE inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t shifted = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t exponent = shifted & 0x0f800000u;
  const uint32_t normal = shifted + 0x38000000u;
  // 2^-14 (1 + m / 1024) - 2^-14 is m 2^-24, exactly.
  const uint32_t subnormal = float_bits(bits_float(shifted + 0x38800000u) - bits_float(0x38800000u));
  const uint32_t special = shifted + 0x70000000u;
  uint32_t bits = select(exponent == 0, subnormal, normal);
  bits = select(exponent == 0x0f800000u, special, bits);
  return bits_float(sign | bits);
}

DGC_HOST_DEVICE inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t absolute = bits & 0x7fffffffu;
  const uint32_t rounded = (absolute + 0xfffu + ((absolute >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t normal = rounded < 0x7bffu ? rounded : 0x7bffu;
  // The spacing of floats in [0.5, 1) is 2^-24, the unit of subnormal halves: the addition rounds.
  const uint32_t subnormal = float_bits(bits_float(absolute) + 0.5f) - 0x3f000000u;
  uint32_t half = select(absolute < 0x38800000u, subnormal, normal);
  half = select(absolute >= static_cast<uint32_t>(kInfinityBits), 0x7e00u, half);
  return static_cast<uint16_t>(sign | half);
}

DGC_HOST_DEVICE inline float bfloat16_to_float(uint16_t half) { return bits_float(static_cast<uint32_t>(half) << 16); }

DGC_HOST_DEVICE inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t absolute = bits & 0x7fffffffu;
  const uint32_t rounded = (absolute + 0x7fffu + ((absolute >> 16) & 1u)) >> 16;
  uint32_t half = rounded < 0x7f7fu ? rounded : 0x7f7fu;
  half = absolute >= static_cast<uint32_t>(kInfinityBits) ? 0x7fc0u : half;
  return static_cast<uint16_t>(sign | half);
}

}  // namespace dgc
