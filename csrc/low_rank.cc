#include "low_rank.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "randomness.h"

namespace dgc {
namespace {

constexpr size_t kGrain = 1 << 14;  // elements per thread at least

// Sum of a[i] * b[i] in 16 interleaved parts, an order of additions that depends on `count` only.
float dot(const float* a, const float* b, size_t count) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) lanes[i % kLanes] += a[i] * b[i];
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  return sum;
}

class LowRank : public Codec {
 public:
  LowRank(size_t rows, size_t columns, size_t rank)
      : Codec(rows * columns, columns * rank * sizeof(float)), rows_(rows), columns_(columns), rank_(rank) {}

  std::string summable() const override { return "float32"; }
  Opening opening() const override { return {rows_ * rank_, false}; }
  size_t memory() const override { return columns_ * rank_; }

  // P is kept transposed, rank x rows, and Q rank x columns: every inner loop runs over contiguous numbers.
  void open(const float* values, const Context& context, float* out) const override {
    const std::vector<float> basis = basis_of(context);
    rows_in_parallel(context.threads, [&](size_t row) {
      for (size_t r = 0; r < rank_; ++r)
        out[r * rows_ + row] = dot(values + row * columns_, basis.data() + r * columns_, columns_);
    });
  }

  Proposal code(const float* values, const Context& context) const override {
    const std::vector<double> p = orthonormal(context.opened);
    std::vector<float> q(columns_ * rank_, 0.0f);
    for (size_t row = 0; row < rows_; ++row) {
      for (size_t r = 0; r < rank_; ++r) {
        const float factor = static_cast<float>(p[r * rows_ + row]);
        float* out = q.data() + r * columns_;
        for (size_t c = 0; c < columns_; ++c) out[c] += factor * values[row * columns_ + c];
      }
    }
    const bool finite = std::all_of(q.begin(), q.end(), [](float x) { return std::isfinite(x); });
    if (!finite) return poisoned();
    Proposal proposal;
    proposal.payload.resize(nbytes());
    std::memcpy(proposal.payload.data(), q.data(), nbytes());
    return with_values(std::move(proposal), q, p, context.threads);
  }

  Proposal recover(const uint8_t* payload, const Context& context) const override {
    std::vector<float> q(columns_ * rank_);
    std::memcpy(q.data(), payload, nbytes());
    return with_values(Proposal(), q, orthonormal(context.opened), context.threads);
  }

  void add(const uint8_t* payloads, size_t count, float* out, float scale,
           const Context& context) const override {
    const std::vector<double> p = orthonormal(context.opened);
    std::vector<float> q(columns_ * rank_);
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(q.data(), payloads + i * nbytes(), nbytes());
      for (float& x : q) x *= scale;
      add_product(p, q, out, context.threads);
    }
  }

  std::string check(const uint8_t*) const override { return {}; }

  std::vector<uint8_t> poison() const override {
    std::vector<uint8_t> payload(nbytes());
    const std::vector<float> q(columns_ * rank_, std::numeric_limits<float>::quiet_NaN());
    std::memcpy(payload.data(), q.data(), nbytes());
    return payload;
  }

  void absorb(const uint8_t* payloads, size_t count, float* memory) const override {
    std::fill(memory, memory + columns_ * rank_, 0.0f);
    for (size_t i = 0; i < count; ++i) {
      for (size_t c = 0; c < columns_ * rank_; ++c) {
        float x;
        std::memcpy(&x, payloads + i * nbytes() + c * sizeof x, sizeof x);
        memory[c] += x;
      }
    }
  }

 private:
  template <class Work>
  void rows_in_parallel(int threads, const Work& work) const {
    const std::vector<Range> ranges = split(rows_, threads, 1 + kGrain / std::max<size_t>(1, columns_));
    run_parallel(ranges.size(), [&](size_t i) {
      for (size_t row = ranges[i].begin; row < ranges[i].end; ++row) work(row);
    });
  }

  // Q of the step before, or, where it holds nothing, numbers drawn alike by all workers. Columns have the
  // length 1: only their directions matter, and Q is as large as the gradient, so that M Q could overflow.
  std::vector<float> basis_of(const Context& context) const {
    std::vector<float> basis(context.memory, context.memory + columns_ * rank_);
    for (size_t r = 0; r < rank_; ++r) {
      float* column = basis.data() + r * columns_;
      if (std::all_of(column, column + columns_, [](float x) { return x == 0.0f; })) {
        const Key key = derive(context.randomness.shared, r);
        // Halfway between multiples of 2^-23, so never 0.
        for (size_t c = 0; c < columns_; ++c)
          column[c] = 2.0f * random_uniform(key, static_cast<uint32_t>(c)) - (1.0f - 0x1p-24f);
      }
      double squares = 0.0;
      for (size_t c = 0; c < columns_; ++c)
        squares += static_cast<double>(column[c]) * static_cast<double>(column[c]);
      const double length = std::sqrt(squares);
      for (size_t c = 0; c < columns_; ++c)
        column[c] = static_cast<float>(static_cast<double>(column[c]) / length);
    }
    return basis;
  }

  // P with orthonormal columns (modified Gram-Schmidt, twice, in double); a column that depends on those before
  // becomes 0. Whatever is not finite stays so.
  std::vector<double> orthonormal(const float* opened) const {
    std::vector<double> p(opened, opened + rows_ * rank_);
    for (size_t r = 0; r < rank_; ++r) {
      double* column = p.data() + r * rows_;
      const double before = norm(column);
      for (int pass = 0; pass < 2; ++pass) {
        for (size_t other = 0; other < r; ++other) {
          const double* known = p.data() + other * rows_;
          double overlap = 0.0;
          for (size_t i = 0; i < rows_; ++i) overlap += known[i] * column[i];
          for (size_t i = 0; i < rows_; ++i) column[i] -= overlap * known[i];
        }
      }
      const double length = norm(column);
      const bool dependent = length <= 1e-7 * before;
      for (size_t i = 0; i < rows_; ++i) column[i] = dependent ? 0.0 : column[i] / length;
    }
    return p;
  }

  double norm(const double* column) const {
    double squares = 0.0;
    for (size_t i = 0; i < rows_; ++i) squares += column[i] * column[i];
    return std::sqrt(squares);
  }

  // out += P Q^T.
  void add_product(const std::vector<double>& p, const std::vector<float>& q, float* out, int threads) const {
    rows_in_parallel(threads, [&](size_t row) {
      for (size_t r = 0; r < rank_; ++r) {
        const float factor = static_cast<float>(p[r * rows_ + row]);
        const float* from = q.data() + r * columns_;
        for (size_t c = 0; c < columns_; ++c) out[row * columns_ + c] += factor * from[c];
      }
    });
  }

  Proposal with_values(Proposal proposal, const std::vector<float>& q, const std::vector<double>& p,
                       int threads) const {
    proposal.n = n();
    proposal.dense = true;
    proposal.finite = true;
    proposal.sent.assign(n(), 0.0f);
    add_product(p, q, proposal.sent.data(), threads);
    return proposal;
  }

  size_t rows_;
  size_t columns_;
  size_t rank_;
};

}  // namespace

std::shared_ptr<const Codec> make_low_rank(Settings* settings) {
  constexpr size_t kMost = std::numeric_limits<uint32_t>::max();
  const size_t rows = settings->whole("rows", 1, kMost);
  const size_t columns = settings->whole("columns", 1, kMost / rows);
  const size_t rank = settings->whole("rank", 1, std::min(rows, columns));
  return std::make_shared<LowRank>(rows, columns, rank);
}

}  // namespace dgc
