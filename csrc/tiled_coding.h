// What the quantisers of quantisers.h have in common: a header of float32 numbers that are found by looking
// at all values, then small codes, found tile by tile: while a tile is in the first-level cache it is
// quantised, packed, and restored into `sent` from the header and its codes as decoding does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "value_coding.h"

namespace dgc {

// Small, so that fetching from memory what comes next goes on beside the computation. A multiple of 64, so
// that codes of a tile are whole bytes whatever their width, and of 5 for trits.
constexpr size_t kCodingTile = 320;

inline float header_float(const uint8_t* bytes, size_t index) {
  float x;
  std::memcpy(&x, bytes + index * sizeof x, sizeof x);
  return x;
}

inline void set_header_float(uint8_t* bytes, size_t index, float x) {
  std::memcpy(bytes + index * sizeof x, &x, sizeof x);
}

// A scale of the value x >= 0 for the header: NaN if it is not finite, 0 if it is subnormal, else the nearest
// float32, at most the largest one.
float header_scale(double x);

// Empty if header float `index` is such a scale (or, if `negative`, one with its sign changed), else what is
// wrong.
std::string check_scale(const uint8_t* bytes, size_t index, bool negative = false);

class TiledCoding : public ValueCoding {
 public:
  void encode(const float* values, size_t k, Key key, int threads, uint8_t* bytes, float* sent) const final;

 protected:
  // Where the header has numbers for each group of so many values in a row: their number. Else 0.
  virtual size_t group_size() const { return 0; }

  // What belongs to this group in the header; values: those of the group, `count` of them.
  virtual void write_group(const float* values, size_t count, size_t k, size_t group, int threads,
                           uint8_t* bytes) const;

  // The whole header. By default that of every group, if there are any.
  virtual void write_header(const float* values, size_t k, int threads, uint8_t* bytes) const;

  // Codes and sent[0..count) of values[0..count), the tile that begins at position `first`; the header is
  // written.
  virtual void encode_tile(const float* values, size_t k, size_t first, size_t count, Key key, uint8_t* bytes,
                           float* sent) const = 0;

 private:
  void encode_range(const float* values, size_t k, size_t begin, size_t end, Key key, bool with_groups,
                    uint8_t* bytes, float* sent) const;
};

// Codes of `width` bits each after the header.
class PackedCoding : public TiledCoding {
 public:
  explicit PackedCoding(unsigned width) : width_(width) {}

  size_t nbytes(size_t k) const final;
  void decode(size_t k, const uint8_t* bytes, size_t first, size_t count, float* values) const final;
  std::string check(size_t k, const uint8_t* bytes) const final;

 protected:
  void encode_tile(const float* values, size_t k, size_t first, size_t count, Key key, uint8_t* bytes,
                   float* sent) const final;

  virtual size_t header_floats(size_t k) const = 0;

  // codes[0..count) of values[0..count), which are those of positions first..; count <= kCodingTile.
  virtual void quantise(const float* values, size_t k, const uint8_t* header, size_t first, size_t count,
                        Key key, uint8_t* codes) const = 0;

  // The reverse: values[0..count) of codes[0..count), those of positions first..
  virtual void restore(const uint8_t* codes, size_t k, const uint8_t* header, size_t first, size_t count,
                       float* values) const = 0;

  virtual std::string check_header(size_t k, const uint8_t* header) const = 0;

  virtual std::string check_codes(size_t, const uint8_t*) const { return {}; }

  unsigned width() const { return width_; }

 private:
  size_t header_bytes(size_t k) const { return header_floats(k) * sizeof(float); }

  unsigned width_;
};

}  // namespace dgc
