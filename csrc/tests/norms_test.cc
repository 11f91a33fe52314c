#include "norms.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

TEST(SumSquares, IsExactToDoubleRoundingAndIndependentOfThreadsAndKernels) {
  for (const size_t n : {0u, 1u, 1000u, 65536u, 65537u, 400003u}) {
    const std::vector<float> x = test::normal(n, 1, 100.0f);
    long double expected = 0.0L;
    for (const float v : x) expected += static_cast<long double>(v) * static_cast<long double>(v);
    const double one = sum_squares(x.data(), Scalar::float32, n, 1);
    EXPECT_NEAR(one, static_cast<double>(expected), 1e-12 * static_cast<double>(expected));
    for (const Kernels* set : available_kernels()) {
      const test::ForcedKernels forced(set);
      for (const int threads : {1, 2, 3, 4})
        EXPECT_EQ(sum_squares(x.data(), Scalar::float32, n, threads), one);
    }
  }
}

TEST(SumSquares, DoesNotOverflowWhereFloatWould) {
  const std::vector<float> x(1000, 1e30f);
  EXPECT_NEAR(sum_squares(x.data(), Scalar::float32, x.size(), 1), 1e63, 1e57);
}

TEST(Norms, ReadHalves) {
  const std::vector<float> x = test::normal(5000, 2);
  std::vector<uint16_t> half(5000), bfloat(5000);
  double half_sum = 0.0, bfloat_sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    half[i] = float_to_half(x[i]);
    bfloat[i] = float_to_bfloat16(x[i]);
    half_sum += std::pow(static_cast<double>(half_to_float(half[i])), 2);
    bfloat_sum += std::pow(static_cast<double>(bfloat16_to_float(bfloat[i])), 2);
  }
  EXPECT_NEAR(sum_squares(half.data(), Scalar::float16, 5000, 1), half_sum, 1e-9);
  EXPECT_NEAR(sum_squares(bfloat.data(), Scalar::bfloat16, 5000, 2), bfloat_sum, 1e-9);
  EXPECT_TRUE(all_finite(half.data(), Scalar::float16, 5000));
  half[4999] = 0xfc00;
  EXPECT_FALSE(all_finite(half.data(), Scalar::float16, 5000));
  bfloat[0] = 0x7fc0;
  EXPECT_FALSE(all_finite(bfloat.data(), Scalar::bfloat16, 5000));
}

TEST(Norms, SeeWhatIsNotFiniteAnywhere) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t place : {0u, 1023u, 1024u, 70000u, 99999u}) {
      std::vector<float> x = test::normal(100000, 3);
      EXPECT_TRUE(all_finite(x.data(), Scalar::float32, x.size()));
      x[place] = -bad;
      EXPECT_FALSE(all_finite(x.data(), Scalar::float32, x.size()));
      EXPECT_FALSE(std::isfinite(sum_squares(x.data(), Scalar::float32, x.size(), 2)));
      EXPECT_FALSE(std::isfinite(max_magnitude(x.data(), Scalar::float32, x.size(), 2)));
    }
  }
}

TEST(MaxMagnitude, IsTheLargest) {
  std::vector<float> x = test::normal(200000, 4);
  x[123456] = -55.0f;
  for (const int threads : {1, 2, 3})
    EXPECT_EQ(max_magnitude(x.data(), Scalar::float32, x.size(), threads), 55.0f);
  EXPECT_EQ(max_magnitude(nullptr, Scalar::float32, 0, 2), 0.0f);
}

}  // namespace
}  // namespace dgc
