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
//
// The other coders are quantisers: see quantisers.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "randomness.h"

namespace dgc {

constexpr size_t kChunk = 256;

// One way of coding values. Immutable.
class ValueCoding {
 public:
  virtual ~ValueCoding() = default;

  virtual size_t nbytes(size_t k) const = 0;

  // Writes nbytes(k) bytes, and to sent[0..k) exactly what decode gives for them. sent may be values. Values
  // that are not finite must be told by decode: at least the first value of their chunk (or, in a coding
  // without chunks, of the whole) decodes to NaN. The result does not depend on `threads`. k >= 1.
  virtual void encode(const float* values, size_t k, Key key, int threads, uint8_t* bytes,
                      float* sent) const = 0;

  // values[0..count) = the values at positions first.. of the k coded ones; first + count <= k. Any bytes are
  // safe.
  virtual void decode(size_t k, const uint8_t* bytes, size_t first, size_t count, float* values) const = 0;

  // Empty, or what is wrong with bytes that encode cannot have written.
  virtual std::string check(size_t k, const uint8_t* bytes) const = 0;
};

// A way of coding values by its name: a family, and for some families numbers after it, as in "qsgd:4:512".
class ValueCoder {
 public:
  // Throws std::invalid_argument naming the value and what is allowed.
  explicit ValueCoder(const std::string& name);

  static const ValueCoder float32;
  static const ValueCoder float16;
  static const ValueCoder bfloat16;
  static const ValueCoder int8;
  static const ValueCoder int4;

  const std::string& name() const { return name_; }
  const ValueCoding& coding() const { return *coding_; }

  friend bool operator==(const ValueCoder& a, const ValueCoder& b) { return a.name_ == b.name_; }
  friend bool operator!=(const ValueCoder& a, const ValueCoder& b) { return !(a == b); }

 private:
  std::string name_;
  std::shared_ptr<const ValueCoding> coding_;
};

inline const ValueCoder ValueCoder::float32("float32");
inline const ValueCoder ValueCoder::float16("float16");
inline const ValueCoder ValueCoder::bfloat16("bfloat16");
inline const ValueCoder ValueCoder::int8("int8");
inline const ValueCoder ValueCoder::int4("int4");

size_t value_bytes(const ValueCoder& coder, size_t k);

// As ValueCoding::encode; k >= 0.
void encode_values(const ValueCoder& coder, const float* values, size_t k, uint8_t* bytes, float* sent,
                   Key key = {}, int threads = 1);

void decode_values(const ValueCoder& coder, size_t k, const uint8_t* bytes, size_t first, size_t count,
                   float* values);

std::string check_values(const ValueCoder& coder, size_t k, const uint8_t* bytes);

}  // namespace dgc
