// Coding the values of a payload on the device, bit for bit as value_coding.h has it.
#pragma once

#include "device.h"
#include "scaled_values.h"
#include "tables.h"

namespace dgc::cuda {

// What a payload holds at its first coordinates where a value is not finite.
__device__ inline float quiet_nan() { return bits_float(0x7fc00000u); }

// Payloads that have been gathered begin at any byte.
__device__ inline uint16_t read_16(const uint8_t* bytes) {
  return static_cast<uint16_t>(bytes[0] | bytes[1] << 8);
}

__device__ inline uint32_t read_32(const uint8_t* bytes) {
  return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16 |
         static_cast<uint32_t>(bytes[3]) << 24;
}

__device__ inline unsigned code_width(Values values) { return values == Values::int8 ? 8 : 4; }

__device__ inline uint64_t scale_bytes(uint32_t k) { return 4 * ((uint64_t{k} + kGroup - 1) / kGroup); }

// Value j of the k coded ones.
__device__ inline float decoded_value(const Format& format, const uint8_t* payload, uint32_t j) {
  switch (format.values) {
    case Values::float32:
      return bits_float(read_32(payload + uint64_t{4} * j));
    case Values::float16:
      return half_to_float(read_16(payload + uint64_t{2} * j));
    case Values::bfloat16:
      return bfloat16_to_float(read_16(payload + uint64_t{2} * j));
    case Values::int8:
    case Values::int4:
      break;
  }
  const float scale = bits_float(read_32(payload + uint64_t{4} * (j / kGroup)));
  const uint8_t* const codes = payload + scale_bytes(format.k);
  if (format.values == Values::int8) return value_of_multiple(codes[j], scale, 8);
  const uint8_t code = static_cast<uint8_t>(codes[j / 2] >> (4 * (j % 2)) & 15);
  return value_of_multiple(code, scale, 4);
}

// Codes group `group` of the values, kGroup threads together, and returns what decoding gives for this thread's.
// value: of coordinate group * kGroup + threadIdx.x, if there is one. The payload is aligned to 16 bytes.
__device__ inline float code_value(const Format& format, uint8_t* payload, uint32_t group, float value,
                                   BlockScratch* scratch) {
  const uint32_t j = group * kGroup + threadIdx.x;
  const bool there = j < format.k;
  switch (format.values) {
    case Values::float32:
      if (there) reinterpret_cast<float*>(payload)[j] = value;
      return value;
    case Values::float16: {
      const uint16_t half = float_to_half(value);
      if (there) reinterpret_cast<uint16_t*>(payload)[j] = half;
      return half_to_float(half);
    }
    case Values::bfloat16: {
      const uint16_t half = float_to_bfloat16(value);
      if (there) reinterpret_cast<uint16_t*>(payload)[j] = half;
      return bfloat16_to_float(half);
    }
    case Values::int8:
    case Values::int4:
      break;
  }
  const unsigned width = code_width(format.values);
  const float scale = scale_of(max_of_block<kGroup>(there ? magnitude(value) : 0, scratch), width);
  const uint8_t code = scale > 0.0f && there ? code_of_multiple(value, 1.0f / scale, width) : uint8_t{0};
  if (threadIdx.x == 0) reinterpret_cast<float*>(payload)[group] = scale;
  uint8_t* const codes = payload + scale_bytes(format.k);
  if (width == 8) {
    if (there) codes[j] = code;
  } else {
    const uint32_t next = __shfl_down_sync(kAllLanes, static_cast<uint32_t>(code), 1);
    if (there && j % 2 == 0) codes[j / 2] = static_cast<uint8_t>(code | next << 4);
  }
  return value_of_multiple(code, scale, width);
}

}  // namespace dgc::cuda
