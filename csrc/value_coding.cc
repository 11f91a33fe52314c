#include "value_coding.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "kernels.h"
#include "parallel.h"
#include "quantisers.h"

namespace dgc {
namespace {

constexpr size_t kGrain = 1 << 16;  // values per thread at least

class Floats : public ValueCoding {
 public:
  size_t nbytes(size_t k) const override { return 4 * k; }

  void encode(const float* values, size_t k, Key, int, uint8_t* bytes, float* sent) const override {
    std::memcpy(bytes, values, 4 * k);
    if (sent && sent != values) std::memcpy(sent, values, 4 * k);
  }

  void decode(size_t, const uint8_t* bytes, size_t first, size_t count, float* values) const override {
    std::memcpy(values, bytes + 4 * first, 4 * count);
  }

  std::string check(size_t, const uint8_t*) const override { return {}; }
};

// float16 and bfloat16.
template <void (*Kernels::*kNarrow)(const float*, void*, size_t),
          void (*Kernels::*kWiden)(const void*, float*, size_t)>
class Halves : public ValueCoding {
 public:
  size_t nbytes(size_t k) const override { return 2 * k; }

  void encode(const float* values, size_t k, Key, int threads, uint8_t* bytes, float* sent) const override {
    const Kernels& set = kernels();
    const std::vector<Range> ranges = split(k, threads, kGrain);
    run_parallel(ranges.size(), [&](size_t r) {
      for (size_t first = ranges[r].begin; first < ranges[r].end; first += kTile) {
        const size_t count = std::min(kTile, ranges[r].end - first);
        (set.*kNarrow)(values + first, bytes + 2 * first, count);
        if (sent) (set.*kWiden)(bytes + 2 * first, sent + first, count);
      }
    });
  }

  void decode(size_t, const uint8_t* bytes, size_t first, size_t count, float* values) const override {
    (kernels().*kWiden)(bytes + 2 * first, values, count);
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
    {"float16", 0, plain<Halves<&Kernels::to_float16, &Kernels::from_float16>>},
    {"bfloat16", 0, plain<Halves<&Kernels::to_bfloat16, &Kernels::from_bfloat16>>},
    {"int8", 0, make_int8},
    {"int4", 0, make_int4},
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
