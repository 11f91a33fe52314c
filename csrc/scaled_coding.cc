#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "quantisers.h"
#include "scaled_values.h"
#include "tiled_coding.h"

namespace dgc {
namespace {

DGC_INLINE void codes_of_multiples(const float* __restrict values, size_t count, float scale, unsigned width,
                                   uint8_t* __restrict codes) {
  const float reciprocal = 1.0f / scale;
  for (size_t i = 0; i < count; ++i) codes[i] = code_of_multiple(values[i], reciprocal, width);
}

DGC_INLINE void values_of_multiples(const uint8_t* __restrict codes, size_t count, float scale,
                                    unsigned width, float* __restrict values) {
  for (size_t i = 0; i < count; ++i) values[i] = value_of_multiple(codes[i], scale, width);
}

struct ScaledKernels {
  const char* name;
  void (*codes)(const float* values, size_t count, float scale, unsigned width, uint8_t* codes);
  void (*values)(const uint8_t* codes, size_t count, float scale, unsigned width, float* values);
};

#define DGC_DEFINE_SCALED(SET, TARGET)                                                              \
  namespace SET {                                                                                   \
  TARGET void codes(const float* values, size_t count, float scale, unsigned width, uint8_t* out) { \
    codes_of_multiples(values, count, scale, width, out);                                           \
  }                                                                                                 \
  TARGET void values(const uint8_t* codes, size_t count, float scale, unsigned width, float* out) { \
    values_of_multiples(codes, count, scale, width, out);                                           \
  }                                                                                                 \
  const ScaledKernels table = {#SET, codes, values};                                                \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_SCALED)

const ScaledKernels& scaled_kernels() { return chosen<ScaledKernels>(DGC_TABLES); }

// int8 and int4, see value_coding.h: the scales of all chunks are the header.
class Scaled : public PackedCoding {
 public:
  using PackedCoding::PackedCoding;

 protected:
  size_t header_floats(size_t k) const override { return (k + kChunk - 1) / kChunk; }

  size_t group_size() const override { return kChunk; }

  void write_group(const float* values, size_t count, size_t, size_t chunk, int,
                   uint8_t* bytes) const override {
    set_header_float(bytes, chunk, scale_of(kernels().max_magnitude(values, count), width()));
  }

  void quantise(const float* values, size_t, const uint8_t* header, size_t first, size_t count, Key,
                uint8_t* codes) const override {
    by_chunk(header, first, count, [&](size_t i, size_t length, float scale) {
      // A scale that is 0 or NaN says all there is to say about its values.
      if (scale > 0.0f) {
        scaled_kernels().codes(values + i, length, scale, width(), codes + i);
      } else {
        std::memset(codes + i, 0, length);
      }
    });
  }

  void restore(const uint8_t* codes, size_t, const uint8_t* header, size_t first, size_t count,
               float* values) const override {
    by_chunk(header, first, count, [&](size_t i, size_t length, float scale) {
      scaled_kernels().values(codes + i, length, scale, width(), values + i);
    });
  }

  std::string check_header(size_t k, const uint8_t* header) const override {
    for (size_t chunk = 0; chunk < header_floats(k); ++chunk) {
      const float scale = header_float(header, chunk);
      if (std::isinf(scale) || scale < 0.0f) {
        return "scale " + std::to_string(scale) + " of chunk " + std::to_string(chunk) +
               ", allowed: NaN or finite and not negative";
      }
    }
    return {};
  }

 private:
  // work(i, length, scale) for the parts of positions first.. that lie in one chunk each.
  template <class Work>
  static void by_chunk(const uint8_t* header, size_t first, size_t count, const Work& work) {
    for (size_t i = 0; i < count;) {
      const size_t chunk = (first + i) / kChunk;
      const size_t length = std::min(count - i, (chunk + 1) * kChunk - (first + i));
      work(i, length, header_float(header, chunk));
      i += length;
    }
  }
};

}  // namespace

std::shared_ptr<const ValueCoding> make_int8(const CoderNumbers&) { return std::make_shared<Scaled>(8); }

std::shared_ptr<const ValueCoding> make_int4(const CoderNumbers&) { return std::make_shared<Scaled>(4); }

}  // namespace dgc
