#include "value_coding.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

const ValueCoder kCoders[] = {ValueCoder::float32, ValueCoder::float16, ValueCoder::bfloat16,
                                  ValueCoder::int8, ValueCoder::int4};
const size_t kCounts[] = {0, 1, 2, 3, 255, 256, 257, 511, 1000};

std::vector<uint8_t> encode(const ValueCoder& coder, const std::vector<float>& values, std::vector<float>* sent) {
  const size_t k = values.size();
  std::vector<uint8_t> bytes(value_bytes(coder, k) + 16, 0xa5);
  sent->assign(k + 1, 77.0f);
  encode_values(coder, values.data(), k, bytes.data(), sent->data());
  EXPECT_EQ(sent->back(), 77.0f) << "written past the end";
  sent->pop_back();
  for (size_t i = bytes.size() - 16; i < bytes.size(); ++i)
    EXPECT_EQ(bytes[i], 0xa5) << "written past the end";
  return std::vector<uint8_t>(bytes.begin(), bytes.end() - 16);
}

std::vector<float> decode(const ValueCoder& coder, size_t k, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(k);
  decode_values(coder, k, bytes.data(), 0, k, values.data());
  return values;
}

TEST(ValueBytes, FollowsTheFormulas) {
  for (const size_t k : kCounts) {
    EXPECT_EQ(value_bytes(ValueCoder::float32, k), 4 * k);
    EXPECT_EQ(value_bytes(ValueCoder::float16, k), 2 * k);
    EXPECT_EQ(value_bytes(ValueCoder::bfloat16, k), 2 * k);
    EXPECT_EQ(value_bytes(ValueCoder::int8, k), (k + 255) / 256 * 4 + k);
    EXPECT_EQ(value_bytes(ValueCoder::int4, k), (k + 255) / 256 * 4 + (k + 1) / 2);
  }
}

TEST(Values, SentIsExactlyWhatDecodingGives) {
  for (const ValueCoder& coder : kCoders) {
    for (const size_t k : kCounts) {
      for (const float scale : {1.0f, 1e-30f, 1e-44f, 1e-3f, 1e4f, 1e37f}) {
        const std::vector<float> values = test::normal(k, 1, scale);
        std::vector<float> sent;
        const std::vector<uint8_t> bytes = encode(coder, values, &sent);
        ASSERT_TRUE(test::same_bits(decode(coder, k, bytes), sent));
        ASSERT_EQ(check_values(coder, k, bytes.data()), "");
        for (const float x : sent) ASSERT_TRUE(std::isfinite(x));
        if (coder == ValueCoder::float32) {
          ASSERT_TRUE(test::same_bits(sent, values));
        }
        std::vector<float> in_place = values;
        std::vector<uint8_t> again(bytes.size());
        encode_values(coder, in_place.data(), k, again.data(), in_place.data());
        ASSERT_EQ(again, bytes);
        ASSERT_TRUE(test::same_bits(in_place, sent));
        for (size_t first = 0; first < k; first += 100) {
          const size_t count = std::min<size_t>(173, k - first);
          std::vector<float> part(count);
          decode_values(coder, k, bytes.data(), first, count, part.data());
          ASSERT_TRUE(test::same_bits(part, {sent.begin() + static_cast<long>(first),
                                             sent.begin() + static_cast<long>(first + count)}));
        }
      }
    }
  }
}

TEST(ScaledValues, AreNearestMultiplesOfTheChunkScale) {
  for (const ValueCoder& coder : {ValueCoder::int8, ValueCoder::int4}) {
    const float codes = coder == ValueCoder::int8 ? 127.0f : 7.0f;
    std::vector<float> values = test::normal(1000, 2);
    for (size_t i = 256; i < 512; ++i) values[i] *= 1e-6f;  // a chunk of its own scale
    std::vector<float> sent;
    encode(coder, values, &sent);
    for (size_t first = 0; first < values.size(); first += kChunk) {
      const size_t end = std::min(values.size(), first + kChunk);
      float largest = 0.0f;
      for (size_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(values[i]));
      const float scale = largest / codes;
      for (size_t i = first; i < end; ++i) {
        EXPECT_LE(std::fabs(values[i] - sent[i]), scale * 0.5001f);
        EXPECT_EQ(sent[i], std::round(sent[i] / scale) * scale);
      }
    }
  }
}

TEST(ScaledValues, MatchAWorkedExample) {
  std::vector<float> sent;
  const std::vector<uint8_t> bytes = encode(ValueCoder::int4, {7.0f, -3.0f, 1.4f}, &sent);
  const std::vector<uint8_t> expected{0, 0, 0x80, 0x3f, 0xd7, 0x01};
  EXPECT_EQ(bytes, expected);
  EXPECT_EQ(sent, (std::vector<float>{7.0f, -3.0f, 1.0f}));
}

TEST(ScaledValues, ZeroAndSubnormalChunksDecodeToZero) {
  for (const ValueCoder& coder : {ValueCoder::int8, ValueCoder::int4}) {
    for (const float x : {0.0f, -0.0f, 1e-45f, -1e-40f, FLT_MIN}) {
      std::vector<float> sent;
      encode(coder, std::vector<float>(300, x), &sent);
      for (const float s : sent) EXPECT_EQ(s, 0.0f);
    }
  }
}

TEST(ScaledValues, LargestFloatStaysFinite) {
  for (const ValueCoder& coder : {ValueCoder::int8, ValueCoder::int4}) {
    std::vector<float> sent;
    encode(coder, {FLT_MAX, -FLT_MAX, 1.0f}, &sent);
    for (const float s : sent) EXPECT_TRUE(std::isfinite(s));
    EXPECT_GT(sent[0], 3.4e38f);
  }
}

TEST(Values, NanPoisons) {
  for (const ValueCoder& coder : kCoders) {
    std::vector<float> values = test::normal(600, 3);
    values[300] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> sent;
    const std::vector<uint8_t> bytes = encode(coder, values, &sent);
    const bool chunked = coder == ValueCoder::int8 || coder == ValueCoder::int4;
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(std::isnan(sent[i]), chunked ? i / kChunk == 1 : i == 300) << i;
    }
    EXPECT_EQ(check_values(coder, values.size(), bytes.data()), "");
  }
}

TEST(CheckValues, RefusesImpossibleScalesAndNibbles) {
  std::vector<float> sent;
  std::vector<uint8_t> bytes = encode(ValueCoder::int4, {1.0f, 2.0f, 3.0f}, &sent);
  bytes.back() |= 0x10;
  EXPECT_NE(check_values(ValueCoder::int4, 3, bytes.data()), "");
  bytes = encode(ValueCoder::int8, {1.0f}, &sent);
  bytes[3] |= 0x80;
  EXPECT_NE(check_values(ValueCoder::int8, 1, bytes.data()), "");
  const float infinite = std::numeric_limits<float>::infinity();
  std::memcpy(bytes.data(), &infinite, 4);
  EXPECT_NE(check_values(ValueCoder::int8, 1, bytes.data()), "");
}

}  // namespace
}  // namespace dgc
