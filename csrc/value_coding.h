// Coding of k float32 values in a number of bytes that depends on k only.
//
// float32          4 bytes each, as they are
// float16          2 bytes each, see half.h
// bfloat16         2 bytes each, see half.h
// int8             one float32 scale = max|v| / 127 per chunk of 256 values, all scales first; then a byte
//                  each
// int4             the same with max|v| / 7 and two values per byte, low nibble first; an unused nibble is 0
//
// Codes are two's complement, round(v / scale), in [-127, 127] or [-7, 7]; the value is code * scale. A chunk
// with a value that is not finite has the scale NaN and decodes to NaN throughout. A chunk whose scale would
// be subnormal has scale 0 and decodes to 0: its reciprocal would overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dgc {

enum class ValueCoder { float32, float16, bfloat16, int8, int4 };

constexpr size_t kChunk = 256;

size_t value_bytes(ValueCoder coder, size_t k);

// Writes value_bytes() bytes, and to sent[0..k) exactly what decode_values gives for them. sent may be
// values.
void encode_values(ValueCoder coder, const float* values, size_t k, uint8_t* bytes, float* sent);

// values[0..count) = the values at positions first.. of the k coded ones; first + count <= k. Any bytes are
// safe.
void decode_values(ValueCoder coder, size_t k, const uint8_t* bytes, size_t first, size_t count,
                   float* values);

// Empty, or what is wrong: a scale that is negative or infinite, an unused nibble that is not 0.
std::string check_values(ValueCoder coder, size_t k, const uint8_t* bytes);

}  // namespace dgc
