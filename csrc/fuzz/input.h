// How a fuzzer's bytes are read: a header chooses a codec, the rest is a payload and what comes after it. The
// only place where the fuzz target and its seeds make codecs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "codec.h"
#include "kinds.h"

namespace dgc::fuzz {

constexpr uint32_t kFewElements = 1 << 11;   // enough for every codec's rules, and quickly decoded
constexpr uint32_t kMostElements = 1 << 17;  // more than a run of runlength16 spans, or one thread takes

enum Kind : uint8_t { kCoordinates, kRandom, kSketch, kLowRank, kRanges, kText, kKinds };

enum Flag : uint8_t {
  kLarge = 1,   // up to kMostElements
  kVote = 2,    // coordinates
  kShared = 4,  // ternarise
  kExact = 8,   // numbers as they are, so that they may have to be refused; otherwise brought into range
};

struct Header {
  uint32_t n = 0;
  uint32_t k = 0;
  uint16_t a = 0;
  uint16_t b = 0;
  uint8_t kind = 0;
  uint8_t flags = 0;
  uint8_t indices = 0;
  uint8_t values = 0;
  uint8_t selector = 0;
  uint8_t unused[3] = {};
};
static_assert(sizeof(Header) == 20, "a header is its bytes");

constexpr const char* kIndices[] = {"elias-fano", "runlength16", "int32"};
constexpr const char* kSelectors[] = {"largest",   "above",       "proportion", "bins",
                                      "ternarise", "unambiguous", "quantile"};
constexpr const char* kValues[] = {"float32", "float16",  "bfloat16", "int8",          "int4",
                                   "sign",    "meansign", "onebit",   "onebitcolumns", "ternary",
                                   "qsgd",    "dorefa",   "natural",  "power4"};

template <size_t N>
std::string one_of(const char* const (&names)[N], unsigned number) {
  return names[number % N];
}

inline std::string value_coder(const Header& h) {
  std::string name = one_of(kValues, h.values);
  const bool exact = h.flags & kExact;
  if (h.kind % kKinds == kCoordinates && one_of(kSelectors, h.selector) == "ternarise") return "ternary";
  unsigned first = h.a;
  if (name == "qsgd") {
    if (!exact) first = 2u << (first % 3);
    return name + ":" + std::to_string(first) + ":" + std::to_string(h.b);
  }
  if (name == "dorefa" && !exact) first = 1 + first % 8;
  if (name == "dorefa" || name == "onebit" || name == "onebitcolumns") name += ":" + std::to_string(first);
  return name;
}

inline std::string selector(const Header& h, uint32_t n) {
  const std::string name = one_of(kSelectors, h.selector);
  const std::string number = std::to_string(h.a % 64) + "e-1";
  std::string words = " select=" + name;
  if (name == "above") words += " threshold=" + number;
  if (name == "bins") words += " length=" + std::to_string(h.b);
  if (name == "ternarise") words += " clip=" + number + " shared=" + std::to_string((h.flags & kShared) != 0);
  if (name == "unambiguous") words += " alpha=1.5 zeta=0.9 threshold=" + number;
  if (name == "quantile") words += " share=0.1 samples=" + std::to_string(1 + h.b % std::max(1u, n));
  return words;
}

inline std::string description(const Header& h) {
  const bool exact = h.flags & kExact;
  const uint32_t n = h.n % (h.flags & kLarge ? kMostElements : kFewElements);
  const uint32_t k = exact || n == 0 ? h.k : 1 + h.k % n;
  const std::string shape = " n=" + std::to_string(n) + " k=" + std::to_string(k);
  const unsigned rows = 1 + h.a % 99;
  const unsigned columns = 1 + h.b % 99;
  switch (h.kind % kKinds) {
    case kCoordinates:
      return "coordinates" + shape + " indices=" + one_of(kIndices, h.indices) + " values=" + value_coder(h) +
             (h.flags & kVote ? " vote=1" : "") + selector(h, n);
    case kRandom:
      return "random" + shape + " values=" + value_coder(h) + " factor=" + std::to_string(1 + h.selector);
    case kSketch:
      return "sketch" + shape + " rows=" + std::to_string(1 + h.a % 7) +
             " columns=" + std::to_string(1 + h.b % 999);
    case kRanges:
      return "ranges" + shape + " parts=" + std::to_string(exact || n == 0 ? h.b : 1 + h.b % n) +
             " indices=" + one_of(kIndices, h.indices) + " values=" + value_coder(h);
    default:
      const unsigned rank = exact ? h.k % 100 : 1 + h.k % std::min(rows, columns);
      return "lowrank rows=" + std::to_string(rows) + " columns=" + std::to_string(columns) +
             " rank=" + std::to_string(rank);
  }
}

struct Input {
  std::shared_ptr<const Codec> codec;
  // Exactly codec->nbytes(), so that the sanitizer sees any access beyond; missing bytes are 0.
  std::unique_ptr<uint8_t[]> payload;
  std::vector<float> opened;  // any floats
  std::vector<float> values;  // finite, n of them
};

// Up to `count` floats, the last ones 0 where the bytes end.
inline std::vector<float> take_floats(const uint8_t** data, size_t* size, size_t count) {
  std::vector<float> floats(count, 0.0f);
  const size_t taken = std::min(*size, count * sizeof(float));
  if (taken > 0) std::memcpy(floats.data(), *data, taken);
  *data += taken;
  *size -= taken;
  return floats;
}

// Throws std::invalid_argument if there is no such codec.
inline Input read_input(const Header& header, const uint8_t* data, size_t size) {
  Input input;
  input.codec = make_codec(description(header));
  const size_t nbytes = input.codec->nbytes();
  input.payload.reset(new uint8_t[nbytes]());
  const size_t taken = std::min(size, nbytes);
  std::copy_n(data, taken, input.payload.get());
  data += taken;
  size -= taken;
  input.opened = take_floats(&data, &size, input.codec->opening().returned());
  input.values = take_floats(&data, &size, input.codec->n());
  for (float& value : input.values) {
    if (!std::isfinite(value)) value = 0.0f;
  }
  return input;
}

}  // namespace dgc::fuzz
