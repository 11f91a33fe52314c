#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "code_packing.h"
#include "half.h"
#include "instruction_sets.h"
#include "quantisers.h"
#include "selector_kernels.h"
#include "sign_sums.h"
#include "tiled_coding.h"

namespace dgc {
namespace {

constexpr size_t kHeaderBytes = 2 * sizeof(float);

DGC_INLINE void codes_of_signs(const float* __restrict values, size_t count, uint8_t* __restrict codes) {
  for (size_t i = 0; i < count; ++i) {
    codes[i] = static_cast<uint8_t>((values[i] > 0.0f ? 1 : 0) + (values[i] < 0.0f ? 2 : 0));
  }
}

DGC_INLINE void one_of_three(const uint8_t* __restrict codes, size_t count, float zero, float above,
                             float below, float* __restrict values) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = select(codes[i] == 1, float_bits(above), float_bits(zero));
    values[i] = bits_float(select(codes[i] == 2, float_bits(below), bits));
  }
}

struct TernaryKernels {
  const char* name;
  void (*codes)(const float* values, size_t count, uint8_t* codes);
  void (*choose)(const uint8_t* codes, size_t count, float zero, float above, float below, float* values);
};

#define DGC_DEFINE_TERNARY(SET, TARGET)                                                                      \
  namespace SET {                                                                                            \
  TARGET void codes(const float* values, size_t count, uint8_t* out) { codes_of_signs(values, count, out); } \
  TARGET void choose(const uint8_t* in, size_t count, float zero, float above, float below, float* values) { \
    one_of_three(in, count, zero, above, below, values);                                                     \
  }                                                                                                          \
  const TernaryKernels table = {#SET, codes, choose};                                                        \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_TERNARY)

const TernaryKernels& ternary_kernels() { return chosen<TernaryKernels>(DGC_TABLES); }

class Ternary : public TiledCoding {
 public:
  size_t nbytes(size_t k) const override { return kHeaderBytes + packed_trits(k); }

  void decode(size_t, const uint8_t* bytes, size_t first, size_t count, float* values) const override {
    uint8_t codes[kCodingTile];
    while (count > 0) {
      const size_t length = std::min(count, kCodingTile);
      unpack_trits(bytes + kHeaderBytes, first, length, codes);
      restore(codes, bytes, length, values);
      first += length;
      count -= length;
      values += length;
    }
  }

  std::string check(size_t k, const uint8_t* bytes) const override {
    for (size_t i = 0; i < 2; ++i) {
      const std::string wrong = check_scale(bytes, i);
      if (!wrong.empty()) return wrong;
    }
    return trits_are_valid(bytes + kHeaderBytes, k) ? ""
                                                    : "a byte is not five trits, or an unused one is not 0";
  }

 protected:
  void write_header(const float* values, size_t k, int threads, uint8_t* bytes) const override {
    const SignSums sums = sum_signs(values, k, threads);
    const auto mean = [](double sum, uint64_t count) {
      return header_scale(sum / static_cast<double>(std::max<uint64_t>(1, count)));
    };
    const float above = mean(sums.positive, sums.positives);
    const float below = mean(-sums.negative, sums.negatives);
    const bool finite = std::isfinite(above) && std::isfinite(below);
    set_header_float(bytes, 0, finite ? above : std::numeric_limits<float>::quiet_NaN());
    set_header_float(bytes, 1, finite ? below : std::numeric_limits<float>::quiet_NaN());
  }

  void encode_tile(const float* values, size_t, size_t first, size_t count, Key, uint8_t* bytes,
                   float* sent) const override {
    uint8_t codes[kCodingTile];
    ternary_kernels().codes(values, count, codes);
    pack_trits(codes, count, bytes + kHeaderBytes + first / kTritsPerByte);
    if (sent) restore(codes, bytes, count, sent);
  }

 private:
  static void restore(const uint8_t* codes, const uint8_t* header, size_t count, float* values) {
    const float above = header_float(header, 0);
    const float below = -header_float(header, 1);
    const bool finite = std::isfinite(above) && std::isfinite(below);
    const float zero = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    ternary_kernels().choose(codes, count, zero, above, below, values);
  }
};

class DrawnTernary : public Ternary {
 public:
  DrawnTernary(float limit, float scale) : limit_(limit), scale_(scale) {}

 protected:
  void write_header(const float*, size_t, int, uint8_t* bytes) const override {
    for (size_t i = 0; i < 2; ++i) set_header_float(bytes, i, header_scale(static_cast<double>(scale_)));
  }

  void encode_tile(const float* values, size_t k, size_t first, size_t count, Key key, uint8_t* bytes,
                   float* sent) const override {
    float drawn[kCodingTile];
    selector_kernels().ternarise(values, count, limit_, scale_, key, static_cast<uint32_t>(first), drawn);
    Ternary::encode_tile(drawn, k, first, count, key, bytes, sent);
  }

 private:
  float limit_;
  float scale_;
};

}  // namespace

std::shared_ptr<const ValueCoding> make_drawn_ternary(float limit, float scale) {
  return std::make_shared<DrawnTernary>(limit, scale);
}

std::shared_ptr<const ValueCoding> make_ternary(const CoderNumbers&) { return std::make_shared<Ternary>(); }

}  // namespace dgc
