#include "parallel.h"

#include <algorithm>
#include <exception>
#include <system_error>
#include <thread>

namespace dgc {

std::vector<Range> split_units(size_t n, int threads, size_t grain) {
  const size_t most = std::max<size_t>(1, n / std::max<size_t>(1, grain));
  const size_t parts = std::min(static_cast<size_t>(std::max(1, threads)), most);
  std::vector<Range> ranges;
  for (size_t i = 0; i < parts; ++i) {
    const size_t begin = n * i / parts;
    const size_t end = n * (i + 1) / parts;
    if (begin < end || ranges.empty()) ranges.push_back({begin, end});
  }
  return ranges;
}

std::vector<Range> split(size_t n, int threads, size_t grain) {
  constexpr size_t kUnit = 64;
  const size_t most = std::max<size_t>(1, n / std::max<size_t>(1, grain));
  const size_t parts = std::min(static_cast<size_t>(std::max(1, threads)), most);
  const size_t units = (n + kUnit - 1) / kUnit;
  std::vector<Range> ranges;
  for (size_t i = 0; i < parts; ++i) {
    const size_t begin = std::min(n, units * i / parts * kUnit);
    const size_t end = std::min(n, units * (i + 1) / parts * kUnit);
    if (begin < end || ranges.empty()) ranges.push_back({begin, end});
  }
  return ranges;
}

void run_parallel(size_t count, const std::function<void(size_t)>& work) {
  if (count == 0) return;
  std::vector<std::exception_ptr> errors(count);
  const auto guarded = [&](size_t i) {
    try {
      work(i);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(count - 1);
  for (size_t i = 0; i + 1 < count; ++i) {
    try {
      threads.emplace_back(guarded, i);
    } catch (const std::system_error&) {
      guarded(i);  // the system gives no more threads: slower, not wrong
    }
  }
  guarded(count - 1);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace dgc
