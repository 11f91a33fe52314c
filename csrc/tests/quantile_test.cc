#include "quantile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "kinds.h"

namespace dgc {
namespace {

std::shared_ptr<const Codec> over(size_t n, size_t samples, double share) {
  return make_codec("coordinates n=" + std::to_string(n) +
                    " k=1 indices=int32 values=float32 select=quantile share=" + std::to_string(share) +
                    " samples=" + std::to_string(samples));
}

TEST(Quantile, IsThatOfAllElementsWhereAllAreSampled) {
  for (const double share : {0.001, 0.01, 0.1, 0.5, 1.0}) {
    const auto small = over(700, 700, share);
    const auto large = over(2300, 2300, share);
    std::vector<float> magnitudes[] = {test::normal(700, 1, 5.0f), test::normal(2300, 2)};
    std::vector<float> all;
    for (auto& part : magnitudes) {
      for (float& x : part) all.push_back(x = std::fabs(x));
    }
    std::sort(all.begin(), all.end(), std::greater<float>());
    const size_t wanted = static_cast<size_t>(std::ceil(share * 3000 * (1 - 1e-9)));
    const float found =
        opened_by_quantile({small.get(), large.get()}, {magnitudes[0].data(), magnitudes[1].data()});
    EXPECT_EQ(found, all[wanted - 1]) << share;
  }
}

TEST(Quantile, ASampleCountsForTheElementsItStandsFor) {
  // 90 elements of 1, all sampled, and 9,000 of 2, of which 9 are: most samples are ones, few elements are.
  const auto small = over(90, 90, 0.01);
  const auto large = over(9000, 9, 0.01);
  const std::vector<float> ones(90, 1.0f);
  const std::vector<float> twos(9, 2.0f);
  EXPECT_EQ(opened_by_quantile({small.get(), large.get()}, {ones.data(), twos.data()}), 2.0f);
  const auto most = over(90, 90, 0.995);
  EXPECT_EQ(opened_by_quantile({most.get(), large.get()}, {ones.data(), twos.data()}), 1.0f);
}

TEST(Quantile, OfNothingIsZeroAndOfNanIsNan) {
  EXPECT_EQ(opened_by_quantile({}, {}), 0.0f);
  const auto codec = over(3, 3, 0.5);
  const std::vector<float> bad = {1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  EXPECT_TRUE(std::isnan(opened_by_quantile({codec.get()}, {bad.data()})));
}

}  // namespace
}  // namespace dgc
