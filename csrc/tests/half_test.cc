#include "half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

// From the definition of binary16.
double half_value(unsigned half) {
  const int exponent = (half >> 10) & 31;
  const double mantissa = half & 1023;
  const double absolute =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000u ? -absolute : absolute;
}

bool is_special(unsigned half) { return (half & 0x7c00u) == 0x7c00u; }

TEST(Half, WidensEveryPattern) {
  for (unsigned half = 0; half < 65536; ++half) {
    const float x = half_to_float(static_cast<uint16_t>(half));
    EXPECT_EQ(std::signbit(x), (half & 0x8000u) != 0) << half;
    if (!is_special(half)) {
      EXPECT_EQ(static_cast<double>(x), half_value(half)) << half;
    } else if (half & 1023) {
      EXPECT_TRUE(std::isnan(x)) << half;
    } else {
      EXPECT_TRUE(std::isinf(x)) << half;
    }
  }
}

TEST(Half, RoundTripsEveryFinitePattern) {
  for (unsigned half = 0; half < 65536; ++half) {
    if (is_special(half)) continue;
    EXPECT_EQ(float_to_half(half_to_float(static_cast<uint16_t>(half))), half);
  }
}

TEST(Half, RoundsToNearestEvenBetweenAllNeighbours) {
  for (unsigned half = 0; half + 1 < 0x7c00; ++half) {
    const double low = half_value(half);
    const double high = half_value(half + 1);
    const float middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(static_cast<double>(middle), (low + high) / 2);
    const unsigned even = half % 2 == 0 ? half : half + 1;
    EXPECT_EQ(float_to_half(middle), even) << half;
    EXPECT_EQ(float_to_half(std::nextafter(middle, 0.0f)), half) << half;
    EXPECT_EQ(float_to_half(std::nextafter(middle, 1e6f)), half + 1) << half;
    EXPECT_EQ(float_to_half(-middle), even | 0x8000u) << half;
  }
}

TEST(Half, SaturatesAndKeepsNan) {
  for (const float big : {65504.0f, 65519.9f, 65520.0f, 1e6f, std::numeric_limits<float>::max()}) {
    EXPECT_EQ(half_to_float(float_to_half(big)), 65504.0f);
    EXPECT_EQ(half_to_float(float_to_half(-big)), -65504.0f);
  }
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_TRUE(std::isnan(half_to_float(float_to_half(bad))));
    EXPECT_TRUE(std::isnan(half_to_float(float_to_half(-bad))));
    EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(bad))));
  }
  EXPECT_EQ(half_to_float(float_to_half(1e-30f)), 0.0f);
  EXPECT_EQ(half_to_float(float_to_half(std::numeric_limits<float>::denorm_min())), 0.0f);
}

TEST(Bfloat16, RoundTripsEveryFinitePatternAndRoundsToNearestEven) {
  for (unsigned half = 0; half < 65536; ++half) {
    const float x = bfloat16_to_float(static_cast<uint16_t>(half));
    EXPECT_EQ(float_bits(x), half << 16);
    if (!std::isfinite(x)) continue;
    EXPECT_EQ(float_to_bfloat16(x), half);
    if ((half & 0x7fffu) == 0x7f7fu) continue;
    const unsigned even = half % 2 == 0 ? half : half + 1;
    EXPECT_EQ(float_to_bfloat16(bits_float((half << 16) | 0x8000u)), even) << half;
    EXPECT_EQ(float_to_bfloat16(bits_float((half << 16) | 0x7fffu)), half) << half;
    EXPECT_EQ(float_to_bfloat16(bits_float((half << 16) | 0x8001u)), half + 1) << half;
  }
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::max()), 0x7f7f);
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::lowest()), 0xff7f);
}

TEST(Magnitude, OrdersLikeTheAbsoluteValue) {
  const std::vector<float> x = test::normal(1000, 1);
  for (size_t i = 1; i < x.size(); ++i) {
    EXPECT_EQ(magnitude(x[i]) > magnitude(x[i - 1]), std::fabs(x[i]) > std::fabs(x[i - 1]));
  }
  EXPECT_EQ(magnitude(-0.0f), 0);
  EXPECT_LT(magnitude(std::numeric_limits<float>::max()), kInfinityBits);
  EXPECT_EQ(magnitude(-std::numeric_limits<float>::infinity()), kInfinityBits);
  EXPECT_GT(magnitude(std::numeric_limits<float>::quiet_NaN()), kInfinityBits);
}

}  // namespace
}  // namespace dgc
