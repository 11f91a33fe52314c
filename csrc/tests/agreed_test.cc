#include "agreed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "cases.h"
#include "kinds.h"
#include "workers.h"

namespace dgc {
namespace {

using test::Worker;

TEST(Random, DrawsEachCoordinateEquallyOftenAndAlikeOnAllRanks) {
  const size_t n = 37, k = 5, steps = 20000;
  const auto codec = make_codec("random n=37 k=5 values=float32 factor=1");
  std::vector<size_t> counts(n);
  Worker worker(codec, std::vector<float>(n, 1.0f));
  for (size_t step = 0; step < steps; ++step) {
    worker.randomness = Randomness(1, 2, step, 0);
    const Proposal p = worker.propose();
    worker.randomness = Randomness(1, 2, step, 7);
    ASSERT_EQ(worker.propose().indices, p.indices);
    for (const uint32_t i : p.indices) ++counts[i];
  }
  // A binomial count of mean 2703 and standard deviation 48; five of them, 37 coordinates: 2e-5 by chance.
  const double mean = static_cast<double>(steps * k) / static_cast<double>(n);
  for (const size_t count : counts) EXPECT_NEAR(static_cast<double>(count), mean, 5.0 * std::sqrt(mean));
}

TEST(Sketch, FindsTheHeavyCoordinates) {
  const auto codec = make_codec("sketch n=600 k=10 rows=5 columns=1000");
  std::vector<float> grad = test::normal(600, 1, 0.01f);
  std::set<uint32_t> heavy;
  for (uint32_t i = 3; heavy.size() < 10; i += 57) {
    grad[i] = i % 2 ? 5.0f : -5.0f;
    heavy.insert(i);
  }
  Worker worker(codec, grad);
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  ASSERT_TRUE(worker.open());
  const Proposal p = worker.propose();
  EXPECT_EQ(std::set<uint32_t>(p.indices.begin(), p.indices.end()), heavy);
}

}  // namespace
}  // namespace dgc
