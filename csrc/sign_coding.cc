#include <algorithm>
#include <cstring>
#include <limits>

#include "half.h"
#include "instruction_sets.h"
#include "norms.h"
#include "quantisers.h"
#include "sign_sums.h"
#include "tiled_coding.h"

namespace dgc {
namespace {

DGC_INLINE void codes_of_signs(const float* __restrict values, size_t count, uint8_t* __restrict codes) {
  for (size_t i = 0; i < count; ++i) codes[i] = values[i] >= 0.0f ? 1 : 0;
}

DGC_INLINE float one_of(uint8_t code, float above, float below) {
  return bits_float(select(code != 0, float_bits(above), float_bits(below)));
}

DGC_INLINE void one_of_two(const uint8_t* __restrict codes, size_t count, float above, float below,
                           float* __restrict values) {
  for (size_t i = 0; i < count; ++i) values[i] = one_of(codes[i], above, below);
}

// above and below: `count` float32 each, not aligned.
DGC_INLINE void one_of_each_two(const uint8_t* __restrict codes, size_t count,
                                const uint8_t* __restrict above, const uint8_t* __restrict below,
                                float* __restrict values) {
  for (size_t i = 0; i < count; ++i)
    values[i] = one_of(codes[i], header_float(above, i), header_float(below, i));
}

struct SignKernels {
  const char* name;
  void (*codes)(const float* values, size_t count, uint8_t* codes);
  void (*choose)(const uint8_t* codes, size_t count, float above, float below, float* values);
  void (*choose_each)(const uint8_t* codes, size_t count, const uint8_t* above, const uint8_t* below,
                      float* values);
};

#define DGC_DEFINE_SIGNS(SET, TARGET)                                                                        \
  namespace SET {                                                                                            \
  TARGET void codes(const float* values, size_t count, uint8_t* out) { codes_of_signs(values, count, out); } \
  TARGET void choose(const uint8_t* in, size_t count, float above, float below, float* values) {             \
    one_of_two(in, count, above, below, values);                                                             \
  }                                                                                                          \
  TARGET void choose_each(const uint8_t* in, size_t count, const uint8_t* above, const uint8_t* below,       \
                          float* values) {                                                                   \
    one_of_each_two(in, count, above, below, values);                                                        \
  }                                                                                                          \
  const SignKernels table = {#SET, codes, choose, choose_each};                                              \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_SIGNS)

const SignKernels& sign_kernels() { return chosen<SignKernels>(DGC_TABLES); }

class SignCoding : public PackedCoding {
 public:
  SignCoding() : PackedCoding(1) {}

 protected:
  void quantise(const float* values, size_t, const uint8_t*, size_t, size_t count, Key,
                uint8_t* codes) const override {
    sign_kernels().codes(values, count, codes);
  }
};

class OneScale : public SignCoding {
 protected:
  size_t header_floats(size_t) const override { return 1; }

  void restore(const uint8_t* codes, size_t, const uint8_t* header, size_t, size_t count,
               float* values) const override {
    const float scale = header_float(header, 0);
    sign_kernels().choose(codes, count, scale, -scale, values);
  }

  std::string check_header(size_t, const uint8_t* header) const override { return check_scale(header, 0); }
};

class Sign : public OneScale {
 protected:
  void write_header(const float* values, size_t k, int threads, uint8_t* bytes) const override {
    const bool finite = magnitude(max_magnitude(values, Scalar::float32, k, threads)) < kInfinityBits;
    set_header_float(bytes, 0, finite ? 1.0f : std::numeric_limits<float>::quiet_NaN());
  }

  std::string check_header(size_t, const uint8_t* header) const override {
    const float scale = header_float(header, 0);
    if (scale == 1.0f || scale != scale) return {};
    return "the header is " + std::to_string(scale) + ", allowed: 1 or NaN";
  }
};

class MeanSign : public OneScale {
 protected:
  void write_header(const float* values, size_t k, int threads, uint8_t* bytes) const override {
    const double mean = sum_signs(values, k, threads).magnitudes() / static_cast<double>(k);
    set_header_float(bytes, 0, header_scale(mean));
  }
};

// Two numbers per group: those for values >= 0 of all groups, then those for values < 0.
class OneBit : public SignCoding {
 public:
  explicit OneBit(size_t number) : number_(number) {}

 protected:
  size_t number() const { return number_; }

  virtual size_t groups(size_t k) const = 0;

  size_t header_floats(size_t k) const override { return 2 * groups(k); }

  void write_means(const SignSums& sums, size_t size, size_t k, size_t group, uint8_t* bytes) const {
    float above = 0.0f;
    float below = 0.0f;
    if (size > sums.negatives)
      above = header_scale(sums.positive / static_cast<double>(size - sums.negatives));
    // A sum that is NaN may be all that is left of the negative values.
    if (sums.negative != 0.0) {
      below = -header_scale(-sums.negative / static_cast<double>(std::max<uint64_t>(1, sums.negatives)));
    }
    if (above != above || below != below) above = below = std::numeric_limits<float>::quiet_NaN();
    set_header_float(bytes, group, above);
    set_header_float(bytes, groups(k) + group, below);
  }

  std::string check_header(size_t k, const uint8_t* header) const override {
    for (size_t i = 0; i < header_floats(k); ++i) {
      const std::string wrong = check_scale(header, i, i >= groups(k));
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

 private:
  size_t number_;
};

class OneBitRows : public OneBit {
 public:
  using OneBit::OneBit;

 protected:
  size_t groups(size_t k) const override { return (k + number() - 1) / number(); }

  size_t group_size() const override { return number(); }

  void write_group(const float* values, size_t count, size_t k, size_t group, int threads,
                   uint8_t* bytes) const override {
    write_means(sum_signs(values, count, threads), count, k, group, bytes);
  }

  void restore(const uint8_t* codes, size_t k, const uint8_t* header, size_t first, size_t count,
               float* values) const override {
    const SignKernels& kernels = sign_kernels();
    const uint8_t* below = header + groups(k) * sizeof(float);
    for (size_t i = 0; i < count;) {
      const size_t group = (first + i) / number();
      const size_t length = std::min(count - i, (group + 1) * number() - (first + i));
      kernels.choose(codes + i, length, header_float(header, group), header_float(below, group), values + i);
      i += length;
    }
  }
};

class OneBitColumns : public OneBit {
 public:
  using OneBit::OneBit;

 protected:
  size_t groups(size_t k) const override { return std::min(k, number()); }

  void write_header(const float* values, size_t k, int threads, uint8_t* bytes) const override {
    const size_t columns = groups(k);
    std::vector<SignSums> sums(columns);
    sum_column_signs(values, k, columns, threads, sums.data());
    for (size_t c = 0; c < columns; ++c) write_means(sums[c], (k - c + columns - 1) / columns, k, c, bytes);
  }

  void restore(const uint8_t* codes, size_t k, const uint8_t* header, size_t first, size_t count,
               float* values) const override {
    const size_t columns = groups(k);
    const uint8_t* above = header;
    const uint8_t* below = header + columns * sizeof(float);
    // Few columns are looked up in tables of several rows.
    constexpr size_t kWidth = 64;
    uint8_t tables[2][2 * kWidth * sizeof(float)];
    size_t width = columns;
    if (columns < kWidth && count >= kWidth) {
      const size_t row = columns * sizeof(float);
      for (width = 0; width < kWidth; width += columns) {
        std::memcpy(tables[0] + width * sizeof(float), above, row);
        std::memcpy(tables[1] + width * sizeof(float), below, row);
      }
      above = tables[0];
      below = tables[1];
    }
    const SignKernels& kernels = sign_kernels();
    size_t column = first % columns;
    for (size_t i = 0; i < count;) {
      const size_t length = std::min(count - i, width - column);
      const size_t offset = column * sizeof(float);
      kernels.choose_each(codes + i, length, above + offset, below + offset, values + i);
      i += length;
      column = (column + length) % columns;
    }
  }
};

size_t positive(const char* name, uint32_t number) {
  if (number == 0) refuse_number(name, number, "at least 1");
  return number;
}

}  // namespace

std::shared_ptr<const ValueCoding> make_sign(const CoderNumbers&) { return std::make_shared<Sign>(); }

std::shared_ptr<const ValueCoding> make_meansign(const CoderNumbers&) { return std::make_shared<MeanSign>(); }

std::shared_ptr<const ValueCoding> make_onebit(const CoderNumbers& numbers) {
  return std::make_shared<OneBitRows>(positive("G of onebit:G", numbers[0]));
}

std::shared_ptr<const ValueCoding> make_onebitcolumns(const CoderNumbers& numbers) {
  return std::make_shared<OneBitColumns>(positive("C of onebitcolumns:C", numbers[0]));
}

}  // namespace dgc
