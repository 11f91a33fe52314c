#include "sign_sums.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

SignSums reference(const std::vector<float>& values, size_t first, size_t step) {
  SignSums sums;
  for (size_t i = first; i < values.size(); i += step) {
    if (values[i] > 0.0f) {
      sums.positive += static_cast<double>(values[i]);
      ++sums.positives;
    } else if (values[i] < 0.0f) {
      sums.negative += static_cast<double>(values[i]);
      ++sums.negatives;
    }
  }
  return sums;
}

void expect_near(const SignSums& is, const SignSums& should) {
  EXPECT_NEAR(is.positive, should.positive, 1e-12 * should.positive);
  EXPECT_NEAR(is.negative, should.negative, -1e-12 * should.negative);
  EXPECT_EQ(is.positives, should.positives);
  EXPECT_EQ(is.negatives, should.negatives);
}

bool same(const SignSums& a, const SignSums& b) {
  return a.positive == b.positive && a.negative == b.negative && a.positives == b.positives &&
         a.negatives == b.negatives;
}

TEST(SignSums, AreThoseOfTheValuesOfEachSign) {
  for (const size_t n : {1u, 15u, 16u, 17u, 511u, 512u, 1100u, 65536u, 65537u, 300001u}) {
    std::vector<float> values = test::normal(n, n);
    for (size_t i = 0; i < n; i += 7) values[i] = i % 2 ? 0.0f : -0.0f;
    const SignSums once = sum_signs(values.data(), n, 1);
    expect_near(once, reference(values, 0, 1));
    EXPECT_DOUBLE_EQ(once.magnitudes(), once.positive - once.negative);
    for (const Kernels* set : available_kernels()) {
      const test::ForcedKernels forced(set);
      for (const int threads : {1, 2, 5}) EXPECT_TRUE(same(sum_signs(values.data(), n, threads), once));
    }
  }
}

TEST(SignSums, OfEqualValuesAreExact) {
  const std::vector<float> values(1000003, 0.1f);
  EXPECT_EQ(static_cast<float>(sum_signs(values.data(), values.size(), 2).positive / 1000003.0), 0.1f);
}

TEST(SignSums, AreNotFiniteWhereAValueIsNot) {
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    for (const size_t at : {0u, 100u, 69999u}) {
      std::vector<float> values = test::normal(70000, 1);
      values[at] = bad;
      EXPECT_FALSE(std::isfinite(sum_signs(values.data(), values.size(), 1).magnitudes()));
      std::vector<SignSums> sums(10);
      sum_column_signs(values.data(), values.size(), 10, 1, sums.data());
      for (size_t c = 0; c < 10; ++c) EXPECT_EQ(std::isfinite(sums[c].magnitudes()), c != at % 10);
    }
  }
}

TEST(ColumnSignSums, AreThoseOfTheColumns) {
  for (const size_t n : {1u, 100u, 5000u, 200000u}) {
    const std::vector<float> values = test::normal(n, n);
    for (const size_t columns : {1u, 2u, 3u, 64u, 255u, 256u, 1000u, 3000u}) {
      if (columns > n) continue;
      std::vector<SignSums> once(columns);
      sum_column_signs(values.data(), n, columns, 1, once.data());
      for (size_t c = 0; c < columns; ++c) expect_near(once[c], reference(values, c, columns));
      for (const Kernels* set : available_kernels()) {
        const test::ForcedKernels forced(set);
        for (const int threads : {1, 2, 5}) {
          std::vector<SignSums> again(columns);
          sum_column_signs(values.data(), n, columns, threads, again.data());
          for (size_t c = 0; c < columns; ++c) ASSERT_TRUE(same(again[c], once[c]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace dgc
