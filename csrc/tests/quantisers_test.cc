#include "quantisers.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();
constexpr Key kKey{123, 456};

size_t ceil_of(size_t a, size_t b) { return (a + b - 1) / b; }

struct Case {
  const char* name;
  std::function<size_t(size_t)> nbytes;
  size_t group;        // a value that is not finite poisons this many in a row; 0: all
  size_t columns = 1;  // and of these only every so many
};

const Case kCases[] = {
    {"sign", [](size_t k) { return 4 + ceil_of(k, 8); }, 0},
    {"meansign", [](size_t k) { return 4 + ceil_of(k, 8); }, 0},
    {"onebit:1", [](size_t k) { return 8 * k + ceil_of(k, 8); }, 1},
    {"onebit:27", [](size_t k) { return 8 * ceil_of(k, 27) + ceil_of(k, 8); }, 27},
    {"onebit:512", [](size_t k) { return 8 * ceil_of(k, 512) + ceil_of(k, 8); }, 512},
    {"onebit:40000", [](size_t k) { return 8 * ceil_of(k, 40000) + ceil_of(k, 8); }, 40000},
    {"ternary", [](size_t k) { return 8 + ceil_of(k, 5); }, 0},
    {"qsgd:2:512", [](size_t k) { return 4 * ceil_of(k, 512) + ceil_of(k, 4); }, 512},
    {"qsgd:4:100", [](size_t k) { return 4 * ceil_of(k, 100) + ceil_of(k, 2); }, 100},
    {"qsgd:8:512", [](size_t k) { return 4 * ceil_of(k, 512) + k; }, 512},
    {"qsgd:4:50000", [](size_t k) { return 4 * ceil_of(k, 50000) + ceil_of(k, 2); }, 50000},
    {"dorefa:1", [](size_t k) { return 4 + ceil_of(k, 8); }, 0},
    {"dorefa:2", [](size_t k) { return 4 + ceil_of(k, 4); }, 0},
    {"dorefa:3", [](size_t k) { return 4 + ceil_of(3 * k, 8); }, 0},
    {"dorefa:5", [](size_t k) { return 4 + ceil_of(5 * k, 8); }, 0},
    {"dorefa:6", [](size_t k) { return 4 + ceil_of(6 * k, 8); }, 0},
    {"dorefa:7", [](size_t k) { return 4 + ceil_of(7 * k, 8); }, 0},
    {"dorefa:8", [](size_t k) { return 4 + k; }, 0},
    {"natural", [](size_t k) { return ceil_of(k, 8) + k; }, 1},
    {"power4", [](size_t k) { return 4 + ceil_of(k, 2); }, 0},
    {"onebitcolumns:1", [](size_t k) { return 8 + ceil_of(k, 8); }, 0},
    {"onebitcolumns:3", [](size_t k) { return 8 * std::min<size_t>(k, 3) + ceil_of(k, 8); }, 0, 3},
    {"onebitcolumns:300", [](size_t k) { return 8 * std::min<size_t>(k, 300) + ceil_of(k, 8); }, 0, 300},
    {"onebitcolumns:64", [](size_t k) { return 8 * std::min<size_t>(k, 64) + ceil_of(k, 8); }, 0, 64},
};
const size_t kCounts[] = {1, 2, 3, 7, 8, 9, 255, 319, 320, 321, 1000, 5003};

std::vector<uint8_t> encode(const ValueCoder& coder, const std::vector<float>& values,
                            std::vector<float>* sent, Key key = kKey, int threads = 1) {
  const size_t k = values.size();
  std::vector<uint8_t> bytes(value_bytes(coder, k) + 16, 0xa5);
  sent->assign(k + 16, 77.0f);
  encode_values(coder, values.data(), k, bytes.data(), sent->data(), key, threads);
  for (size_t i = k; i < k + 16; ++i) EXPECT_EQ((*sent)[i], 77.0f) << "written past the end";
  sent->resize(k);
  for (size_t i = bytes.size() - 16; i < bytes.size(); ++i)
    EXPECT_EQ(bytes[i], 0xa5) << "written past the end";
  bytes.resize(bytes.size() - 16);
  bytes.shrink_to_fit();
  return bytes;
}

std::vector<float> sent_of(const char* name, const std::vector<float>& values, Key key = kKey) {
  std::vector<float> sent;
  encode(ValueCoder(name), values, &sent, key);
  return sent;
}

class Quantisers : public testing::TestWithParam<Case> {
 protected:
  ValueCoder coder{GetParam().name};
};

TEST_P(Quantisers, LengthFollowsTheFormula) {
  for (const size_t k : kCounts) EXPECT_EQ(value_bytes(coder, k), GetParam().nbytes(k)) << k;
  EXPECT_EQ(value_bytes(coder, 0), 0u);
}

TEST_P(Quantisers, SentIsExactlyWhatDecodingGives) {
  for (const size_t k : kCounts) {
    for (const test::Named& array : test::hard_arrays(k)) {
      SCOPED_TRACE(array.name + ", " + std::to_string(k));
      std::vector<float> sent;
      const std::vector<uint8_t> bytes = encode(coder, array.values, &sent);
      ASSERT_EQ(check_values(coder, k, bytes.data()), "");
      for (const float x : sent) ASSERT_TRUE(std::isfinite(x));
      std::vector<float> decoded(k);
      decode_values(coder, k, bytes.data(), 0, k, decoded.data());
      ASSERT_TRUE(test::same_bits(decoded, sent));

      std::vector<float> in_place = array.values;
      std::vector<uint8_t> again(bytes.size());
      encode_values(coder, in_place.data(), k, again.data(), in_place.data(), kKey, 1);
      ASSERT_EQ(again, bytes);
      ASSERT_TRUE(test::same_bits(in_place, sent));

      for (size_t first = 0; first < k; first += 1 + first / 4) {
        for (const size_t count : {size_t{1}, std::min<size_t>(389, k - first), k - first}) {
          std::vector<float> part(count);
          decode_values(coder, k, bytes.data(), first, count, part.data());
          ASSERT_TRUE(test::same_bits(part, {sent.begin() + static_cast<long>(first),
                                             sent.begin() + static_cast<long>(first + count)}));
        }
      }
    }
  }
}

TEST_P(Quantisers, BytesDependNeitherOnThreadsNorOnInstructions) {
  for (const size_t k : {5003u, 300007u}) {
    std::vector<float> values = test::normal(k, 5);
    for (size_t i = 0; i < k; i += 3) values[i] *= 1e-3f;
    std::vector<float> sent;
    const std::vector<uint8_t> bytes = encode(coder, values, &sent);
    for (const Kernels* set : available_kernels()) {
      const test::ForcedKernels forced(set);
      for (const int threads : {1, 2, 5}) {
        SCOPED_TRACE(std::string(set->name) + ", threads: " + std::to_string(threads));
        std::vector<float> again_sent;
        ASSERT_EQ(encode(coder, values, &again_sent, kKey, threads), bytes);
        ASSERT_TRUE(test::same_bits(again_sent, sent));
        std::vector<float> in_place = values;
        std::vector<uint8_t> again(bytes.size());
        encode_values(coder, in_place.data(), k, again.data(), in_place.data(), kKey, threads);
        ASSERT_EQ(again, bytes);
        ASSERT_TRUE(test::same_bits(in_place, sent));
      }
      std::vector<float> decoded(k);
      decode_values(coder, k, bytes.data(), 0, k, decoded.data());
      ASSERT_TRUE(test::same_bits(decoded, sent));
    }
  }
}

TEST_P(Quantisers, ZeroStaysZeroWhereThereIsACodeForIt) {
  const std::string name = GetParam().name;
  for (const size_t k : {1u, 320u, 1000u}) {
    for (const float x : sent_of(GetParam().name, std::vector<float>(k, 0.0f))) {
      EXPECT_EQ(x, name == "sign" ? 1.0f : 0.0f);
    }
  }
}

TEST_P(Quantisers, SubnormalScalesBecomeZeroAndNeverNan) {
  const std::string name = GetParam().name;
  for (const float x : {1e-45f, -1e-40f, std::nextafter(FLT_MIN, 0.0f)}) {
    for (const float y : sent_of(GetParam().name, std::vector<float>(7, x))) {
      if (name == "sign") {
        EXPECT_EQ(std::fabs(y), 1.0f);
      } else if (name == "natural") {
        EXPECT_TRUE(y == 0.0f || std::fabs(y) == FLT_MIN);
      } else if (name.rfind("qsgd", 0) == 0) {
        EXPECT_LE(std::fabs(y), 3 * FLT_MIN);  // the norm of several may be normal
      } else {
        EXPECT_EQ(y, 0.0f);
      }
    }
  }
}

TEST_P(Quantisers, TheLargestFloatsStayFinite) {
  std::vector<float> values(1000, FLT_MAX);
  for (size_t i = 0; i < values.size(); i += 3) values[i] = -FLT_MAX;
  for (const float x : sent_of(GetParam().name, values)) EXPECT_TRUE(std::isfinite(x));
}

TEST_P(Quantisers, SmallestNormalFloatsDoNotOverflow) {
  for (const float x : sent_of(GetParam().name, {FLT_MIN, -FLT_MIN, FLT_MIN})) {
    EXPECT_TRUE(std::isfinite(x));
    EXPECT_LE(std::fabs(x), std::string(GetParam().name) == "sign" ? 1.0f : 2 * FLT_MIN);
  }
}

TEST_P(Quantisers, WhatIsNotFinitePoisons) {
  constexpr size_t kK = 100000;
  const size_t group = GetParam().group ? GetParam().group : kK;
  const size_t columns = GetParam().columns;
  for (const float bad : {kNan, -kNan, kInfinity, -kInfinity}) {
    for (const size_t at : {0u, 300u, 99999u}) {
      std::vector<float> values = test::normal(kK, 6);
      values[at] = bad;
      std::vector<float> sent;
      const std::vector<uint8_t> bytes = encode(coder, values, &sent);
      ASSERT_EQ(check_values(coder, kK, bytes.data()), "");
      for (size_t i = 0; i < kK; ++i) {
        const bool poisoned = i / group == at / group && i % columns == at % columns;
        ASSERT_EQ(std::isnan(sent[i]), poisoned) << i;
      }
    }
  }
}

TEST_P(Quantisers, AnyBytesAreSafeToDecodeAndToCheck) {
  std::mt19937_64 random(8);
  for (const size_t k : kCounts) {
    std::vector<uint8_t> bytes(value_bytes(coder, k));
    std::vector<float> values(k);
    for (int turn = 0; turn < 20; ++turn) {
      for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
      check_values(coder, k, bytes.data());
      decode_values(coder, k, bytes.data(), 0, k, values.data());
    }
  }
}

TEST_P(Quantisers, ImpossibleHeadersAndUnusedBitsAreRefused) {
  const std::string name = GetParam().name;
  const std::vector<float> values =
      test::normal(9, 9);  // one code in the last byte, whatever their width below 8
  std::vector<float> sent;
  const std::vector<uint8_t> good = encode(coder, values, &sent);
  ASSERT_EQ(check_values(coder, 9, good.data()), "");
  if (name != "natural") {
    for (const float bad : {-1.0f, kInfinity, -kInfinity, 1e-40f}) {
      std::vector<uint8_t> bytes = good;
      std::memcpy(bytes.data(), &bad, 4);
      EXPECT_NE(check_values(coder, 9, bytes.data()), "") << bad;
    }
  }
  const size_t last = name == "natural" ? 1 : good.size() - 1;
  if (name != "dorefa:8" && name != "qsgd:8:512") {
    std::vector<uint8_t> bytes = good;
    bytes[last] |= 0x80;
    EXPECT_NE(check_values(coder, 9, bytes.data()), "");
  }
}

std::string test_name(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), ':', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, Quantisers, testing::ValuesIn(kCases), test_name);

TEST(Names, NumbersAreChecked) {
  for (const char* name :
       {"onebit:0", "onebitcolumns:0", "qsgd:3:512", "qsgd:16:512", "qsgd:4:0", "dorefa:0", "dorefa:9",
        "sign:1", "qsgd:4", "onebit", "onebit:-1", "ternary:2", "dorefa:2:2"}) {
    EXPECT_THROW(ValueCoder{name}, std::invalid_argument) << name;
  }
  try {
    ValueCoder("qsgd:3:512");
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "B of qsgd:B:S is 3; allowed: 2, 4, 8");
  }
}

std::vector<uint8_t> bytes_of(const char* name, const std::vector<float>& values) {
  std::vector<float> sent;
  return encode(ValueCoder(name), values, &sent);
}

TEST(Formats, MatchWorkedExamples) {
  using Bytes = std::vector<uint8_t>;
  EXPECT_EQ(bytes_of("sign", {2.0f, -1.0f, 0.0f}), (Bytes{0, 0, 0x80, 0x3f, 0x05}));
  EXPECT_EQ(bytes_of("meansign", {1.0f, -3.0f}), (Bytes{0, 0, 0, 0x40, 0x01}));
  EXPECT_EQ(bytes_of("onebit:2", {1.0f, -2.0f, 4.0f}),
            (Bytes{0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x40, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0x05}));
  EXPECT_EQ(bytes_of("onebitcolumns:2", {1.0f, -2.0f, 1.0f}),
            (Bytes{0, 0, 0x80, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0x05}));
  EXPECT_EQ(bytes_of("ternary", {0.0f, 1.0f, -2.0f, 1.0f, 0.0f, -2.0f}),
            (Bytes{0, 0, 0x80, 0x3f, 0, 0, 0, 0x40, 3 + 2 * 9 + 27, 2}));
  EXPECT_EQ(bytes_of("qsgd:4:3", {0.0f, -2.0f, 0.0f}), (Bytes{0, 0, 0, 0x40, 0xf0, 0}));
  EXPECT_EQ(bytes_of("dorefa:2", {2.0f, -2.0f}), (Bytes{0, 0, 0, 0x40, 0x03}));
  EXPECT_EQ(bytes_of("natural", {1.0f, -2.0f, 0.0f}), (Bytes{0x02, 127, 128, 0}));
  EXPECT_EQ(bytes_of("power4", {5.0f, -2.0f, 0.01f}), (Bytes{0, 0, 0x80, 0x40, 0x90, 0x07}));
}

TEST(Ternary, LosesNothingOfThreeValues) {
  std::vector<float> values(100003, 0.0f);
  for (size_t i = 0; i < values.size(); i += 3) values[i] = i % 2 ? 0.1f : -0.3f;
  EXPECT_TRUE(test::same_bits(sent_of("ternary", values), values));
}

TEST(Ternary, BytesThatAreNotFiveTritsAreRefused) {
  const ValueCoder coder("ternary");
  std::vector<uint8_t> bytes = bytes_of("ternary", std::vector<float>(10, 1.0f));
  bytes[8] = 242;
  EXPECT_EQ(check_values(coder, 10, bytes.data()), "");
  bytes[8] = 243;
  EXPECT_NE(check_values(coder, 10, bytes.data()), "");
}

TEST(Power4, ASignedZeroAndOtherHeadersAreRefused) {
  const ValueCoder coder("power4");
  std::vector<uint8_t> bytes = bytes_of("power4", {1.0f, 2.0f, 3.0f, 4.0f});
  bytes[5] = 0xf0;
  EXPECT_NE(check_values(coder, 4, bytes.data()), "");
  bytes[5] = 0x0f;
  EXPECT_NE(check_values(coder, 4, bytes.data()), "");
  bytes[5] = 0x77;
  EXPECT_EQ(check_values(coder, 4, bytes.data()), "");
  const float three = 3.0f;
  std::memcpy(bytes.data(), &three, 4);
  EXPECT_NE(check_values(coder, 4, bytes.data()), "");
}

TEST(Stochastic, TheLargestMagnitudeIsExact) {
  const std::vector<float> scales = test::normal(300, 3);
  for (uint32_t i = 0; i < scales.size(); ++i) {
    const float x = std::ldexp(scales[i], static_cast<int>(i % 240) - 120);
    const std::vector<float> ends{x, -x, x, -x, x, -x, x, -x, x, -x, x, -x, x, -x, x, -x};
    for (const char* name : {"dorefa:1", "dorefa:2", "dorefa:3", "dorefa:8"}) {
      EXPECT_EQ(sent_of(name, ends, {i, 1}), ends);
    }
    for (const char* name : {"qsgd:2:1", "qsgd:4:1", "qsgd:8:1"})
      EXPECT_EQ(sent_of(name, ends, {i, 1}), ends);
  }
}

TEST(Natural, PowersOfTwoAreExactAndTheTopIsRoundedDown) {
  std::vector<float> values;
  for (int e = -126; e <= 127; ++e) values.push_back(std::ldexp(e % 2 ? 1.0f : -1.0f, e));
  EXPECT_EQ(sent_of("natural", values), values);
  EXPECT_EQ(sent_of("natural", {FLT_MAX, -FLT_MAX}), (std::vector<float>{0x1p127f, -0x1p127f}));
}

}  // namespace
}  // namespace dgc
