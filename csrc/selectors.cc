#include "selectors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "half.h"
#include "kernels.h"
#include "quantisers.h"
#include "selection.h"
#include "selector_kernels.h"
#include "sign_sums.h"

namespace dgc {
namespace {

// A coordinate that qualifies, what to send there, and what decides who goes first where there is no room for
// all.
struct Candidate {
  uint32_t index;
  float value;
  float score;
};

// These candidates, at most k and in ascending order of index, filled up with other coordinates of value 0.
Selected filled(const std::vector<Candidate>& candidates, size_t n, size_t k) {
  Selected chosen;
  if (k == n) {
    chosen.values.assign(n, 0.0f);
    for (const Candidate& c : candidates) chosen.values[c.index] = c.value;
    return chosen;
  }
  chosen.indices.reserve(k);
  chosen.values.reserve(k);
  size_t fillers = k - candidates.size();
  uint32_t next = 0;
  const auto fill_up_to = [&](uint32_t end) {
    for (; fillers > 0 && next < end; ++next, --fillers) {
      chosen.indices.push_back(next);
      chosen.values.push_back(0.0f);
    }
  };
  for (const Candidate& c : candidates) {
    fill_up_to(c.index);
    chosen.indices.push_back(c.index);
    chosen.values.push_back(c.value);
    next = c.index + 1;
  }
  fill_up_to(static_cast<uint32_t>(n));
  return chosen;
}

// The k candidates of largest score among all that are added in ascending order of index; ties go to the
// lower.
class Best {
 public:
  explicit Best(size_t k) : k_(k), capacity_(4 * k + 1024) {}

  void add(size_t index, float value, float score) {
    ++qualified_;
    // What comes later loses every tie.
    if (score <= bar_) return;
    if (candidates_.size() == capacity_) {
      prune();
      if (score <= bar_) return;
    }
    candidates_.push_back({static_cast<uint32_t>(index), value, score});
  }

  Selected fitted(size_t n) {
    if (candidates_.size() > k_) prune();
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
    Selected chosen = filled(candidates_, n, k_);
    chosen.overflow = qualified_ - candidates_.size();
    return chosen;
  }

 private:
  void prune() {
    const auto last = candidates_.begin() + static_cast<long>(k_) - 1;
    std::nth_element(candidates_.begin(), last, candidates_.end(),
                     [](const Candidate& a, const Candidate& b) {
                       return a.score != b.score ? a.score > b.score : a.index < b.index;
                     });
    bar_ = last->score;
    candidates_.resize(k_);
  }

  size_t k_;
  size_t capacity_;
  float bar_ = -1.0f;
  size_t qualified_ = 0;
  std::vector<Candidate> candidates_;
};

// visit(i) for every i with |values[i]| > threshold, a magnitude (half.h), in order.
template <class Visit>
void for_larger(const float* values, size_t n, int32_t threshold, const Visit& visit) {
  const Kernels& set = kernels();
  int32_t maxima[kTileBlocks];
  uint8_t hits[kBlock];
  for (size_t first = 0; first < n; first += kTile) {
    const size_t count = std::min(kTile, n - first);
    set.block_maxima(values + first, maxima, count);
    for (size_t begin = 0; begin < count; begin += kBlock) {
      if (maxima[begin / kBlock] <= threshold) continue;
      const size_t length = std::min(kBlock, count - begin);
      find_larger(set, values + first + begin, length, threshold, hits);
      for_hits(hits, length, [&](size_t i) { visit(first + begin + i); });
    }
  }
}

// A sum of squares of what is finite, or of such sums, as float32: finite.
float saturated(double x) {
  return static_cast<float>(std::min(x, double{std::numeric_limits<float>::max()}));
}

float with_sign_of(float magnitude, float sign) { return std::copysign(magnitude, sign); }

// Strom 2015: the sign of each |v'| > threshold, times the threshold.
class Above : public Selector {
 public:
  explicit Above(float threshold) : threshold_(threshold) {}

  Selected select(const float* values, size_t n, size_t k, const Context&) const override {
    Best best(k);
    for_larger(values, n, magnitude(threshold_),
               [&](size_t i) { best.add(i, with_sign_of(threshold_, values[i]), std::fabs(values[i])); });
    return best.fitted(n);
  }

 private:
  float threshold_;
};

// Aji & Heafield 2017, with one threshold for all tensors of a worker: each v' that reaches it. It is found
// in the opening round, from a sample of each tensor: one element at random of each of `samples` parts of
// equal length.
class Quantile : public Selector {
 public:
  Quantile(double share, size_t samples) : share_(share), samples_(samples) {}

  Opening opening() const override { return {samples_, Reduction::quantile, share_}; }

  void open(const float* values, size_t n, const Context& context, float* out) const override {
    for (size_t i = 0; i < samples_; ++i) {
      const size_t begin = i * n / samples_;
      const size_t length = (i + 1) * n / samples_ - begin;
      const double chosen = random_uniform(context.randomness.own, static_cast<uint32_t>(i));
      out[i] = std::fabs(values[begin + static_cast<size_t>(chosen * static_cast<double>(length))]);
    }
  }

  Selected select(const float* values, size_t n, size_t k, const Context& context) const override {
    const float threshold = *context.opened;
    if (std::isnan(threshold)) return {};
    Best best(k);
    // At the threshold or above it, but not at 0.
    for_larger(values, n, std::max(1, magnitude(threshold)) - 1,
               [&](size_t i) { best.add(i, values[i], std::fabs(values[i])); });
    return best.fitted(n);
  }

 private:
  double share_;
  size_t samples_;
};

// Dryden et al. 2016: the same share of the positive and of the negative elements, the largest of each.
class Proportion : public Selector {
 public:
  Selected select(const float* values, size_t n, size_t k, const Context& context) const override {
    const SignSums sums = sum_signs(values, n, context.threads);
    const size_t nonzero = sums.positives + sums.negatives;
    if (nonzero == 0) return filled({}, n, k);
    const size_t room = std::min(k, nonzero);
    // Room for one sign only: the largest of all, so that neither sign waits forever.
    if (room == 1) return filled(largest(values, n, 1, [](float x) { return x; }), n, k);
    // Rounded to nearest, but one of each sign wherever there is room for it.
    size_t quota = (room * sums.positives + nonzero / 2) / nonzero;
    if (sums.positives > 0) quota = std::max<size_t>(quota, 1);
    if (sums.negatives > 0) quota = std::min(quota, room - 1);
    std::vector<Candidate> kept = largest(values, n, quota, [](float x) { return x > 0.0f ? x : 0.0f; });
    const size_t middle = kept.size();
    const std::vector<Candidate> negative =
        largest(values, n, room - quota, [](float x) { return x < 0.0f ? x : 0.0f; });
    kept.insert(kept.end(), negative.begin(), negative.end());
    std::inplace_merge(kept.begin(), kept.begin() + static_cast<long>(middle), kept.end(),
                       [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
    return filled(kept, n, k);
  }

 private:
  // The k largest of view(values[i]) that are not 0, in ascending order of index.
  template <class View>
  static std::vector<Candidate> largest(const float* values, size_t n, size_t k, const View& view) {
    std::vector<Candidate> found;
    if (k == 0) return found;
    CandidateList list(k, n, 0);
    int32_t maxima[kTileBlocks];
    float tile[kTile];
    for (size_t first = 0; first < n; first += kTile) {
      const size_t count = std::min(kTile, n - first);
      for (size_t i = 0; i < count; ++i) tile[i] = view(values[first + i]);
      kernels().block_maxima(tile, maxima, count);
      list.offer(kernels(), tile, maxima, first, count);
    }
    list.trim();
    for (size_t j = 0; j < list.size(); ++j) found.push_back({list.indices()[j], list.values()[j], 0.0f});
    return found;
  }
};

// Chen et al. 2018 (AdaComp): in bins of equal length, with G = v' and H = G plus this step's gradient once
// more, each i with |H_i| >= max |G| of its bin; all values become the mean of the bins' maxima.
class Bins : public Selector {
 public:
  explicit Bins(size_t length) : length_(length) {}

  Selected select(const float* values, size_t n, size_t k, const Context& context) const override {
    Best best(k);
    double sum = 0.0;
    size_t bins = 0;
    uint8_t hits[kTile];
    for (size_t first = 0; first < n; first += length_, ++bins) {
      const size_t end = std::min(n, first + length_);
      const float largest =
          bits_float(static_cast<uint32_t>(kernels().max_magnitude(values + first, end - first)));
      sum += static_cast<double>(largest);
      if (largest == 0.0f) continue;
      for (size_t begin = first; begin < end; begin += kTile) {
        const size_t count = std::min(kTile, end - begin);
        const float* const residual = context.residual ? context.residual + begin : nullptr;
        selector_kernels().find_ahead(values + begin, residual, count, largest, hits);
        for_hits(hits, count, [&](size_t at) {
          const size_t i = begin + at;
          best.add(i, values[i], std::fabs(values[i]));
        });
      }
    }
    const float mean = static_cast<float>(sum / static_cast<double>(std::max<size_t>(1, bins)));
    Selected chosen = best.fitted(n);
    for (float& value : chosen.values) value = value == 0.0f ? 0.0f : with_sign_of(mean, value);
    return chosen;
  }

 private:
  size_t length_;
};

// Wen et al. 2017 (TernGrad): clipped at `clip` standard deviations (0: not), then scale * sign * b with b
// drawn so that the expectation is the clipped gradient. The scale is the largest magnitude, of this worker's
// gradient or, agreed upon, of all workers'.
class Ternarise : public Selector {
 public:
  Ternarise(float clip, bool shared) : clip_(clip), shared_(shared) {}

  const char* coder() const override { return "ternary"; }
  Opening opening() const override { return {shared_ ? size_t{1} : size_t{0}, Reduction::maximum}; }

  void open(const float* values, size_t n, const Context&, float* out) const override {
    if (shared_) *out = scale_of(values, n, limit_of(values, n));
  }

  Selected select(const float* values, size_t n, size_t, const Context& context) const override {
    Selected chosen;
    const float limit = limit_of(values, n);
    const float scale = shared_ ? *context.opened : scale_of(values, n, limit);
    if (std::isfinite(scale)) chosen.coding = make_drawn_ternary(limit, scale);
    return chosen;
  }

 private:
  float limit_of(const float* values, size_t n) const {
    if (clip_ == 0.0f) return std::numeric_limits<float>::max();
    // Equal values have no spread to be clipped to, whatever is left of it by rounding.
    if (std::all_of(values, values + n, [&](float x) { return x == values[0]; }))
      return std::numeric_limits<float>::max();
    // Distances from one of the values, so that nothing cancels where all are close to one another.
    double sum = 0.0;
    double squares = 0.0;
    selector_kernels().sums_of_distances(values, n, values[0], &sum, &squares);
    const double mean = sum / static_cast<double>(n);
    const double variance = std::max(0.0, squares / static_cast<double>(n) - mean * mean);
    const double limit = static_cast<double>(clip_) * std::sqrt(variance);
    return static_cast<float>(std::min(limit, static_cast<double>(std::numeric_limits<float>::max())));
  }

  static float scale_of(const float* values, size_t n, float limit) {
    return std::min(bits_float(static_cast<uint32_t>(kernels().max_magnitude(values, n))), limit);
  }

  float clip_;
  bool shared_;
};

// Tsuzuku et al. 2018 (variance-based compression): with s' = s + this step's second moments, each i with
// v'^2 > alpha * s', and with a threshold tau also |v'| > tau. Sent without tau: v', and s becomes 0; with
// it: sign * tau, and s becomes max(s' - 2 |v'| tau + tau^2, 0). Where nothing is sent, s becomes zeta * s'.
class Unambiguous : public Selector {
 public:
  Unambiguous(float alpha, float zeta, float tau) : alpha_(alpha), zeta_(zeta), tau_(tau) {}

  bool wants_squares() const override { return true; }
  bool keeps_moments() const override { return true; }

  Selected select(const float* values, size_t n, size_t k, const Context& context) const override {
    Best best(k);
    uint8_t hits[kTile];
    for (size_t first = 0; first < n; first += kTile) {
      const size_t count = std::min(kTile, n - first);
      selector_kernels().find_unambiguous(values + first, context.memory + first, context.squares + first,
                                          count, alpha_, tau_, hits);
      for_hits(hits, count, [&](size_t at) {
        const size_t i = first + at;
        const double square = static_cast<double>(saturated(static_cast<double>(values[i] * values[i])));
        const double moment = static_cast<double>(moment_of(context.memory, context, i));
        const float score =
            moment > 0.0 ? saturated(square / moment) : std::numeric_limits<float>::infinity();
        const float value = tau_ > 0.0f ? with_sign_of(tau_, values[i]) : values[i];
        best.add(i, value, score);
      });
    }
    return best.fitted(n);
  }

  void settle(const Proposal& p, const float* residual, const Context& context,
              float* memory) const override {
    const Floats sent = p.values();
    const auto coordinate = [&](size_t j) { return p.dense ? j : size_t{p.indices[j]}; };
    std::vector<float> moments(sent.size());
    for (size_t j = 0; j < sent.size(); ++j) moments[j] = moment_of(memory, context, coordinate(j));
    selector_kernels().decay(context.squares, p.n, zeta_, memory);
    for (size_t j = 0; j < sent.size(); ++j) {
      if (sent[j] != 0.0f) memory[coordinate(j)] = moment_after(moments[j], sent[j], residual[coordinate(j)]);
    }
  }

 private:
  static float moment_of(const float* memory, const Context& context, size_t i) {
    return saturated(static_cast<double>(memory[i] + context.squares[i]));
  }

  // Of a coordinate of which `sent` was sent and `left` is left.
  float moment_after(float moment, float sent, float left) const {
    if (tau_ == 0.0f) return 0.0f;
    const double tau = static_cast<double>(tau_);
    const double before = std::fabs(static_cast<double>(left) + static_cast<double>(sent));
    return saturated(std::max(static_cast<double>(moment) - 2.0 * before * tau + tau * tau, 0.0));
  }

  float alpha_;
  float zeta_;
  float tau_;
};

constexpr double kMost = 1e30;

float positive(Settings* settings, const char* name) {
  return static_cast<float>(settings->number(name, 1e-30, kMost));
}

using Made = std::shared_ptr<const Selector>;

Made make_above(Settings* settings, size_t, size_t) {
  return std::make_shared<Above>(positive(settings, "threshold"));
}

Made make_quantile(Settings* settings, size_t n, size_t) {
  const double share = settings->number("share", 0, 1);
  return std::make_shared<Quantile>(share, settings->whole("samples", 1, n));
}

Made make_bins(Settings* settings, size_t, size_t) {
  return std::make_shared<Bins>(settings->whole("length", 1, 1u << 30));
}

Made make_ternarise(Settings* settings, size_t n, size_t k) {
  if (k != n)
    throw std::invalid_argument("k is " + std::to_string(k) + " of n=" + std::to_string(n) +
                                " with select=ternarise, which selects nothing; allowed: n");
  const double clip = settings->number("clip", 0, kMost);
  return std::make_shared<Ternarise>(static_cast<float>(clip), settings->flag("shared"));
}

Made make_unambiguous(Settings* settings, size_t, size_t) {
  const float alpha = positive(settings, "alpha");
  const double zeta = settings->number("zeta", 0, 1);
  const double tau = settings->number("threshold", 0, kMost);
  return std::make_shared<Unambiguous>(alpha, static_cast<float>(zeta), static_cast<float>(tau));
}

struct Way {
  const char* name;
  Made (*make)(Settings* settings, size_t n, size_t k);
};

const Way kWays[] = {
    {"largest", [](Settings*, size_t, size_t) { return Made(); }},
    {"above", make_above},
    {"quantile", make_quantile},
    {"proportion", [](Settings*, size_t, size_t) -> Made { return std::make_shared<Proportion>(); }},
    {"bins", make_bins},
    {"ternarise", make_ternarise},
    {"unambiguous", make_unambiguous},
};

}  // namespace

std::shared_ptr<const Selector> make_selector(Settings* settings, size_t n, size_t k) {
  const std::string name = settings->word("select");
  std::string allowed;
  for (const Way& way : kWays) {
    if (name == way.name) return way.make(settings, n, k);
    allowed += (allowed.empty() ? "" : ", ") + std::string(way.name);
  }
  throw std::invalid_argument("select is '" + name + "'; allowed: " + allowed);
}

}  // namespace dgc
