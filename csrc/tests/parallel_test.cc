#include "parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace dgc {
namespace {

TEST(Split, CoversInOrderAtMultiplesOf64) {
  for (const size_t n : {0u, 1u, 63u, 64u, 65u, 1000u, 100003u}) {
    for (const int threads : {1, 2, 3, 4, 7}) {
      for (const size_t grain : {1u, 64u, 5000u}) {
        const std::vector<Range> ranges = split(n, threads, grain);
        ASSERT_FALSE(ranges.empty());
        ASSERT_LE(ranges.size(), static_cast<size_t>(threads));
        EXPECT_EQ(ranges.front().begin, 0u);
        EXPECT_EQ(ranges.back().end, n);
        for (size_t i = 1; i < ranges.size(); ++i) {
          EXPECT_EQ(ranges[i].begin, ranges[i - 1].end);
          EXPECT_EQ(ranges[i].begin % 64, 0u);
          EXPECT_LT(ranges[i].begin, ranges[i].end);
        }
      }
    }
  }
}

TEST(Split, UsesNoMoreThreadsThanPay) {
  EXPECT_EQ(split(100000, 4, 1000000).size(), 1u);
  EXPECT_EQ(split(100000, 4, 50000).size(), 2u);
  EXPECT_EQ(split(100000, 4, 1000).size(), 4u);
}

TEST(RunParallel, RunsEachOnceAndRethrows) {
  std::vector<std::atomic<int>> runs(5);
  run_parallel(5, [&](size_t i) { ++runs[i]; });
  for (const auto& count : runs) EXPECT_EQ(count, 1);
  run_parallel(0, [](size_t) { FAIL(); });
  std::atomic<int> ended{0};
  EXPECT_THROW(run_parallel(4,
                            [&](size_t i) {
                              ++ended;
                              if (i == 1) throw std::runtime_error("one");
                            }),
               std::runtime_error);
  EXPECT_EQ(ended, 4);
}

}  // namespace
}  // namespace dgc
