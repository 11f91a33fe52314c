#include "selectors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cases.h"
#include "kinds.h"
#include "workers.h"

namespace dgc {
namespace {

using test::Worker;
using test::dense;

TEST(Selectors, ThoseThatAnErrorAllowsAreKnown) {
  const auto message = [](const std::string& name) -> std::string {
    try {
      make_codec("coordinates n=9 k=2 indices=int32 values=float32 select=" + name);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  const std::vector<std::string> names = test::allowed(message("unheard"));
  EXPECT_GE(names.size(), 7u);
  for (const std::string& name : names) EXPECT_EQ(message(name).find("select is"), std::string::npos) << name;
}

TEST(Proportion, OneCoordinateGoesToTheLargerSign) {
  Worker worker(make_codec("coordinates n=5 k=1 indices=int32 values=float32 select=proportion"),
                {1, 2, -3, 4, -5});
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  for (const float expected : {-5.0f, 8.0f, -10.0f}) {
    const Proposal p = worker.propose();
    EXPECT_EQ(p.sent[0], expected);
    worker.commit(p);
  }
}

TEST(Ternarise, CodesAnEmptyTensor) {
  const auto codec =
      make_codec("coordinates n=0 k=0 indices=int32 values=ternary select=ternarise clip=2.5 shared=0");
  const Proposal p = Worker(codec, {}).propose();
  EXPECT_TRUE(p.finite);
  EXPECT_TRUE(p.payload.empty());
}

TEST(Ternarise, DoesNotClipEqualValues) {
  const auto codec =
      make_codec("coordinates n=1000 k=1000 indices=int32 values=ternary select=ternarise clip=2.5 shared=0");
  Worker worker(codec, std::vector<float>(1000, 0.1f));
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  EXPECT_EQ(dense(worker.propose()), worker.grad);
}

TEST(Unambiguous, AMomentIsNeverInfinite) {
  for (const char* const threshold : {"0", "1e19", "1e30"}) {
    const auto codec = make_codec(
        std::string("coordinates n=4 k=4 indices=int32 values=float32 select=unambiguous alpha=1 zeta=0.9") +
        " threshold=" + threshold);
    Worker worker(codec, std::vector<float>(4, 1e30f));
    std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
    for (int step = 0; step < 4; ++step) {
      worker.commit(worker.propose());
      for (const float moment : worker.memory) ASSERT_TRUE(std::isfinite(moment));
    }
  }
}

}  // namespace
}  // namespace dgc
