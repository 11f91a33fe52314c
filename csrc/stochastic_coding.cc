#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "half.h"
#include "instruction_sets.h"
#include "norms.h"
#include "quantisers.h"
#include "tiled_coding.h"

namespace dgc {
namespace {

// t >= 0 rounded to a neighbouring integer such that the expectation is t.
DGC_INLINE uint32_t round_at_random(float t, Key key, uint32_t index) {
  const int32_t whole = static_cast<int32_t>(t);
  const float part = t - static_cast<float>(whole);
  return static_cast<uint32_t>(whole) + (random_uniform(key, index) < part ? 1u : 0u);
}

// Factors of numerator / scale such that neither the second nor a product with the first, of values up to
// `scale` and not much below it, overflows or is subnormal, as the reciprocal of a large scale is. The
// product of `scale` with both is not below the numerator, so that the largest values round to it for
// certain. scale >= FLT_MIN.
struct Ratio {
  float power;
  float rest;
};

Ratio ratio(float numerator, float scale) {
  const float power = scale < 1.0f ? 0x1p64f : 0x1p-64f;
  float rest = numerator / (scale * power);
  while (scale * power * rest < numerator) rest = std::nextafter(rest, FLT_MAX);
  return {power, rest};
}

// norm >= FLT_MIN and not below any magnitude.
DGC_INLINE void codes_of_levels(const float* __restrict values, size_t count, float norm, unsigned width,
                                Key key, uint32_t first, uint8_t* __restrict codes) {
  const float levels = static_cast<float>((1u << (width - 1)) - 1u);
  const Ratio scale = ratio(levels, norm);
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(values[i]);
    float t = bits_float(bits & 0x7fffffffu) * scale.power * scale.rest;
    t = t < levels ? t : levels;
    const uint32_t level = round_at_random(t, key, first + static_cast<uint32_t>(i));
    codes[i] = static_cast<uint8_t>(level | (bits >> 31) << (width - 1));
  }
}

DGC_INLINE void values_of_levels(const uint8_t* __restrict codes, size_t count, float norm, unsigned width,
                                 float* __restrict values) {
  const int32_t levels = (1 << (width - 1)) - 1;
  for (size_t i = 0; i < count; ++i) {
    const int32_t level = codes[i] & levels;
    const int32_t negative = -(codes[i] >> (width - 1));
    // The fraction first: at level / levels = 1 the largest norm must not overflow.
    values[i] = norm * (static_cast<float>((level ^ negative) - negative) / static_cast<float>(levels));
  }
}

// largest >= FLT_MIN and not below any magnitude.
DGC_INLINE void codes_of_steps(const float* __restrict values, size_t count, float largest, unsigned width,
                               Key key, uint32_t first, uint8_t* __restrict codes) {
  const float half = static_cast<float>((1u << width) - 1u) * 0.5f;
  const Ratio scale = ratio(half, largest);
  for (size_t i = 0; i < count; ++i) {
    float t = values[i] * scale.power * scale.rest + half;
    t = t > 0.0f ? t : 0.0f;
    t = t < 2.0f * half ? t : 2.0f * half;
    codes[i] = static_cast<uint8_t>(round_at_random(t, key, first + static_cast<uint32_t>(i)));
  }
}

DGC_INLINE void values_of_steps(const uint8_t* __restrict codes, size_t count, float largest, unsigned width,
                                float* __restrict values) {
  const int32_t steps = (1 << width) - 1;
  for (size_t i = 0; i < count; ++i) {
    // 2 (c / L - 1/2) = (2 c - L) / L. Adding 0 turns -0 into 0.
    values[i] = largest * (static_cast<float>(2 * codes[i] - steps) / static_cast<float>(steps)) + 0.0f;
  }
}

struct StochasticKernels {
  using Codes = void (*)(const float* values, size_t count, float scale, unsigned width, Key key,
                         uint32_t first, uint8_t* codes);
  using Values = void (*)(const uint8_t* codes, size_t count, float scale, unsigned width, float* values);
  const char* name;
  Codes level_codes;
  Values level_values;
  Codes step_codes;
  Values step_values;
};

#define DGC_DEFINE_CODES(NAME, FUNCTION, TARGET)                                                            \
  TARGET void NAME(const float* values, size_t count, float scale, unsigned width, Key key, uint32_t first, \
                   uint8_t* codes) {                                                                        \
    FUNCTION(values, count, scale, width, key, first, codes);                                               \
  }
#define DGC_DEFINE_VALUES(NAME, FUNCTION, TARGET)                                                    \
  TARGET void NAME(const uint8_t* codes, size_t count, float scale, unsigned width, float* values) { \
    FUNCTION(codes, count, scale, width, values);                                                    \
  }
#define DGC_DEFINE_STOCHASTIC(SET, TARGET)                                                    \
  namespace SET {                                                                             \
  DGC_DEFINE_CODES(level_codes, codes_of_levels, TARGET)                                      \
  DGC_DEFINE_VALUES(level_values, values_of_levels, TARGET)                                   \
  DGC_DEFINE_CODES(step_codes, codes_of_steps, TARGET)                                        \
  DGC_DEFINE_VALUES(step_values, values_of_steps, TARGET)                                     \
  const StochasticKernels table = {#SET, level_codes, level_values, step_codes, step_values}; \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_STOCHASTIC)

const StochasticKernels& stochastic_kernels() { return chosen<StochasticKernels>(DGC_TABLES); }

// A scale that is 0 or NaN says all there is to say about its values.
void codes_or_zero(StochasticKernels::Codes codes_of, const float* values, size_t count, float scale,
                   unsigned width, Key key, size_t first, uint8_t* codes) {
  if (scale > 0.0f) {
    codes_of(values, count, scale, width, key, static_cast<uint32_t>(first), codes);
  } else {
    std::memset(codes, 0, count);
  }
}

class Qsgd : public PackedCoding {
 public:
  Qsgd(unsigned width, size_t bucket) : PackedCoding(width), bucket_(bucket) {}

 protected:
  size_t header_floats(size_t k) const override { return (k + bucket_ - 1) / bucket_; }

  size_t group_size() const override { return bucket_; }

  void write_group(const float* values, size_t count, size_t, size_t bucket, int threads,
                   uint8_t* bytes) const override {
    constexpr size_t kShort = 1 << 15;
    const double squares = count <= kShort ? kernels().sum_squares(values, count)
                                           : sum_squares(values, Scalar::float32, count, threads);
    set_header_float(bytes, bucket, header_scale(std::sqrt(squares)));
  }

  void quantise(const float* values, size_t, const uint8_t* header, size_t first, size_t count, Key key,
                uint8_t* codes) const override {
    const auto codes_of = stochastic_kernels().level_codes;
    for (size_t i = 0; i < count;) {
      const size_t bucket = (first + i) / bucket_;
      const size_t length = std::min(count - i, (bucket + 1) * bucket_ - (first + i));
      codes_or_zero(codes_of, values + i, length, header_float(header, bucket), width(), key, first + i,
                    codes + i);
      i += length;
    }
  }

  void restore(const uint8_t* codes, size_t, const uint8_t* header, size_t first, size_t count,
               float* values) const override {
    const auto values_of = stochastic_kernels().level_values;
    for (size_t i = 0; i < count;) {
      const size_t bucket = (first + i) / bucket_;
      const size_t length = std::min(count - i, (bucket + 1) * bucket_ - (first + i));
      values_of(codes + i, length, header_float(header, bucket), width(), values + i);
      i += length;
    }
  }

  std::string check_header(size_t k, const uint8_t* header) const override {
    for (size_t i = 0; i < header_floats(k); ++i) {
      const std::string wrong = check_scale(header, i);
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

 private:
  size_t bucket_;
};

class DoReFa : public PackedCoding {
 public:
  using PackedCoding::PackedCoding;

 protected:
  size_t header_floats(size_t) const override { return 1; }

  void write_header(const float* values, size_t k, int threads, uint8_t* bytes) const override {
    const float largest = max_magnitude(values, Scalar::float32, k, threads);
    set_header_float(bytes, 0, header_scale(static_cast<double>(largest)));
  }

  void quantise(const float* values, size_t, const uint8_t* header, size_t first, size_t count, Key key,
                uint8_t* codes) const override {
    codes_or_zero(stochastic_kernels().step_codes, values, count, header_float(header, 0), width(), key,
                  first, codes);
  }

  void restore(const uint8_t* codes, size_t, const uint8_t* header, size_t, size_t count,
               float* values) const override {
    stochastic_kernels().step_values(codes, count, header_float(header, 0), width(), values);
  }

  std::string check_header(size_t, const uint8_t* header) const override { return check_scale(header, 0); }
};

}  // namespace

std::shared_ptr<const ValueCoding> make_qsgd(const CoderNumbers& numbers) {
  const uint32_t width = numbers[0];
  if (width != 2 && width != 4 && width != 8) refuse_number("B of qsgd:B:S", width, "2, 4, 8");
  if (numbers[1] == 0) refuse_number("S of qsgd:B:S", numbers[1], "at least 1");
  return std::make_shared<Qsgd>(width, numbers[1]);
}

std::shared_ptr<const ValueCoding> make_dorefa(const CoderNumbers& numbers) {
  const uint32_t width = numbers[0];
  if (width < 1 || width > 8) refuse_number("B of dorefa:B", width, "1 to 8");
  return std::make_shared<DoReFa>(width);
}

}  // namespace dgc
