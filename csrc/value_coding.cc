#include "value_coding.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "half.h"
#include "quantisers.h"

namespace dgc {
namespace {

constexpr int kLargestInt8 = 127;
constexpr int kLargestInt4 = 7;

size_t scale_bytes(size_t k) { return (k + kChunk - 1) / kChunk * sizeof(float); }

float load_float(const uint8_t* bytes) {
  float x;
  std::memcpy(&x, bytes, sizeof x);
  return x;
}

float chunk_scale(const float* values, size_t count, int largest_code) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(values[i]));
  if (largest >= kInfinityBits) return std::numeric_limits<float>::quiet_NaN();
  const float codes = static_cast<float>(largest_code);
  float scale = bits_float(static_cast<uint32_t>(largest)) / codes;
  if (scale < FLT_MIN) return 0.0f;
  if (!std::isfinite(scale * codes)) scale = std::nextafter(scale, 0.0f);
  return scale;
}

// Codes of `count` <= kChunk values as int8.
void quantise(const float* values, size_t count, float scale, int largest_code, int8_t* codes) {
  if (!(scale > 0.0f)) {
    std::memset(codes, 0, count);
    return;
  }
  const float reciprocal = 1.0f / scale;
  const float limit = static_cast<float>(largest_code);
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, and vectorises everywhere.
  constexpr float kRounder = 12582912.0f;
  for (size_t i = 0; i < count; ++i) {
    float x = values[i] * reciprocal;
    x = x > limit ? limit : x;
    x = x < -limit ? -limit : x;
    codes[i] = static_cast<int8_t>(static_cast<int>((x + kRounder) - kRounder));
  }
}

int nibble_value(unsigned nibble) { return static_cast<int>(nibble ^ 8u) - 8; }

// int8 and int4.
template <int kLargest>
class Scaled : public ValueCoding {
 public:
  size_t nbytes(size_t k) const override { return scale_bytes(k) + (kBytes ? k : (k + 1) / 2); }

  void encode(const float* values, size_t k, Key, int, uint8_t* bytes, float* sent) const override {
    uint8_t* out = bytes + scale_bytes(k);
    for (size_t first = 0; first < k; first += kChunk) {
      const size_t count = std::min(kChunk, k - first);
      const float scale = chunk_scale(values + first, count, kLargest);
      std::memcpy(bytes + first / kChunk * sizeof scale, &scale, sizeof scale);
      int8_t codes[kChunk + 1];
      quantise(values + first, count, scale, kLargest, codes);
      for (size_t i = 0; i < count; ++i) sent[first + i] = static_cast<float>(codes[i]) * scale;
      if (kBytes) {
        std::memcpy(out, codes, count);
        out += count;
        continue;
      }
      codes[count] = 0;
      for (size_t i = 0; i < count; i += 2) {
        *out++ = static_cast<uint8_t>((codes[i] & 0xf) | ((codes[i + 1] & 0xf) << 4));
      }
    }
  }

  void decode(size_t k, const uint8_t* bytes, size_t first, size_t count, float* values) const override {
    const uint8_t* codes = bytes + scale_bytes(k);
    for (size_t i = 0; i < count;) {
      const size_t position = first + i;
      const size_t chunk = position / kChunk;
      const size_t end = std::min(count, (chunk + 1) * kChunk - first);
      const float scale = load_float(bytes + chunk * sizeof scale);
      if (kBytes) {
        for (; i < end; ++i) values[i] = static_cast<float>(static_cast<int8_t>(codes[first + i])) * scale;
      } else {
        for (; i < end; ++i) {
          const unsigned byte = codes[(first + i) / 2];
          values[i] = static_cast<float>(nibble_value((byte >> ((first + i) % 2 * 4)) & 0xfu)) * scale;
        }
      }
    }
  }

  std::string check(size_t k, const uint8_t* bytes) const override {
    for (size_t chunk = 0; chunk * kChunk < k; ++chunk) {
      const float scale = load_float(bytes + chunk * sizeof(float));
      if (std::isinf(scale) || scale < 0.0f) {
        return "scale " + std::to_string(scale) + " of chunk " + std::to_string(chunk) +
               ", allowed: NaN or finite and not negative";
      }
    }
    if (!kBytes && k % 2 != 0 && bytes[scale_bytes(k) + k / 2] >> 4 != 0) {
      return "the unused nibble is not 0";
    }
    return {};
  }

 private:
  static constexpr bool kBytes = kLargest > kLargestInt4;
};

class Floats : public ValueCoding {
 public:
  size_t nbytes(size_t k) const override { return 4 * k; }

  void encode(const float* values, size_t k, Key, int, uint8_t* bytes, float* sent) const override {
    std::memcpy(bytes, values, 4 * k);
    if (sent != values) std::memcpy(sent, values, 4 * k);
  }

  void decode(size_t, const uint8_t* bytes, size_t first, size_t count, float* values) const override {
    std::memcpy(values, bytes + 4 * first, 4 * count);
  }

  std::string check(size_t, const uint8_t*) const override { return {}; }
};

template <uint16_t (*kNarrow)(float), float (*kWiden)(uint16_t)>
class Halves : public ValueCoding {
 public:
  size_t nbytes(size_t k) const override { return 2 * k; }

  void encode(const float* values, size_t k, Key, int, uint8_t* bytes, float* sent) const override {
    for (size_t i = 0; i < k; ++i) {
      const uint16_t half = kNarrow(values[i]);
      std::memcpy(bytes + 2 * i, &half, 2);
      sent[i] = kWiden(half);
    }
  }

  void decode(size_t, const uint8_t* bytes, size_t first, size_t count, float* values) const override {
    for (size_t i = 0; i < count; ++i) {
      uint16_t half;
      std::memcpy(&half, bytes + 2 * (first + i), 2);
      values[i] = kWiden(half);
    }
  }

  std::string check(size_t, const uint8_t*) const override { return {}; }
};

struct Family {
  const char* name;
  size_t numbers;  // how many follow the name
  CodingFactory* make;
};

template <class Coding>
std::shared_ptr<const ValueCoding> plain(const CoderNumbers&) {
  return std::make_shared<Coding>();
}

const Family kFamilies[] = {
    {"float32", 0, plain<Floats>},
    {"float16", 0, plain<Halves<float_to_half, half_to_float>>},
    {"bfloat16", 0, plain<Halves<float_to_bfloat16, bfloat16_to_float>>},
    {"int8", 0, plain<Scaled<kLargestInt8>>},
    {"int4", 0, plain<Scaled<kLargestInt4>>},
    {"sign", 0, make_sign},
    {"meansign", 0, make_meansign},
    {"onebit", 1, make_onebit},
    {"onebitcolumns", 1, make_onebitcolumns},
    {"ternary", 0, make_ternary},
    {"qsgd", 2, make_qsgd},
    {"dorefa", 1, make_dorefa},
    {"natural", 0, make_natural},
    {"power4", 0, make_power4},
};

[[noreturn]] void refuse(const std::string& name) {
  std::string allowed;
  for (const Family& family : kFamilies) {
    allowed += (allowed.empty() ? "" : ", ") + std::string(family.name);
    for (size_t i = 0; i < family.numbers; ++i) allowed += ":N";
  }
  throw std::invalid_argument("value coder is '" + name + "'; allowed: " + allowed);
}

// "family:1:2" -> family, {1, 2}.
std::string split_name(const std::string& name, CoderNumbers* numbers) {
  std::istringstream parts(name);
  std::string family;
  std::getline(parts, family, ':');
  for (std::string part; std::getline(parts, part, ':');) {
    const bool digits = !part.empty() && part.size() < 10 &&
                        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) refuse(name);
    numbers->push_back(static_cast<uint32_t>(std::stoul(part)));
  }
  return family;
}

}  // namespace

void refuse_number(const char* name, uint32_t is, const char* allowed) {
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(is) + "; allowed: " + allowed);
}

ValueCoder::ValueCoder(const std::string& name) : name_(name) {
  CoderNumbers numbers;
  const std::string wanted = split_name(name, &numbers);
  for (const Family& family : kFamilies) {
    if (family.name != wanted || family.numbers != numbers.size()) continue;
    coding_ = family.make(numbers);
    return;
  }
  refuse(name);
}

size_t value_bytes(const ValueCoder& coder, size_t k) { return k ? coder.coding().nbytes(k) : 0; }

void encode_values(const ValueCoder& coder, const float* values, size_t k, uint8_t* bytes, float* sent,
                   Key key, int threads) {
  if (k > 0) coder.coding().encode(values, k, key, threads, bytes, sent);
}

void decode_values(const ValueCoder& coder, size_t k, const uint8_t* bytes, size_t first, size_t count,
                   float* values) {
  if (count > 0) coder.coding().decode(k, bytes, first, count, values);
}

std::string check_values(const ValueCoder& coder, size_t k, const uint8_t* bytes) {
  return k ? coder.coding().check(k, bytes) : std::string();
}

}  // namespace dgc
