#include "decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

constexpr IndexCoder kIndexCoders[] = {IndexCoder::elias_fano, IndexCoder::runlength16, IndexCoder::int32};
const ValueCoder kValueCoders[] = {ValueCoder::float32, ValueCoder::float16, ValueCoder::bfloat16,
                                       ValueCoder::int8, ValueCoder::int4};

std::vector<uint8_t> payloads_of(const Layout& layout, size_t count, std::vector<float>* sum, float scale) {
  std::vector<uint8_t> payloads(count * layout.nbytes());
  for (size_t p = 0; p < count; ++p) {
    const std::vector<uint32_t> indices =
        test::random_coordinates(layout.n(), layout.k(), static_cast<unsigned>(100 + p));
    std::vector<float> sent = test::normal(layout.k(), static_cast<unsigned>(p));
    layout.pack(indices.data(), sent.data(), payloads.data() + p * layout.nbytes(), sent.data());
    for (size_t j = 0; j < layout.k(); ++j) (*sum)[indices[j]] += scale * sent[j];
  }
  return payloads;
}

TEST(DecodeAdd, IsTheSumInPayloadOrderForAnyThreadCount) {
  for (const auto& [n, k, count] : {std::tuple<size_t, size_t, size_t>{1, 1, 3},
                                    {1000, 10, 4},
                                    {1000, 1000, 3},
                                    {300007, 60000, 5},
                                    {300007, 299999, 2},
                                    {300007, 300007, 2},
                                    {700, 2, 70000}}) {
    for (const IndexCoder indices : kIndexCoders) {
      for (const ValueCoder& values : kValueCoders) {
        if (count > 100 && (indices != IndexCoder::elias_fano || values != ValueCoder::float32)) continue;
        const Layout layout(n, k, indices, values);
        const std::vector<float> before = test::normal(n, 9);
        std::vector<float> expected = before;
        const std::vector<uint8_t> payloads = payloads_of(layout, count, &expected, 0.25f);
        for (const int threads : {1, 2, 3, 4}) {
          std::vector<float> out = before;
          decode_add(layout, payloads.data(), count, out.data(), 0.25f, threads);
          ASSERT_TRUE(test::same_bits(out, expected)) << n << " " << k << " " << threads;
        }
      }
    }
  }
}

TEST(Vote, IsTheSignOfASumAndNanWhereThatIsNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  std::vector<float> sums = {3.0f, -0.5f, 0.0f, -0.0f, 1e-45f, -3e38f, nan, infinity, -infinity};
  vote(sums.data(), sums.size());
  // A tie is 0, and not its negative: ranks are compared bit for bit.
  EXPECT_TRUE(test::same_bits(std::vector<float>(sums.begin(), sums.begin() + 6), {1, -1, 0, 0, 1, -1}));
  for (size_t i = 6; i < sums.size(); ++i) EXPECT_TRUE(std::isnan(sums[i])) << i;
}

TEST(Vote, OfPayloadsIsThatOfTheirSum) {
  const Layout layout(10000, 10000, IndexCoder::elias_fano, ValueCoder("sign"));
  std::vector<float> sum(layout.n());
  // An even number, so that there are ties.
  const std::vector<uint8_t> payloads = payloads_of(layout, 4, &sum, 1.0f);
  vote(sum.data(), sum.size());
  EXPECT_GT(std::count(sum.begin(), sum.end(), 0.0f), 0);
  for (const int threads : {1, 3}) {
    std::vector<float> out(layout.n(), 10.0f);
    vote_valid(layout, payloads.data(), 4, out.data(), 0.5f, threads);
    for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], 10.0f + 0.5f * sum[i]);
  }
}

TEST(DecodeAdd, NothingToAdd) {
  const Layout empty(0, 0, IndexCoder::elias_fano, ValueCoder::float16);
  decode_add(empty, nullptr, 0, nullptr, 1.0f, 4);
  const Layout layout(100, 3, IndexCoder::elias_fano, ValueCoder::float16);
  std::vector<float> out(100, 1.0f);
  decode_add(layout, nullptr, 0, out.data(), 1.0f, 2);
  EXPECT_EQ(out, std::vector<float>(100, 1.0f));
}

TEST(DecodeAdd, MalformedPayloadIsNamedAndNothingIsWritten) {
  const Layout layout(5000, 50, IndexCoder::int32, ValueCoder::float32);
  std::vector<float> sum(5000);
  std::vector<uint8_t> payloads = payloads_of(layout, 3, &sum, 1.0f);
  payloads[3 * layout.nbytes() - 1] = 0x7f;
  std::vector<float> out(5000, 0.0f);
  try {
    decode_add(layout, payloads.data(), 3, out.data(), 1.0f, 1);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()).find("payloads[2]: coordinate "), 0u) << error.what();
  }
  EXPECT_EQ(out, std::vector<float>(5000, 0.0f));
}

TEST(DecodeAdd, RandomBytesNeverLeaveTheArray) {
  std::mt19937 random(1);
  size_t accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    const size_t n = 1 + random() % 40;
    const size_t k = 1 + random() % n;
    const Layout layout(n, k, kIndexCoders[random() % 3], kValueCoders[random() % 5]);
    std::vector<uint8_t> payload(layout.nbytes());
    for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random() % 4 == 0 ? random() : 0);
    std::vector<float> out(n);
    try {
      decode_add(layout, payload.data(), 1, out.data(), 1.0f, 1);
      ++accepted;
    } catch (const std::invalid_argument&) {
    }
  }
  EXPECT_GT(accepted, 100u);
}

}  // namespace
}  // namespace dgc
