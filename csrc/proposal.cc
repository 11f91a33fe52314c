#include "proposal.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "norms.h"
#include "parallel.h"
#include "passes.h"
#include "threshold.h"

namespace dgc {
namespace {

constexpr size_t kGrain = 1 << 14;  // elements per thread at least

using Scan = std::function<bool(size_t begin, size_t end, CandidateList* list)>;

// Whether work(begin, end) holds for every range of [0, n).
template <class Work>
bool all_ranges(size_t n, int threads, const Work& work) {
  const std::vector<Range> ranges = split(n, threads, kGrain);
  std::atomic<bool> all{true};
  run_parallel(ranges.size(), [&](size_t i) {
    if (!work(ranges[i].begin, ranges[i].end)) all = false;
  });
  return all;
}

// One list of all ranges' candidates above `threshold`, in index order. False if a value is not finite.
bool collect(size_t n, size_t k, int32_t threshold, int threads, const Scan& scan, CandidateList* merged) {
  const std::vector<Range> ranges = split(n, threads, kGrain);
  std::vector<CandidateList> lists;
  for (const Range& range : ranges) lists.emplace_back(k, range.end - range.begin, threshold);
  std::atomic<bool> finite{true};
  run_parallel(ranges.size(), [&](size_t i) {
    if (!scan(ranges[i].begin, ranges[i].end, &lists[i])) finite = false;
  });
  *merged = std::move(lists[0]);
  for (size_t i = 1; i < lists.size(); ++i) merged->append(lists[i]);
  return finite;
}

Proposal poisoned(const Layout& layout) {
  Proposal p{layout, false, layout.poison(), {}, {}};
  p.sent.assign(layout.k(), std::numeric_limits<float>::quiet_NaN());
  if (!layout.dense()) {
    p.indices.resize(layout.k());
    std::iota(p.indices.begin(), p.indices.end(), 0u);
  }
  return p;
}

Proposal packed(const Layout& layout, const uint32_t* indices, const float* values) {
  Proposal p{layout, true, {}, {}, {}};
  p.payload.resize(layout.nbytes());
  p.sent.resize(layout.k());
  layout.pack(indices, values, p.payload.data(), p.sent.data());
  return p;
}

// The best k among all coordinates: `scan` offers those above a guessed threshold, and if they are too few
// `rescan` offers everything to a list that raises its own threshold.
Proposal select(const Layout& layout, const Pass& pass, const Options& options, const Scan& scan,
                const Scan& rescan, std::vector<float>* values) {
  const size_t n = layout.n();
  const size_t k = layout.k();
  const int32_t guess =
      guess_threshold(pass.kernels, pass.arrays, pass.coefficients, pass.memory, k, options.sample_ratio);
  CandidateList list(k, 0, kEverything);
  if (!collect(n, k, guess, options.threads, scan, &list)) return poisoned(layout);
  if (list.size() < k && !collect(n, k, kEverything, options.threads, rescan, &list)) return poisoned(layout);
  list.trim();
  *values = list.take_values();
  std::vector<uint32_t> indices = list.take_indices();
  Proposal p = packed(layout, indices.data(), values->data());
  p.indices = std::move(indices);
  return p;
}

// Bound of |ghat| over all elements.
double gradient_bound(const Arrays& a, const Update& update, int threads) {
  double bound =
      std::abs(update.unscale) * static_cast<double>(max_magnitude(a.grad, a.grad_type, a.n, threads));
  if (a.weights) {
    bound += std::abs(update.weight_decay) *
             static_cast<double>(max_magnitude(a.weights, a.weights_type, a.n, threads));
  }
  return bound;
}

}  // namespace

void Proposal::masked(float* out) const {
  if (layout.dense()) {
    std::copy(sent.begin(), sent.end(), out);
    return;
  }
  std::fill(out, out + layout.n(), 0.0f);
  for (size_t j = 0; j < sent.size(); ++j) out[indices[j]] = sent[j];
}

Proposal propose(const Layout& layout, const Update& update, const Arrays& a, const Options& options) {
  const Pass pass(kernels(), a, update);
  if (layout.dense()) {
    std::vector<float> values(layout.n());
    const bool finite = all_ranges(a.n, options.threads, [&](size_t begin, size_t end) {
      return pass.preview(begin, end, nullptr, values.data());
    });
    return finite ? packed(layout, nullptr, values.data()) : poisoned(layout);
  }
  const Scan scan = [&](size_t begin, size_t end, CandidateList* list) {
    return pass.preview(begin, end, list, nullptr);
  };
  std::vector<float> values;
  return select(layout, pass, options, scan, scan, &values);
}

void commit(const Proposal& proposal, const Update& update, const Arrays& a, const Options& options) {
  const Pass pass(kernels(), a, update);
  const Layout& layout = proposal.layout;
  const std::vector<Range> ranges = split(a.n, options.threads, kGrain);
  run_parallel(ranges.size(), [&](size_t i) {
    pass.commit(ranges[i].begin, ranges[i].end, layout.dense() ? nullptr : proposal.indices.data(),
                proposal.sent.data(), layout.k(), options.mask_velocity && !layout.dense(),
                options.zero_grad);
  });
}

Proposal encode(const Layout& layout, const Update& update, const Arrays& a, const Options& options) {
  // Far from overflow, a look at the gradient is enough to know that the step is finite. Everything else, NaN
  // included, goes through the transaction.
  constexpr double kSafe = 1152921504606846976.0;  // 2^60
  if (!options.assume_finite && !(gradient_bound(a, update, options.threads) < kSafe)) {
    Proposal p = propose(layout, update, a, options);
    if (p.finite) commit(p, update, a, options);
    return p;
  }
  const Pass pass(kernels(), a, update);
  const Scan scan = [&](size_t begin, size_t end, CandidateList* list) {
    return pass.apply(begin, end, list, options.zero_grad);
  };
  if (layout.dense()) {
    if (!all_ranges(a.n, options.threads,
                    [&](size_t begin, size_t end) { return scan(begin, end, nullptr); })) {
      return poisoned(layout);
    }
    Proposal p = packed(layout, nullptr, a.residual);
    for (size_t i = 0; i < a.n; ++i) a.residual[i] -= p.sent[i];
    return p;
  }
  const Scan rescan = [&](size_t begin, size_t end, CandidateList* list) {
    return pass.rescan(begin, end, list);
  };
  std::vector<float> values;
  Proposal p = select(layout, pass, options, scan, rescan, &values);
  if (!p.finite) return p;
  const bool mask = options.mask_velocity && a.velocity != nullptr;
  constexpr size_t kAhead = 16;
  for (size_t j = 0; j < layout.k(); ++j) {
    if (j + kAhead < layout.k()) {
      __builtin_prefetch(a.residual + p.indices[j + kAhead], 1);
      if (mask) __builtin_prefetch(a.velocity + p.indices[j + kAhead], 1);
    }
    a.residual[p.indices[j]] = values[j] - p.sent[j];
    if (mask && p.sent[j] != 0.0f) a.velocity[p.indices[j]] = 0.0f;
  }
  return p;
}

}  // namespace dgc
