#include "agreed.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "half.h"
#include "selection.h"
#include "value_coding.h"

namespace dgc {
namespace {

class Agreed : public Codec {
 public:
  Agreed(size_t n, size_t k, const ValueCoder& values, float factor)
      : Codec(n, value_bytes(values, k)), k_(k), values_(values), factor_(factor) {}

  size_t sent() const override { return k_; }

  std::string summable() const override {
    return values_ == ValueCoder::float32 || values_ == ValueCoder::float16 ? values_.name() : std::string();
  }

  Proposal code(const float* values, const Context& context) const override {
    std::vector<uint32_t> indices;
    if (!coordinates(context, &indices)) return poisoned();
    Proposal p = begin(std::move(indices));
    p.payload.resize(nbytes());
    for (size_t j = 0; j < k_; ++j) p.sent[j] = factor_ * values[p.dense ? j : p.indices[j]];
    encode_values(values_, p.sent.data(), k_, p.payload.data(), p.sent.data(), context.randomness.own,
                  context.threads);
    return p;
  }

  Proposal recover(const uint8_t* payload, const Context& context) const override {
    std::vector<uint32_t> indices;
    if (!coordinates(context, &indices)) return poisoned();
    Proposal p = begin(std::move(indices));
    decode_values(values_, k_, payload, 0, k_, p.sent.data());
    return p;
  }

  void add(const uint8_t* payloads, size_t count, float* out, float scale,
           const Context& context) const override {
    std::vector<uint32_t> indices;
    if (!coordinates(context, &indices)) {
      if (n() > 0) out[0] = std::numeric_limits<float>::quiet_NaN();
      return;
    }
    std::vector<float> values(k_);
    for (size_t p = 0; p < count; ++p) {
      decode_values(values_, k_, payloads + p * nbytes(), 0, k_, values.data());
      for (size_t j = 0; j < k_; ++j) out[indices.empty() ? j : indices[j]] += scale * values[j];
    }
  }

  std::string check(const uint8_t* payload) const override { return check_values(values_, k_, payload); }

  std::vector<uint8_t> poison() const override {
    std::vector<uint8_t> payload(nbytes());
    std::vector<float> values(k_, std::numeric_limits<float>::quiet_NaN());
    encode_values(values_, values.data(), k_, payload.data(), values.data());
    return payload;
  }

 protected:
  // The k coordinates, strictly increasing. False if they cannot be told, because a worker has opened with
  // something that is not finite.
  virtual bool choose(const Context& context, std::vector<uint32_t>* indices) const = 0;

 private:
  bool coordinates(const Context& context, std::vector<uint32_t>* indices) const {
    indices->clear();
    return k_ == n() || choose(context, indices);
  }

  Proposal begin(std::vector<uint32_t> indices) const {
    Proposal p;
    p.n = n();
    p.dense = k_ == n();
    p.finite = true;
    p.indices = std::move(indices);
    p.sent.resize(k_);
    return p;
  }

  size_t k_;
  ValueCoder values_;
  float factor_;
};

// A permutation of [0, n) as a function: a Feistel network on an even number of bits, applied again to what falls
// outside.
class Permutation {
 public:
  Permutation(size_t n, Key key) : n_(n) {
    while ((size_t{1} << (2 * half_)) < n) ++half_;
    for (size_t round = 0; round < kRounds; ++round) keys_[round] = derive(key, round);
  }

  uint32_t operator()(uint32_t i) const {
    uint64_t x = i;
    do {
      const uint64_t mask = (uint64_t{1} << half_) - 1;
      uint64_t left = x >> half_;
      uint64_t right = x & mask;
      for (const Key& key : keys_) {
        const uint64_t next = left ^ (random_bits(key, static_cast<uint32_t>(right)) & mask);
        left = right;
        right = next;
      }
      x = (left << half_) | right;
    } while (x >= n_);
    return static_cast<uint32_t>(x);
  }

 private:
  static constexpr size_t kRounds = 6;
  size_t n_;
  unsigned half_ = 1;
  Key keys_[kRounds];
};

class Random : public Agreed {
 public:
  using Agreed::Agreed;

 protected:
  bool choose(const Context& context, std::vector<uint32_t>* indices) const override {
    const Permutation permutation(n(), context.randomness.shared);
    indices->resize(sent());
    for (size_t j = 0; j < indices->size(); ++j) (*indices)[j] = permutation(static_cast<uint32_t>(j));
    std::sort(indices->begin(), indices->end());
    return true;
  }
};

// Element i of row r counts in column column(r, i) with sign(r, i): both from one word of random bits.
class Sketch : public Agreed {
 public:
  Sketch(size_t n, size_t k, size_t rows, size_t columns)
      : Agreed(n, k, ValueCoder::float32, 1.0f), rows_(rows), columns_(columns) {}

  Opening opening() const override { return {rows_ * columns_, false}; }

  void open(const float* values, const Context& context, float* out) const override {
    std::fill(out, out + rows_ * columns_, 0.0f);
    for (size_t row = 0; row < rows_; ++row) {
      const Key key = derive(context.randomness.shared, row);
      float* cells = out + row * columns_;
      for (size_t i = 0; i < n(); ++i) {
        const uint32_t bits = random_bits(key, static_cast<uint32_t>(i));
        cells[column(bits)] += signed_by(bits, values[i]);
      }
    }
  }

 protected:
  bool choose(const Context& context, std::vector<uint32_t>* indices) const override {
    for (size_t c = 0; c < rows_ * columns_; ++c) {
      if (!std::isfinite(context.opened[c])) return false;
    }
    std::vector<Key> keys(rows_);
    for (size_t row = 0; row < rows_; ++row) keys[row] = derive(context.randomness.shared, row);
    CandidateList list(sent(), n(), kEverything);
    float estimates[kTile];
    int32_t maxima[kTileBlocks];
    std::vector<float> rows(rows_);
    for (size_t first = 0; first < n(); first += kTile) {
      const size_t count = std::min(kTile, n() - first);
      for (size_t i = 0; i < count; ++i) {
        for (size_t row = 0; row < rows_; ++row) {
          const uint32_t bits = random_bits(keys[row], static_cast<uint32_t>(first + i));
          rows[row] = signed_by(bits, context.opened[row * columns_ + column(bits)]);
        }
        std::nth_element(rows.begin(), rows.begin() + static_cast<long>(rows_ / 2), rows.end());
        estimates[i] = rows[rows_ / 2];
      }
      kernels().block_maxima(estimates, maxima, count);
      list.offer(kernels(), estimates, maxima, first, count);
    }
    list.trim();
    *indices = list.take_indices();
    return true;
  }

 private:
  size_t column(uint32_t bits) const {
    return static_cast<size_t>((static_cast<uint64_t>(bits >> 1) * columns_) >> 31);
  }

  static float signed_by(uint32_t bits, float x) { return bits_float(float_bits(x) ^ (bits << 31)); }

  size_t rows_;
  size_t columns_;
};

constexpr size_t kMostElements = std::numeric_limits<uint32_t>::max();

}  // namespace

std::shared_ptr<const Codec> make_random(Settings* settings) {
  const size_t n = settings->whole("n", 0, kMostElements);
  const size_t k = settings->whole("k", n == 0 ? 0 : 1, n);
  const ValueCoder values(settings->word("values"));
  const double factor = settings->number("factor", 0, 1e9);
  return std::make_shared<Random>(n, k, values, static_cast<float>(factor));
}

std::shared_ptr<const Codec> make_sketch(Settings* settings) {
  const size_t n = settings->whole("n", 0, kMostElements);
  const size_t k = settings->whole("k", n == 0 ? 0 : 1, n);
  const size_t rows = settings->whole("rows", 1, 99);
  const size_t columns = settings->whole("columns", 1, 1u << 30);
  return std::make_shared<Sketch>(n, k, rows, columns);
}

}  // namespace dgc
