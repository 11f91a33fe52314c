// The passes over 25.6 M elements on one thread, each beside its floor: a plain streaming loop over the same
// arrays. Medians of interleaved repetitions, on an idle machine:
//
//   passes_benchmark --benchmark_repetitions=15 --benchmark_enable_random_interleaving=true
//                    --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <vector>

#include "clones.h"
#include "coordinates.h"
#include "decode.h"
#include "norms.h"
#include "proposal.h"

namespace {

using namespace dgc;

constexpr size_t kN = 25600000;
constexpr size_t kK = kN / 1000;
constexpr float kMomentum = 0.9f;

struct Data {
  std::vector<float> grad, residual, velocity;
  Update update{1.0, 0.0, kMomentum};

  Data() : grad(kN), residual(kN), velocity(kN) {
    std::mt19937 random(1);
    std::vector<float> table(1 << 16);
    std::normal_distribution<float> normal;
    for (float& x : table) x = normal(random);
    for (std::vector<float>* array : {&grad, &residual, &velocity}) {
      for (float& x : *array) x = table[random() & 0xffff] + table[random() & 0xffff];
    }
  }

  Arrays arrays() {
    Arrays a;
    a.n = kN;
    a.grad = grad.data();
    a.residual = residual.data();
    a.velocity = velocity.data();
    return a;
  }
};

Data& data() {
  static Data d;
  return d;
}

ValueCoder value_coder(int64_t number) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int8", "int4"};
  return ValueCoder(kNames[number]);
}

Layout layout(IndexCoder indices = IndexCoder::elias_fano, const ValueCoder& values = ValueCoder::float16) {
  return Layout(kN, kK, indices, values);
}

CLONES void plain_update(const float* __restrict g, float* __restrict u, float* __restrict v, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    u[i] = kMomentum * u[i] + g[i];
    v[i] += u[i];
  }
}

CLONES void plain_update_and_zero(float* __restrict g, float* __restrict u, float* __restrict v, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    u[i] = kMomentum * u[i] + g[i];
    v[i] += u[i];
    g[i] = 0.0f;
  }
}

CLONES float plain_read(const float* g, const float* u, const float* v, size_t n) {
  float lanes[64] = {};
  for (size_t i = 0; i + 64 <= n; i += 64) {
    for (size_t j = 0; j < 64; ++j) lanes[j] += kMomentum * u[i + j] + g[i + j] + v[i + j];
  }
  float sum = 0.0f;
  for (const float x : lanes) sum += x;
  return sum;
}

void encode_floor(benchmark::State& state) {
  Data& d = data();
  for (auto _ : state) plain_update(d.grad.data(), d.velocity.data(), d.residual.data(), kN);
}

void encode_pass(benchmark::State& state) {
  Data& d = data();
  const Layout l = layout();
  for (auto _ : state) benchmark::DoNotOptimize(encode(*largest(l), d.update, d.arrays(), Options()));
}

void propose_floor(benchmark::State& state) {
  Data& d = data();
  for (auto _ : state) {
    benchmark::DoNotOptimize(plain_read(d.grad.data(), d.velocity.data(), d.residual.data(), kN));
  }
}

void propose_pass(benchmark::State& state) {
  Data& d = data();
  const Layout l = layout();
  for (auto _ : state) benchmark::DoNotOptimize(propose(*largest(l), d.update, d.arrays(), Options()));
}

void commit_floor(benchmark::State& state) {
  Data& d = data();
  for (auto _ : state) plain_update_and_zero(d.grad.data(), d.velocity.data(), d.residual.data(), kN);
}

void commit_pass(benchmark::State& state) {
  Data& d = data();
  Options options;
  options.zero_grad = true;
  const Proposal p = propose(*largest(layout()), d.update, d.arrays(), options);
  for (auto _ : state) commit(*largest(layout()), p, d.update, d.arrays(), options);
}

void gradient_check(benchmark::State& state) {
  Data& d = data();
  for (auto _ : state) benchmark::DoNotOptimize(max_magnitude(d.grad.data(), Scalar::float32, kN, 1));
}

void norm(benchmark::State& state) {
  Data& d = data();
  for (auto _ : state) benchmark::DoNotOptimize(sum_squares(d.grad.data(), Scalar::float32, kN, 1));
}

std::vector<uint32_t> coordinates() {
  std::mt19937 random(2);
  std::vector<uint32_t> chosen;
  while (chosen.size() < kK) {
    while (chosen.size() < kK + kK / 8) chosen.push_back(static_cast<uint32_t>(random() % kN));
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  }
  chosen.resize(kK);
  return chosen;
}

// Arguments: index coder, value coder. Per coordinate: time / 25600.
void pack(benchmark::State& state) {
  const Layout l = layout(static_cast<IndexCoder>(state.range(0)), value_coder(state.range(1)));
  const std::vector<uint32_t> indices = coordinates();
  std::vector<float> sent(kK);
  std::vector<uint8_t> payload(l.nbytes());
  for (auto _ : state) l.pack(indices.data(), data().grad.data(), payload.data(), sent.data());
}

void check_and_unpack(benchmark::State& state) {
  const Layout l = layout(static_cast<IndexCoder>(state.range(0)), value_coder(state.range(1)));
  std::vector<uint32_t> indices = coordinates();
  std::vector<float> sent(kK);
  std::vector<uint8_t> payload(l.nbytes());
  l.pack(indices.data(), data().grad.data(), payload.data(), sent.data());
  for (auto _ : state) {
    validate(l, payload.data(), 1, 1);
    l.unpack(payload.data(), indices.data(), sent.data());
  }
}

// Argument: threads. 32 payloads.
void decode_32(benchmark::State& state) {
  constexpr size_t kPayloads = 32;
  const Layout l = layout();
  const std::vector<uint32_t> indices = coordinates();
  std::vector<float> sent(kK), out(kN);
  std::vector<uint8_t> payloads(kPayloads * l.nbytes());
  for (size_t p = 0; p < kPayloads; ++p) {
    l.pack(indices.data(), data().grad.data(), payloads.data() + p * l.nbytes(), sent.data());
  }
  for (auto _ : state) {
    decode_add(l, payloads.data(), kPayloads, out.data(), 1.0f, static_cast<int>(state.range(0)));
  }
}

#define DGC_BENCHMARK(function) BENCHMARK(function)->Unit(benchmark::kMillisecond)->UseRealTime()

DGC_BENCHMARK(encode_floor);
DGC_BENCHMARK(encode_pass);
DGC_BENCHMARK(propose_floor);
DGC_BENCHMARK(propose_pass);
DGC_BENCHMARK(commit_floor);
DGC_BENCHMARK(commit_pass);
DGC_BENCHMARK(gradient_check);
DGC_BENCHMARK(norm);
BENCHMARK(pack)
    ->ArgsProduct({{0, 1, 2}, {1}})
    ->ArgsProduct({{0}, {0, 2, 3, 4}})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(check_and_unpack)
    ->ArgsProduct({{0, 1, 2}, {1}})
    ->ArgsProduct({{0}, {0, 2, 3, 4}})
    ->Unit(benchmark::kMicrosecond);
DGC_BENCHMARK(decode_32)->Arg(1)->Arg(2);

}  // namespace
