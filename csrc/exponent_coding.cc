#include <algorithm>
#include <cfloat>
#include <cstring>
#include <limits>

#include "code_packing.h"
#include "half.h"
#include "instruction_sets.h"
#include "norms.h"
#include "quantisers.h"
#include "tiled_coding.h"

namespace dgc {
namespace {

constexpr uint32_t kLargestExponent = 254;
constexpr uint8_t kPoison = 255;
constexpr uint8_t kPowerSign = 8;
constexpr uint8_t kPowerZero = 7;

// The 23 bits of a fraction f, plus 23 random bits, carry into the exponent with probability f. Subnormal
// values have the exponent 0 and no hidden bit: they carry to 2^-126 in proportion to themselves.
DGC_INLINE void codes_of_exponents(const float* __restrict values, size_t count, Key key, uint32_t first,
                                   uint8_t* __restrict negative, uint8_t* __restrict exponents) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(values[i]);
    const uint32_t absolute = bits & 0x7fffffffu;
    const uint32_t carried = (absolute + (random_bits(key, first + static_cast<uint32_t>(i)) >> 9)) >> 23;
    const uint32_t exponent = carried < kLargestExponent ? carried : kLargestExponent;
    const bool finite = static_cast<int32_t>(absolute) < kInfinityBits;
    exponents[i] = static_cast<uint8_t>(select(finite, exponent, kPoison));
    negative[i] = static_cast<uint8_t>(bits >> 31);
  }
}

DGC_INLINE void values_of_exponents(const uint8_t* __restrict negative, const uint8_t* __restrict exponents,
                                    size_t count, float* __restrict values) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t exponent = exponents[i];
    const uint32_t nan = select(exponent == kPoison, 0x00400000u, 0u);
    values[i] = bits_float(static_cast<uint32_t>(negative[i]) << 31 | exponent << 23 | nan);
  }
}

// scale_exponent: of the largest magnitude, as stored. Adding half of the implicit one's weight to the
// fraction carries into the exponent from 1.5 on.
DGC_INLINE void codes_of_powers(const float* __restrict values, size_t count, int32_t scale_exponent,
                                uint8_t* __restrict codes) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(values[i]);
    const int32_t exponent = static_cast<int32_t>(((bits & 0x7fffffffu) + 0x00400000u) >> 23);
    int32_t distance = scale_exponent - exponent;
    distance = distance > 0 ? distance : 0;
    const uint32_t code = static_cast<uint32_t>(distance) | (bits >> 31) << 3;
    codes[i] = static_cast<uint8_t>(select(distance < kPowerZero, code, kPowerZero));
  }
}

DGC_INLINE void values_of_powers(const uint8_t* __restrict codes, size_t count, float scale,
                                 float* __restrict values) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t distance = codes[i] & 7u;
    const uint32_t sign = static_cast<uint32_t>(codes[i] & kPowerSign) << 28;
    const uint32_t power = select(distance == kPowerZero, 0u, (127u - distance) << 23);
    values[i] = scale * bits_float(sign | power);
  }
}

struct ExponentKernels {
  const char* name;
  void (*natural_codes)(const float* values, size_t count, Key key, uint32_t first, uint8_t* negative,
                        uint8_t* exponents);
  void (*natural_values)(const uint8_t* negative, const uint8_t* exponents, size_t count, float* values);
  void (*power_codes)(const float* values, size_t count, int32_t scale_exponent, uint8_t* codes);
  void (*power_values)(const uint8_t* codes, size_t count, float scale, float* values);
};

#define DGC_DEFINE_EXPONENTS(SET, TARGET)                                                                  \
  namespace SET {                                                                                          \
  TARGET void natural_codes(const float* values, size_t count, Key key, uint32_t first, uint8_t* negative, \
                            uint8_t* exponents) {                                                          \
    codes_of_exponents(values, count, key, first, negative, exponents);                                    \
  }                                                                                                        \
  TARGET void natural_values(const uint8_t* negative, const uint8_t* exponents, size_t count,              \
                             float* values) {                                                              \
    values_of_exponents(negative, exponents, count, values);                                               \
  }                                                                                                        \
  TARGET void power_codes(const float* values, size_t count, int32_t scale_exponent, uint8_t* codes) {     \
    codes_of_powers(values, count, scale_exponent, codes);                                                 \
  }                                                                                                        \
  TARGET void power_values(const uint8_t* codes, size_t count, float scale, float* values) {               \
    values_of_powers(codes, count, scale, values);                                                         \
  }                                                                                                        \
  const ExponentKernels table = {#SET, natural_codes, natural_values, power_codes, power_values};          \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_EXPONENTS)

const ExponentKernels& exponent_kernels() { return chosen<ExponentKernels>(DGC_TABLES); }

class Natural : public TiledCoding {
 public:
  size_t nbytes(size_t k) const override { return packed_bytes(k, 1) + k; }

  void decode(size_t k, const uint8_t* bytes, size_t first, size_t count, float* values) const override {
    const ExponentKernels& kernels = exponent_kernels();
    const uint8_t* exponents = bytes + packed_bytes(k, 1);
    uint8_t negative[kCodingTile];
    while (count > 0) {
      const size_t length = std::min(count, kCodingTile);
      unpack_codes(bytes, first, length, 1, negative);
      kernels.natural_values(negative, exponents + first, length, values);
      first += length;
      count -= length;
      values += length;
    }
  }

  std::string check(size_t k, const uint8_t* bytes) const override {
    return unused_bits_are_zero(bytes, k, 1) ? "" : "the unused bits of the last byte of signs are not 0";
  }

 protected:
  void encode_tile(const float* values, size_t k, size_t first, size_t count, Key key, uint8_t* bytes,
                   float* sent) const override {
    const ExponentKernels& kernels = exponent_kernels();
    uint8_t* exponents = bytes + packed_bytes(k, 1) + first;
    uint8_t negative[kCodingTile];
    kernels.natural_codes(values, count, key, static_cast<uint32_t>(first), negative, exponents);
    pack_codes(negative, count, 1, bytes + packed_bytes(first, 1));
    kernels.natural_values(negative, exponents, count, sent);
  }
};

class Power4 : public PackedCoding {
 public:
  Power4() : PackedCoding(4) {}

 protected:
  size_t header_floats(size_t) const override { return 1; }

  void write_header(const float* values, size_t k, int threads, uint8_t* bytes) const override {
    const float largest = max_magnitude(values, Scalar::float32, k, threads);
    float scale = header_scale(static_cast<double>(largest));
    if (scale > 0.0f) scale = bits_float(float_bits(scale) & static_cast<uint32_t>(kInfinityBits));
    set_header_float(bytes, 0, scale);
  }

  void quantise(const float* values, size_t, const uint8_t* header, size_t, size_t count, Key,
                uint8_t* codes) const override {
    const float scale = header_float(header, 0);
    if (scale > 0.0f) {
      exponent_kernels().power_codes(values, count, static_cast<int32_t>(float_bits(scale) >> 23), codes);
    } else {
      std::memset(codes, kPowerZero, count);
    }
  }

  void restore(const uint8_t* codes, size_t, const uint8_t* header, size_t, size_t count,
               float* values) const override {
    exponent_kernels().power_values(codes, count, header_float(header, 0), values);
  }

  std::string check_header(size_t, const uint8_t* header) const override {
    const std::string wrong = check_scale(header, 0);
    const float scale = header_float(header, 0);
    if (!wrong.empty() || scale != scale || (float_bits(scale) & 0x007fffffu) == 0) return wrong;
    return "the header is " + std::to_string(scale) + ", allowed: powers of two";
  }

  std::string check_codes(size_t k, const uint8_t* codes) const override {
    constexpr unsigned kNegativeZero = kPowerSign | kPowerZero;
    unsigned found = 0;
    for (size_t j = 0; j < packed_bytes(k, 4); ++j) {
      found |= static_cast<unsigned>((codes[j] & 0xfu) == kNegativeZero || codes[j] >> 4 == kNegativeZero);
    }
    return found ? "a code is 15, the zero with a sign" : "";
  }
};

}  // namespace

std::shared_ptr<const ValueCoding> make_natural(const CoderNumbers&) { return std::make_shared<Natural>(); }

std::shared_ptr<const ValueCoding> make_power4(const CoderNumbers&) { return std::make_shared<Power4>(); }

}  // namespace dgc
