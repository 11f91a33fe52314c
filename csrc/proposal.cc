#include "proposal.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
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

// The best k among all coordinates: `scan` offers those above a guessed threshold, and if they are too few
// `rescan` offers everything to a list that raises its own threshold.
Proposal select(const Codec& codec, const Pass& pass, const Options& options, const Context& context,
                const Scan& scan, const Scan& rescan, std::vector<float>* values) {
  const size_t n = codec.n();
  const size_t k = codec.sent();
  const int32_t guess =
      guess_threshold(pass.kernels, pass.arrays, pass.coefficients, pass.memory, k, options.sample_ratio);
  CandidateList list(k, 0, kEverything);
  if (!collect(n, k, guess, options.threads, scan, &list)) return codec.poisoned();
  if (list.size() < k && !collect(n, k, kEverything, options.threads, rescan, &list)) return codec.poisoned();
  list.trim();
  *values = list.take_values();
  return packed(*codec.fused(), values->data(), list.take_indices(), context);
}

// values = v' of all coordinates: in `buffer`, or the gradient itself where it is that. False if one is not
// finite.
bool accumulated(const Pass& pass, const Update& update, int threads, Floats* buffer, const float** values) {
  const Arrays& a = pass.arrays;
  if (!a.residual && !a.velocity && !a.weights && a.grad_type == Scalar::float32 && update.unscale == 1.0) {
    *values = static_cast<const float*>(a.grad);
    return max_magnitude(a.grad, a.grad_type, a.n, threads) < std::numeric_limits<float>::infinity();
  }
  buffer->resize(a.n);
  *values = buffer->data();
  return all_ranges(a.n, threads, [&](size_t begin, size_t end) {
    return pass.preview(begin, end, nullptr, buffer->data());
  });
}

// work(first, count) for tiles of [0, n) that together make it up, on several threads.
template <class Work>
void for_tiles(size_t n, int threads, const Work& work) {
  const std::vector<Range> ranges = split(n, threads, kGrain);
  run_parallel(ranges.size(), [&](size_t r) {
    for (size_t first = ranges[r].begin; first < ranges[r].end; first += kTile) {
      work(first, std::min(kTile, ranges[r].end - first));
    }
  });
}

// The context with what follows from the arrays: the residual, and this step's second moments where they are
// wanted and not given: the gradient's squares, one sample a step.
class Completed {
 public:
  Completed(const Codec& codec, const Update& update, const Arrays& a, int threads, const Context& given)
      : context(given) {
    context.residual = a.residual;
    context.threads = threads;
    if (!codec.wants_squares() || context.squares) return;
    squares_.resize(a.n);
    float buffer[kTile];
    const float unscale = static_cast<float>(update.unscale);
    for (size_t first = 0; first < a.n; first += kTile) {
      const size_t count = std::min(kTile, a.n - first);
      const float* grad = as_float32(kernels(), a.grad, a.grad_type, first, count, buffer);
      for (size_t i = 0; i < count; ++i) {
        const float g = grad[i] * unscale;
        squares_[first + i] = g * g;
      }
    }
    context.squares = squares_.data();
  }

  Context context;

 private:
  Floats squares_;
};

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

bool open(const Codec& codec, const Update& update, const Arrays& a, const Options& options, Context context,
          float* out) {
  const Pass pass(kernels(), a, update);
  Floats buffer;
  const float* values = nullptr;
  if (!accumulated(pass, update, options.threads, &buffer, &values)) {
    std::fill(out, out + codec.opening().count, std::numeric_limits<float>::quiet_NaN());
    return false;
  }
  const Completed completed(codec, update, a, options.threads, context);
  codec.open(values, completed.context, out);
  return true;
}

Proposal propose(const Codec& codec, const Update& update, const Arrays& a, const Options& options,
                 Context context) {
  const Pass pass(kernels(), a, update);
  const Layout* layout = codec.fused();
  if (layout == nullptr || layout->dense()) {
    Floats buffer;
    const float* accumulation = nullptr;
    if (!accumulated(pass, update, options.threads, &buffer, &accumulation)) return codec.poisoned();
    return codec.code(accumulation, Completed(codec, update, a, options.threads, context).context);
  }
  std::vector<float> values;
  const Scan scan = [&](size_t begin, size_t end, CandidateList* list) {
    return pass.preview(begin, end, list, nullptr);
  };
  context.threads = options.threads;
  return select(codec, pass, options, context, scan, scan, &values);
}

void commit(const Codec& codec, const Proposal& proposal, const Update& update, const Arrays& a,
            const Options& options, Context context, float* memory) {
  const Pass pass(kernels(), a, update);
  // What a codec settles may need the gradient, which the pass can leave zeroed.
  const Completed completed(codec, update, a, options.threads, context);
  if (!proposal.dense) {
    const std::vector<Range> ranges = split(a.n, options.threads, kGrain);
    run_parallel(ranges.size(), [&](size_t i) {
      pass.commit(ranges[i].begin, ranges[i].end, proposal.indices.data(), proposal.sent.data(),
                  proposal.sent.size(), options.mask_velocity, options.zero_grad);
    });
  } else if (a.residual || a.velocity || options.zero_grad) {
    for_tiles(a.n, options.threads, [&](size_t first, size_t count) {
      float sent[kTile];
      if (a.residual) proposal.read(first, count, sent);
      pass.commit_dense(first, first + count, sent, options.zero_grad);
    });
  }
  if (memory) codec.settle(proposal, a.residual, completed.context, memory);
}

Proposal encode(const Codec& codec, const Update& update, const Arrays& a, const Options& options,
                Context context, float* memory) {
  // Far from overflow, a look at the gradient is enough to know that the step is finite. Everything else, NaN
  // included, goes through the transaction.
  constexpr double kSafe = 1152921504606846976.0;  // 2^60
  const Layout* layout = codec.fused();
  const bool one_pass = layout != nullptr && a.residual != nullptr;
  if (!one_pass || !(gradient_bound(a, update, options.threads) < kSafe)) {
    Proposal p = propose(codec, update, a, options, context);
    if (p.finite) commit(codec, p, update, a, options, context, memory);
    return p;
  }
  context.threads = options.threads;
  const Pass pass(kernels(), a, update);
  const Scan scan = [&](size_t begin, size_t end, CandidateList* list) {
    return pass.apply(begin, end, list, options.zero_grad);
  };
  if (layout->dense()) {
    if (!all_ranges(a.n, options.threads,
                    [&](size_t begin, size_t end) { return scan(begin, end, nullptr); })) {
      return codec.poisoned();
    }
    Proposal p = packed(*layout, a.residual, {}, context);
    for_tiles(a.n, options.threads, [&](size_t first, size_t count) {
      float sent[kTile];
      p.read(first, count, sent);
      subtract(a.residual + first, sent, count);
    });
    return p;
  }
  const Scan rescan = [&](size_t begin, size_t end, CandidateList* list) {
    return pass.rescan(begin, end, list);
  };
  std::vector<float> values;
  Proposal p = select(codec, pass, options, context, scan, rescan, &values);
  if (!p.finite) return p;
  const bool mask = options.mask_velocity && a.velocity != nullptr;
  constexpr size_t kAhead = 16;
  for (size_t j = 0; j < p.indices.size(); ++j) {
    if (j + kAhead < p.indices.size()) {
      __builtin_prefetch(a.residual + p.indices[j + kAhead], 1);
      if (mask) __builtin_prefetch(a.velocity + p.indices[j + kAhead], 1);
    }
    a.residual[p.indices[j]] = values[j] - p.sent[j];
    if (mask && p.sent[j] != 0.0f) a.velocity[p.indices[j]] = 0.0f;
  }
  return p;
}

}  // namespace dgc
