// Data and reference results shared by the tests.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "buffers.h"
#include "half.h"
#include "kernels.h"

namespace dgc::test {

// Drawn once: under a sanitizer, drawing takes as long as what is tested.
inline const std::vector<float>& normal(size_t n, uint64_t seed, float scale = 1.0f) {
  static std::map<std::tuple<size_t, uint64_t, float>, std::vector<float>> drawn;
  std::vector<float>& x = drawn[{n, seed, scale}];
  if (x.size() == n) return x;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> distribution(0.0f, scale);
  x.resize(n);
  for (float& value : x) value = distribution(random);
  return x;
}

// The k coordinates of largest magnitude, ties to the lower index, by sorting all of them.
inline std::vector<uint32_t> best(const std::vector<float>& v, size_t k) {
  std::vector<uint32_t> order(v.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return std::fabs(v[a]) > std::fabs(v[b]); });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

// k strictly increasing coordinates below n.
inline std::vector<uint32_t> random_coordinates(size_t n, size_t k, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> chosen;
  size_t left = k;
  for (size_t i = 0; i < n && left > 0; ++i) {
    if (random() % (n - i) < left) {
      chosen.push_back(static_cast<uint32_t>(i));
      --left;
    }
  }
  return chosen;
}

template <class Floats>
bool same_float_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return same_float_bits(a, b);
}

inline bool same_bits(const Floats& a, const Floats& b) { return same_float_bits(a, b); }

template <class Bytes, class Others>
bool same_bytes(const Bytes& a, const Others& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// The list that an error ends with: "...; allowed: one, another".
inline std::vector<std::string> allowed(const std::string& message) {
  std::vector<std::string> names;
  const std::string before = "allowed: ";
  std::string rest = message.substr(message.find(before) + before.size());
  for (size_t comma; (comma = rest.find(", ")) != std::string::npos; rest = rest.substr(comma + 2)) {
    names.push_back(rest.substr(0, comma));
  }
  names.push_back(rest);
  return names;
}

struct Named {
  std::string name;
  std::vector<float> values;
};

// Arrays of n values that are hard for a selection.
inline std::vector<Named> hard_arrays(size_t n) {
  std::vector<Named> cases;
  const auto fill = [&](const char* name, auto value) {
    std::vector<float> x(n);
    for (size_t i = 0; i < n; ++i) x[i] = value(i);
    cases.push_back({name, std::move(x)});
  };
  const std::vector<float> noise = normal(n, 7);
  std::vector<float> sorted = noise;
  std::sort(sorted.begin(), sorted.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  fill("random", [&](size_t i) { return noise[i]; });
  fill("equal", [](size_t) { return 0.5f; });
  fill("equal, signs alternating", [](size_t i) { return i % 2 ? 0.5f : -0.5f; });
  fill("zero", [](size_t i) { return i % 2 ? 0.0f : -0.0f; });
  fill("ascending", [&](size_t i) { return sorted[i]; });
  fill("descending", [&](size_t i) { return sorted[n - 1 - i]; });
  fill("few distinct", [&](size_t i) { return std::round(noise[i]); });
  fill("few distinct, descending", [&](size_t i) { return std::round(sorted[n - 1 - i]); });
  fill("subnormal", [&](size_t i) { return noise[i] * 1e-41f; });
  fill("huge", [&](size_t i) { return noise[i] * 1e37f; });
  fill("one large", [&](size_t i) { return i == n / 2 ? 3.0f : 0.0f; });
  fill("mostly zero", [&](size_t i) { return i % 97 == 5 ? noise[i] : 0.0f; });
  fill("clustered", [&](size_t i) { return i < n / 100 + 1 ? 100.0f + noise[i] : noise[i] * 1e-3f; });
  fill("heavy tail", [&](size_t i) { return noise[i] / (1e-6f + std::fabs(noise[n - 1 - i])); });
  return cases;
}

// Runs the rest of its scope on the given instruction set.
class ForcedKernels {
 public:
  explicit ForcedKernels(const Kernels* set) { force_kernels(set); }
  ~ForcedKernels() { force_kernels(nullptr); }
};

}  // namespace dgc::test
