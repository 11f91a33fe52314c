#include "update.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

TEST(Update, RefusesWhatIsNotFiniteAndNamesIt) {
  const double bad = std::numeric_limits<double>::quiet_NaN();
  const auto message = [](auto make) -> std::string {
    try {
      make();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message([&] { Update{bad}; }).find("unscale"), 0u);
  EXPECT_EQ(message([&] { Update(1.0, INFINITY); }).find("weight_decay"), 0u);
  EXPECT_EQ(message([&] { Update(1.0, 0.0, -0.9); }).find("momentum"), 0u);
  EXPECT_EQ(message([&] { Update(1.0, 0.0, 0.9, 1e300); }).find("dampening"), 0u);
  EXPECT_EQ(message([&] { Update(1.0, 0.0, 0.9, 0.0, false, -1.0); }).find("velocity_scale"), 0u);
  EXPECT_EQ(message([&] { Update(-0.5, 0.1, 1.5, -2.0, true); }), "accepted");
}

TEST(FlushSubnormal, KeepsNormalsAndNan) {
  EXPECT_EQ(flush_subnormal(FLT_MIN), FLT_MIN);
  EXPECT_EQ(flush_subnormal(-FLT_MIN), -FLT_MIN);
  EXPECT_EQ(flush_subnormal(std::nextafter(FLT_MIN, 0.0f)), 0.0f);
  EXPECT_EQ(flush_subnormal(-1e-45f), 0.0f);
  EXPECT_TRUE(std::isnan(flush_subnormal(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isinf(flush_subnormal(-std::numeric_limits<float>::infinity())));
}

TEST(NextVelocity, DecaysToZeroNotToSubnormals) {
  const Coefficients c(Update(1.0, 0.0, 0.9));
  float u = 1.0f;
  for (int i = 0; i < 2000; ++i) {
    u = next_velocity(c, 0.0f, u);
    ASSERT_TRUE(u == 0.0f || std::fpclassify(u) == FP_NORMAL);
  }
  EXPECT_EQ(u, 0.0f);
}

TEST(ApplyMomentum, FollowsTheFormula) {
  const size_t n = 1003;
  for (const bool nesterov : {false, true}) {
    const Update update(3.0, 7.0, 0.9, 0.25, nesterov, 0.5);
    const std::vector<float> g = test::normal(n, 1);
    const std::vector<float> u = test::normal(n, 2);
    std::vector<float> step = g;
    std::vector<float> velocity = u;
    apply_momentum(step.data(), velocity.data(), n, update);
    for (size_t i = 0; i < n; ++i) {
      const float buffer = 0.45f * u[i] + 0.75f * g[i];
      EXPECT_EQ(velocity[i], buffer);
      EXPECT_EQ(step[i], nesterov ? g[i] + 0.9f * buffer : buffer);
    }
  }
}

}  // namespace
}  // namespace dgc
