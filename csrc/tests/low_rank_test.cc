#include "low_rank.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "cases.h"
#include "kinds.h"
#include "workers.h"

namespace dgc {
namespace {

using test::Worker;

TEST(LowRank, RecoversAMatrixOfThatRank) {
  const auto codec = make_codec("lowrank rows=20 columns=30 rank=2");
  const std::vector<float> left = test::normal(40, 1), right = test::normal(60, 2);
  std::vector<float> matrix(600);
  for (size_t i = 0; i < 20; ++i) {
    for (size_t j = 0; j < 30; ++j) matrix[30 * i + j] = left[i] * right[j] + left[20 + i] * right[30 + j];
  }
  Worker worker(codec, matrix);
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  ASSERT_TRUE(worker.open());
  const Proposal p = worker.propose();
  for (size_t i = 0; i < 600; ++i) EXPECT_NEAR(p.sent[i], matrix[i], 1e-4);
}

TEST(LowRank, AScaleOutOfAllProportionLastsOneStep) {
  const auto codec = make_codec("lowrank rows=20 columns=30 rank=2");
  Worker worker(codec, test::normal(600, 1));
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  for (const float size : {1e25f, 1.0f, 1e-25f, 1.0f}) {
    worker.grad = test::normal(600, 2, size);
    ASSERT_TRUE(worker.open());
    const Proposal p = worker.propose();
    ASSERT_TRUE(p.finite);
    worker.commit(p);
    codec->absorb(p.payload.data(), 1, worker.memory.data());
  }
}

}  // namespace
}  // namespace dgc
