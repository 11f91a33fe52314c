#include "ranges.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "decode.h"
#include "half.h"
#include "parallel.h"
#include "selection.h"

namespace dgc {
namespace {

// Coordinates for a thread to be worth its start.
constexpr size_t kGrain = 1 << 14;

// The k coordinates of largest magnitude among n finite values, in order; ties go to the lower index.
std::vector<uint32_t> largest_of(const float* values, size_t n, size_t k) {
  std::vector<uint32_t> indices;
  indices.reserve(k);
  const int32_t last = kth_magnitude(values, n, k);
  size_t ties = k;
  for (size_t i = 0; i < n; ++i) ties -= magnitude(values[i]) > last;
  for (size_t i = 0; i < n; ++i) {
    const int32_t here = magnitude(values[i]);
    if (here < last || (here == last && ties == 0)) continue;
    ties -= here == last;
    indices.push_back(static_cast<uint32_t>(i));
  }
  return indices;
}

class Ranges : public Codec {
 public:
  Ranges(size_t n, size_t k, std::vector<Layout> layouts, size_t part_nbytes)
      : Codec(n, part_nbytes * layouts.size()),
        k_(k),
        part_nbytes_(part_nbytes),
        layouts_(std::move(layouts)) {
    begins_.reserve(layouts_.size() + 1);
    begins_.push_back(0);
    for (const Layout& layout : layouts_) begins_.push_back(begins_.back() + layout.n());
    places_.push_back(0);
    for (const Layout& layout : layouts_) places_.push_back(places_.back() + layout.k());
  }

  size_t sent() const override { return k_; }
  size_t parts() const override { return layouts_.size(); }
  size_t begin(size_t part) const override { return begins_[part]; }

  Proposal code(const float* values, const Context& context) const override {
    Proposal p;
    p.n = n();
    p.finite = true;
    p.payload.resize(nbytes());
    p.indices.resize(k_);
    p.sent.resize(k_);
    for_parts(context.threads, [&](size_t i) {
      const std::vector<uint32_t> chosen = pack(
          i, values + begins_[i], context, p.payload.data() + i * part_nbytes_, p.sent.data() + places_[i]);
      for (size_t j = 0; j < chosen.size(); ++j)
        p.indices[places_[i] + j] = static_cast<uint32_t>(begins_[i]) + chosen[j];
    });
    return p;
  }

  Proposal recover(const uint8_t* payload, const Context&) const override {
    Proposal p;
    p.n = n();
    p.finite = true;
    p.indices.resize(k_);
    p.sent.resize(k_);
    for (size_t i = 0; i < parts(); ++i) {
      uint32_t* const indices = p.indices.data() + places_[i];
      layouts_[i].unpack(payload + i * part_nbytes_, indices, p.sent.data() + places_[i]);
      for (size_t j = 0; j < layouts_[i].k(); ++j) indices[j] += static_cast<uint32_t>(begins_[i]);
    }
    return p;
  }

  void add(const uint8_t* payloads, size_t count, float* out, float scale,
           const Context& context) const override {
    for_parts(context.threads, [&](size_t i) {
      for (size_t p = 0; p < count; ++p)
        add_valid(layouts_[i], payloads + p * nbytes() + i * part_nbytes_, 1, out + begins_[i], scale, 1);
    });
  }

  std::string check(const uint8_t* payload) const override {
    for (size_t i = 0; i < parts(); ++i) {
      const std::string wrong = check_part(i, payload + i * part_nbytes_);
      if (!wrong.empty()) return "part " + std::to_string(i) + ": " + wrong;
    }
    return {};
  }

  std::vector<uint8_t> poison() const override {
    std::vector<uint8_t> bytes(nbytes());
    for (size_t i = 0; i < parts(); ++i) poison_part(i, bytes.data() + i * part_nbytes_);
    return bytes;
  }

  void reduce(size_t part, const uint8_t* received, size_t count, const Context& context, uint8_t* payload,
              float* returned) const override {
    const Layout& layout = layouts_[part];
    validate_each(count, count * layout.k(), 1,
                  [&](size_t p) { return check_part(part, received + p * part_nbytes_); });
    std::fill(returned, returned + layout.n(), 0.0f);
    for (size_t p = 0; p < count; ++p) add_valid(layout, received + p * part_nbytes_, 1, returned, 1.0f, 1);
    if (!std::all_of(returned, returned + layout.n(), [](float x) { return std::isfinite(x); })) {
      poison_part(part, payload);
      std::fill(returned, returned + layout.n(), 0.0f);
      return;
    }
    std::vector<float> sent(layout.k());
    const std::vector<uint32_t> chosen = pack(part, returned, context, payload, sent.data());
    for (size_t j = 0; j < chosen.size(); ++j) returned[chosen[j]] -= sent[j];
  }

 private:
  template <class Work>
  void for_parts(int threads, const Work& work) const {
    const size_t each = std::max<size_t>(1, n() / parts());
    const std::vector<Range> ranges = split_units(parts(), threads, std::max<size_t>(1, kGrain / each));
    run_parallel(ranges.size(), [&](size_t r) {
      for (size_t i = ranges[r].begin; i < ranges[r].end; ++i) work(i);
    });
  }

  // Codes the largest of a part's values; returns their coordinates in the part.
  std::vector<uint32_t> pack(size_t part, const float* values, const Context& context, uint8_t* payload,
                             float* sent) const {
    const Layout& layout = layouts_[part];
    std::vector<uint32_t> chosen = largest_of(values, layout.n(), layout.k());
    std::vector<float> picked(chosen.size());
    for (size_t j = 0; j < chosen.size(); ++j) picked[j] = values[chosen[j]];
    layout.pack(layout.dense() ? nullptr : chosen.data(), picked.data(), payload, sent,
                context.randomness.own);
    std::fill(payload + layout.nbytes(), payload + part_nbytes_, uint8_t{0});
    return chosen;
  }

  std::string check_part(size_t part, const uint8_t* payload) const {
    const Layout& layout = layouts_[part];
    std::string wrong = layout.check(payload);
    if (wrong.empty() && !std::all_of(payload + layout.nbytes(), payload + part_nbytes_,
                                      [](uint8_t byte) { return byte == 0; }))
      wrong = "bytes after its end are not 0";
    return wrong;
  }

  void poison_part(size_t part, uint8_t* payload) const {
    const std::vector<uint8_t> bytes = layouts_[part].poison();
    std::fill(std::copy(bytes.begin(), bytes.end(), payload), payload + part_nbytes_, uint8_t{0});
  }

  size_t k_;
  size_t part_nbytes_;
  std::vector<Layout> layouts_;
  std::vector<size_t> begins_;  // of each part's coordinates, and n
  std::vector<size_t> places_;  // of each part among the coordinates sent, and k
};

}  // namespace

std::shared_ptr<const Codec> make_ranges(Settings* settings) {
  const size_t n = settings->whole("n", 1, std::numeric_limits<uint32_t>::max());
  const size_t k = settings->whole("k", 1, n);
  const size_t parts = settings->whole("parts", 1, n);
  const IndexCoder indices = index_coder(settings->word("indices"));
  const ValueCoder values(settings->word("values"));
  std::vector<Layout> layouts;
  size_t sent = 0;
  size_t part_nbytes = 0;
  for (size_t i = 0; i < parts; ++i) {
    const size_t numel = (i + 1) * n / parts - i * n / parts;
    layouts.emplace_back(numel, std::min(numel, (k * numel + n - 1) / n), indices, values);
    sent += layouts.back().k();
    part_nbytes = std::max(part_nbytes, layouts.back().nbytes());
  }
  return std::make_shared<Ranges>(n, sent, std::move(layouts), part_nbytes);
}

}  // namespace dgc
