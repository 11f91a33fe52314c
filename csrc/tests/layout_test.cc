#include "layout.h"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

constexpr IndexCoder kIndexCoders[] = {IndexCoder::elias_fano, IndexCoder::runlength16, IndexCoder::int32};
const ValueCoder kValueCoders[] = {ValueCoder::float32, ValueCoder::float16, ValueCoder::bfloat16,
                                       ValueCoder::int8, ValueCoder::int4};

std::string refusal(size_t n, size_t k, IndexCoder coder) {
  try {
    Layout(n, k, coder, ValueCoder::float32);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Layout, RefusesWhatItCannotHold) {
  EXPECT_NE(refusal(10, 0, IndexCoder::int32).find("k is 0"), std::string::npos);
  EXPECT_NE(refusal(10, 11, IndexCoder::int32).find("k is 11"), std::string::npos);
  EXPECT_NE(refusal(0, 1, IndexCoder::int32), "");
  EXPECT_EQ(refusal(0, 0, IndexCoder::runlength16), "");
  EXPECT_NE(refusal(size_t{1} << 32, 5, IndexCoder::elias_fano).find("n is 4294967296"), std::string::npos);
  EXPECT_EQ(refusal((size_t{1} << 32) - 1, 5, IndexCoder::elias_fano), "");
  EXPECT_NE(refusal(size_t{1} << 31, 5, IndexCoder::int32), "");
  EXPECT_NE(refusal(65537, 1, IndexCoder::runlength16).find("at least ceil(n / 65536) = 2"),
            std::string::npos);
  EXPECT_EQ(refusal(65536, 1, IndexCoder::runlength16), "");
  EXPECT_EQ(refusal(65537, 2, IndexCoder::runlength16), "");
}

TEST(Layout, PublishedSizesOfResNet50) {
  // 25,502,912 weights at density 0.001 with the paper's coding: 6 bytes per coordinate.
  EXPECT_EQ(Layout(25502912, 25503, IndexCoder::runlength16, ValueCoder::float32).nbytes(), 6u * 25503);
}

template <class Check>
void for_each_layout(const Check& check) {
  for (const size_t n : {0u, 1u, 2u, 3u, 63u, 64u, 65u, 1000u, 65535u, 65536u, 65537u, 200003u}) {
    for (const size_t k : {size_t{1}, size_t{4}, n / 1000 + 1, n / 16 + 1, n / 2 + 1, n > 1 ? n - 1 : n, n}) {
      if (k > n || (n == 0) != (k == 0)) continue;
      for (const IndexCoder indices : kIndexCoders) {
        if (indices == IndexCoder::runlength16 && k < (n + 65535) / 65536) continue;
        for (const ValueCoder& values : kValueCoders) check(Layout(n, k, indices, values));
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// Packs into exactly nbytes(), with guards behind.
std::vector<uint8_t> pack(const Layout& layout, const std::vector<uint32_t>& indices,
                          const std::vector<float>& values, std::vector<float>* sent) {
  std::vector<uint8_t> payload(layout.nbytes() + 16, 0xa5);
  sent->resize(layout.k());
  layout.pack(indices.data(), values.data(), payload.data(), sent->data());
  for (size_t i = layout.nbytes(); i < payload.size(); ++i)
    EXPECT_EQ(payload[i], 0xa5) << "written past the end";
  return std::vector<uint8_t>(payload.begin(), payload.end() - 16);
}

TEST(Layout, RoundTripsOnTheWholeGrid) {
  for_each_layout([](const Layout& layout) {
    const size_t n = layout.n(), k = layout.k();
    SCOPED_TRACE(std::to_string(n) + " " + std::to_string(k));
    EXPECT_EQ(layout.nbytes(), value_bytes(layout.values(), k) + index_bytes(layout.indices(), n, k));
    const std::vector<uint32_t> chosen = test::random_coordinates(n, k, 1);
    const std::vector<float> values = test::normal(k, 2);
    std::vector<float> sent;
    const std::vector<uint8_t> payload = pack(layout, chosen, values, &sent);
    ASSERT_EQ(layout.check(payload.data()), "");
    std::vector<uint32_t> indices(k);
    std::vector<float> decoded(k);
    layout.unpack(payload.data(), indices.data(), decoded.data());
    std::vector<float> expected(n, 0.0f), got(n, 0.0f);
    for (size_t j = 0; j < k; ++j) expected[chosen[j]] = sent[j];
    for (size_t j = 0; j < k; ++j) got[indices[j]] = decoded[j];
    ASSERT_EQ(got, expected);
    for (size_t j = 0; j < k; ++j) {
      const bool exact = layout.values() != ValueCoder::float32 || sent[j] == values[j] || sent[j] == 0.0f;
      ASSERT_TRUE(exact);
    }
  });
}

TEST(Layout, PoisonIsAValidPayloadOfNan) {
  for_each_layout([](const Layout& layout) {
    const std::vector<uint8_t> payload = layout.poison();
    ASSERT_EQ(payload.size(), layout.nbytes());
    ASSERT_EQ(layout.check(payload.data()), "");
    std::vector<uint32_t> indices(layout.k());
    std::vector<float> values(layout.k());
    layout.unpack(payload.data(), indices.data(), values.data());
    for (size_t j = 0; j < layout.k(); ++j) {
      ASSERT_EQ(indices[j], j);
      ASSERT_TRUE(std::isnan(values[j]));
    }
  });
}

TEST(Layout, ClusteredDataLosesNothingWithRunLengths) {
  const size_t n = 1 << 20, k = 20;
  for (const ValueCoder& coder : kValueCoders) {
    const Layout layout(n, k, IndexCoder::runlength16, coder);
    std::vector<uint32_t> chosen(k);
    std::iota(chosen.begin(), chosen.end(), static_cast<uint32_t>(n - k));
    const std::vector<float> values = test::normal(k, 4);
    std::vector<float> sent;
    const std::vector<uint8_t> payload = pack(layout, chosen, values, &sent);
    std::vector<uint32_t> indices(k);
    std::vector<float> decoded(k);
    layout.unpack(payload.data(), indices.data(), decoded.data());
    std::vector<float> out(n, 0.0f);
    for (size_t j = 0; j < k; ++j) out[indices[j]] += decoded[j];
    size_t displaced = 0;
    for (size_t j = 0; j < k; ++j) {
      EXPECT_EQ(out[chosen[j]], sent[j]);
      displaced += sent[j] == 0.0f ? 1 : 0;
    }
    EXPECT_GE(displaced, 15u);  // floor((n - k) / 65536) fillers
    EXPECT_LT(displaced, k);
    for (size_t i = 0; i < n - k; ++i) ASSERT_EQ(out[i], 0.0f);
  }
}

TEST(Layout, MutatedPayloadsAreRefusedOrStayInBounds) {
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    const size_t n = 1 + random() % 600;
    const size_t k = 1 + random() % n;
    const Layout layout(n, k, kIndexCoders[random() % 3], kValueCoders[random() % 5]);
    std::vector<float> sent;
    std::vector<uint8_t> payload =
        pack(layout, test::random_coordinates(n, k, random()), test::normal(k, random()), &sent);
    const size_t flips = 1 + random() % 8;
    for (size_t f = 0; f < flips; ++f) payload[random() % payload.size()] = static_cast<uint8_t>(random());
    if (!layout.check(payload.data()).empty()) continue;
    std::vector<uint32_t> indices(k);
    std::vector<float> values(k);
    layout.unpack(payload.data(), indices.data(), values.data());
    for (size_t j = 0; j < k; ++j) ASSERT_LT(indices[j], n);
  }
}

}  // namespace
}  // namespace dgc
