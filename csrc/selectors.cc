#include "selectors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "half.h"

namespace dgc {
namespace {

// A coordinate that qualifies, what to send there, and what decides who goes first where there is no room for all.
struct Candidate {
  uint32_t index;
  float value;
  float score;
};

// The k candidates of largest score, ties to the lower index; filled up with other coordinates of value 0.
// candidates: in ascending order of index.
Selected fitted(std::vector<Candidate> candidates, size_t n, size_t k) {
  Selected chosen;
  if (candidates.size() > k) {
    chosen.overflow = candidates.size() - k;
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<long>(k), candidates.end(),
                     [](const Candidate& a, const Candidate& b) {
                       return a.score != b.score ? a.score > b.score : a.index < b.index;
                     });
    candidates.resize(k);
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
  }
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

float with_sign_of(float magnitude, float sign) { return std::copysign(magnitude, sign); }

// Strom 2015: the sign of each |v'| > threshold, times the threshold.
class Above : public Selector {
 public:
  explicit Above(float threshold) : threshold_(threshold) {}

  Selected select(const float* values, size_t n, size_t k, const Context&) const override {
    std::vector<Candidate> candidates;
    for (size_t i = 0; i < n; ++i) {
      const float size = std::fabs(values[i]);
      if (size > threshold_)
        candidates.push_back({static_cast<uint32_t>(i), with_sign_of(threshold_, values[i]), size});
    }
    return fitted(std::move(candidates), n, k);
  }

 private:
  float threshold_;
};

// Dryden et al. 2016: the same share of the positive and of the negative elements, the largest of each.
class Proportion : public Selector {
 public:
  Selected select(const float* values, size_t n, size_t k, const Context&) const override {
    std::vector<Candidate> sides[2];
    for (size_t i = 0; i < n; ++i) {
      if (values[i] == 0.0f) continue;
      sides[values[i] < 0.0f].push_back({static_cast<uint32_t>(i), values[i], std::fabs(values[i])});
    }
    const size_t nonzero = sides[0].size() + sides[1].size();
    if (nonzero == 0) return fitted({}, n, k);
    const size_t room = std::min(k, nonzero);
    if (room == 1) {
      // Room for one sign only: the largest of all, so that neither sign waits forever.
      sides[0].insert(sides[0].end(), sides[1].begin(), sides[1].end());
      return fitted(std::move(sides[0]), n, k);
    }
    // Rounded to nearest, but one of each sign wherever there is room for it.
    size_t quota = (room * sides[0].size() + nonzero / 2) / nonzero;
    if (!sides[0].empty()) quota = std::max<size_t>(quota, 1);
    if (!sides[1].empty()) quota = std::min(quota, room - 1);
    const size_t quotas[2] = {quota, room - quota};
    std::vector<Candidate> kept;
    for (int side = 0; side < 2; ++side) {
      Selected best = fitted(std::move(sides[side]), n + 1, std::max<size_t>(1, quotas[side]));
      for (size_t j = 0; j < quotas[side]; ++j) {
        if (best.values[j] != 0.0f) kept.push_back({best.indices[j], best.values[j], 0.0f});
      }
    }
    std::sort(kept.begin(), kept.end(),
              [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
    return fitted(std::move(kept), n, k);
  }
};

// Chen et al. 2018 (AdaComp): in bins of equal length, with G = v' and H = G plus this step's gradient once more,
// each i with |H_i| >= max |G| of its bin; all values become the mean of the bins' maxima.
class Bins : public Selector {
 public:
  explicit Bins(size_t length) : length_(length) {}

  Selected select(const float* values, size_t n, size_t k, const Context& context) const override {
    std::vector<Candidate> candidates;
    double sum = 0.0;
    size_t bins = 0;
    for (size_t first = 0; first < n; first += length_, ++bins) {
      const size_t end = std::min(n, first + length_);
      float largest = 0.0f;
      for (size_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(values[i]));
      sum += static_cast<double>(largest);
      if (largest == 0.0f) continue;
      for (size_t i = first; i < end; ++i) {
        const float before = context.residual ? context.residual[i] : 0.0f;
        const float ahead = values[i] + (values[i] - before);
        if (std::fabs(ahead) >= largest)
          candidates.push_back({static_cast<uint32_t>(i), values[i], std::fabs(values[i])});
      }
    }
    const float mean = static_cast<float>(sum / static_cast<double>(std::max<size_t>(1, bins)));
    for (Candidate& c : candidates) c.value = c.value == 0.0f ? 0.0f : with_sign_of(mean, c.value);
    return fitted(std::move(candidates), n, k);
  }

 private:
  size_t length_;
};

// Wen et al. 2017 (TernGrad): clipped at `clip` standard deviations (0: not), then scale * sign * b with b drawn
// so that the expectation is the clipped gradient. The scale is the largest magnitude, of this worker's gradient
// or, agreed upon, of all workers'.
class Ternarise : public Selector {
 public:
  Ternarise(float clip, bool shared) : clip_(clip), shared_(shared) {}

  Opening opening() const override { return {shared_ ? size_t{1} : size_t{0}, true}; }

  void open(const float* values, size_t n, const Context&, float* out) const override {
    if (shared_) *out = scale_of(values, n, limit_of(values, n));
  }

  Selected select(const float* values, size_t n, size_t, const Context& context) const override {
    Selected chosen;
    const float limit = limit_of(values, n);
    const float scale = shared_ ? *context.opened : scale_of(values, n, limit);
    if (!std::isfinite(scale)) return chosen;
    chosen.values.resize(n);
    const Key key = context.randomness.own;
    for (size_t i = 0; i < n; ++i) {
      const float size = std::min(std::fabs(values[i]), limit);
      const bool up = random_uniform(key, static_cast<uint32_t>(i)) * scale < size;
      chosen.values[i] = up ? with_sign_of(scale, values[i]) : 0.0f;
    }
    return chosen;
  }

 private:
  float limit_of(const float* values, size_t n) const {
    if (clip_ == 0.0f) return std::numeric_limits<float>::max();
    // Equal values have no spread to be clipped to, whatever is left of it by rounding.
    if (std::all_of(values, values + n, [&](float x) { return x == values[0]; }))
      return std::numeric_limits<float>::max();
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<double>(values[i]);
    const double mean = sum / static_cast<double>(n);
    double squares = 0.0;
    for (size_t i = 0; i < n; ++i) {
      const double distance = static_cast<double>(values[i]) - mean;
      squares += distance * distance;
    }
    const double limit = static_cast<double>(clip_) * std::sqrt(squares / static_cast<double>(n));
    return static_cast<float>(std::min(limit, static_cast<double>(std::numeric_limits<float>::max())));
  }

  static float scale_of(const float* values, size_t n, float limit) {
    float largest = 0.0f;
    for (size_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(values[i]));
    return std::min(largest, limit);
  }

  float clip_;
  bool shared_;
};

// Tsuzuku et al. 2018 (variance-based compression): with s' = s + this step's second moments, each i with
// v'^2 > alpha * s', and with a threshold tau also |v'| > tau. Sent without tau: v', and s becomes 0; with it:
// sign * tau, and s becomes max(s' - 2 |v'| tau + tau^2, 0). Where nothing is sent, s becomes zeta * s'.
class Unambiguous : public Selector {
 public:
  Unambiguous(float alpha, float zeta, float tau) : alpha_(alpha), zeta_(zeta), tau_(tau) {}

  bool wants_squares() const override { return true; }
  bool keeps_moments() const override { return true; }

  Selected select(const float* values, size_t n, size_t k, const Context& context) const override {
    std::vector<Candidate> candidates;
    for (size_t i = 0; i < n; ++i) {
      const double square = static_cast<double>(saturated(static_cast<double>(values[i] * values[i])));
      const double moment = static_cast<double>(moment_of(context.memory, context, i));
      if (!(square > static_cast<double>(alpha_) * moment) || !(std::fabs(values[i]) > tau_)) continue;
      const float score = moment > 0.0 ? saturated(square / moment) : std::numeric_limits<float>::infinity();
      const float value = tau_ > 0.0f ? with_sign_of(tau_, values[i]) : values[i];
      candidates.push_back({static_cast<uint32_t>(i), value, score});
    }
    return fitted(std::move(candidates), n, k);
  }

  void settle(const Proposal& p, const float* residual, const Context& context, float* memory) const override {
    size_t j = 0;
    for (size_t i = 0; i < p.n; ++i) {
      const float moment = moment_of(memory, context, i);
      const bool listed = p.dense || (j < p.indices.size() && p.indices[j] == i);
      const float sent = listed ? p.sent[p.dense ? i : j] : 0.0f;
      if (listed) ++j;
      if (sent == 0.0f) {
        memory[i] = zeta_ * moment;
      } else if (tau_ == 0.0f) {
        memory[i] = 0.0f;
      } else {
        const double tau = static_cast<double>(tau_);
        const double before = std::fabs(static_cast<double>(residual[i]) + static_cast<double>(sent));
        const double left = static_cast<double>(moment) - 2.0 * before * tau + tau * tau;
        memory[i] = saturated(std::max(left, 0.0));
      }
    }
  }

 private:
  // Squares of what is finite, but must not become infinite: that would be for ever.
  static float saturated(double x) {
    return static_cast<float>(std::min(x, static_cast<double>(std::numeric_limits<float>::max())));
  }

  static float moment_of(const float* memory, const Context& context, size_t i) {
    return saturated(static_cast<double>(memory[i] + context.squares[i]));
  }

  float alpha_;
  float zeta_;
  float tau_;
};

constexpr double kMost = 1e30;

float positive(Settings* settings, const char* name) {
  return static_cast<float>(settings->number(name, 1e-30, kMost));
}

}  // namespace

std::shared_ptr<const Selector> make_selector(Settings* settings, size_t n, size_t k) {
  const std::string name = settings->word("select");
  if (name == "largest") return nullptr;
  if (name == "above") return std::make_shared<Above>(positive(settings, "threshold"));
  if (name == "proportion") return std::make_shared<Proportion>();
  if (name == "bins") return std::make_shared<Bins>(settings->whole("length", 1, 1u << 30));
  if (name == "ternarise") {
    if (k != n)
      throw std::invalid_argument("k is " + std::to_string(k) + " of n=" + std::to_string(n) +
                                  " with select=ternarise, which selects nothing; allowed: n");
    const double clip = settings->number("clip", 0, kMost);
    return std::make_shared<Ternarise>(static_cast<float>(clip), settings->flag("shared"));
  }
  if (name == "unambiguous") {
    const float alpha = positive(settings, "alpha");
    const double zeta = settings->number("zeta", 0, 1);
    const double tau = settings->number("threshold", 0, kMost);
    return std::make_shared<Unambiguous>(alpha, static_cast<float>(zeta), static_cast<float>(tau));
  }
  throw std::invalid_argument("select is '" + name +
                              "'; allowed: largest, above, proportion, bins, ternarise, unambiguous");
}

}  // namespace dgc
