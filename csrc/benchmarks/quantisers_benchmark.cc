// Encoding and decoding of 25.6 M values on one thread, beside a plain copy of them. Medians of interleaved
// repetitions, on an idle machine:
//
//   quantisers_benchmark --benchmark_repetitions=15 --benchmark_enable_random_interleaving=true
//                        --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "clones.h"
#include "value_coding.h"

namespace {

using namespace dgc;

constexpr size_t kK = 25600000;

const char* const kCoders[] = {"float32",
                               "float16",
                               "int8",
                               "int4",
                               "sign",
                               "meansign",
                               "onebit:4608",
                               "onebit:64",
                               "onebitcolumns:512",
                               "onebitcolumns:3",
                               "ternary",
                               "qsgd:2:512",
                               "qsgd:4:512",
                               "qsgd:8:512",
                               "dorefa:2",
                               "dorefa:3",
                               "dorefa:8",
                               "natural",
                               "power4"};

std::vector<float> make_values() {
  std::mt19937 random(1);
  std::vector<float> table(1 << 16);
  std::normal_distribution<float> normal;
  for (float& x : table) x = normal(random);
  std::vector<float> values(kK);
  for (float& x : values) x = table[random() & 0xffff] + table[random() & 0xffff];
  return values;
}

const std::vector<float>& values() {
  static const std::vector<float> v = make_values();
  return v;
}

std::vector<float>& output() {
  static std::vector<float> v(kK);
  return v;
}

CLONES void plain_copy(const float* __restrict from, float* __restrict to, size_t n) {
  for (size_t i = 0; i < n; ++i) to[i] = from[i];
}

void copy(benchmark::State& state) {
  const float* from = values().data();
  float* to = output().data();
  for (auto _ : state) {
    plain_copy(from, to, kK);
    benchmark::ClobberMemory();
  }
}

void encode(benchmark::State& state, const std::string& name) {
  const ValueCoder coder(name);
  const float* from = values().data();
  float* sent = output().data();
  std::vector<uint8_t> bytes(value_bytes(coder, kK));
  for (auto _ : state) encode_values(coder, from, kK, bytes.data(), sent, Key{1, 2});
}

void decode(benchmark::State& state, const std::string& name) {
  const ValueCoder coder(name);
  std::vector<uint8_t> bytes(value_bytes(coder, kK));
  encode_values(coder, values().data(), kK, bytes.data(), output().data(), Key{1, 2});
  for (auto _ : state) decode_values(coder, kK, bytes.data(), 0, kK, output().data());
}

int add_benchmarks() {
  const auto add = [](const std::string& name, auto function, const auto&... arguments) {
    benchmark::RegisterBenchmark(name.c_str(), function, arguments...)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  };
  add("copy", copy);
  for (const char* coder : kCoders) {
    add("encode/" + std::string(coder), encode, std::string(coder));
    add("decode/" + std::string(coder), decode, std::string(coder));
  }
  return 0;
}

const int added = add_benchmarks();

}  // namespace
