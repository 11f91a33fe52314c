// Work split into contiguous ranges over threads.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace dgc {

struct Range {
  size_t begin;
  size_t end;
};

// [0, n) in at most `threads` ranges, in order, whose boundaries are multiples of 64 (except n itself) and
// which hold at least `grain` elements each where there are several. Always at least one range, empty if
// n == 0.
std::vector<Range> split(size_t n, int threads, size_t grain);

// The same with boundaries anywhere: for n units of work that are not single elements.
std::vector<Range> split_units(size_t n, int threads, size_t grain);

// work(i) for every i in [0, count), each on a thread of its own, the last on the caller's.
// Returns when all have ended; rethrows one of the exceptions, if any.
void run_parallel(size_t count, const std::function<void(size_t)>& work);

}  // namespace dgc
