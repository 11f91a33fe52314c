#include "codec.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "agreed.h"
#include "decode.h"
#include "low_rank.h"
#include "parallel.h"
#include "ranges.h"
#include "selectors.h"
#include "settings.h"

namespace dgc {
namespace {

// A worker's own choice of coordinates, or all of them, in a layout.
class Coordinates : public Codec {
 public:
  Coordinates(const Layout& layout, std::shared_ptr<const Selector> selector, bool vote)
      : Codec(layout.n(), layout.nbytes()), layout_(layout), selector_(std::move(selector)), vote_(vote) {}

  size_t sent() const override { return layout_.k(); }

  std::string summable() const override {
    const std::string& name = layout_.values().name();
    return layout_.dense() && (name == "float32" || name == "float16") ? name : std::string();
  }

  Opening opening() const override { return selector_ ? selector_->opening() : Opening(); }
  size_t memory() const override { return selector_ && selector_->keeps_moments() ? n() : 0; }
  bool wants_squares() const override { return selector_ && selector_->wants_squares(); }
  bool votes() const override { return vote_; }
  const Layout* fused() const override { return selector_ ? nullptr : &layout_; }

  void open(const float* values, const Context& context, float* out) const override {
    if (selector_) selector_->open(values, n(), context, out);
  }

  Proposal code(const float* values, const Context& context) const override {
    if (!selector_ && !layout_.dense())
      throw std::logic_error("the largest coordinates are selected in the pass that accumulates them");
    Selected chosen;
    if (selector_) chosen = selector_->select(values, n(), layout_.k(), context);
    if (selector_ && chosen.values.empty() && !chosen.coding && n() > 0) return poisoned();
    const float* const sent = selector_ && !chosen.coding ? chosen.values.data() : values;
    Proposal p = packed(layout_, sent, std::move(chosen.indices), context, chosen.coding.get());
    p.overflow = chosen.overflow;
    return p;
  }

  Proposal recover(const uint8_t* payload, const Context&) const override {
    Proposal p;
    p.n = n();
    p.dense = layout_.dense();
    p.finite = true;
    if (p.dense) {
      p.coding = layout_.values().shared();
      p.coded = payload;
      return p;
    }
    p.indices.resize(layout_.k());
    p.sent.resize(layout_.k());
    layout_.unpack(payload, p.indices.data(), p.sent.data());
    return p;
  }

  void add(const uint8_t* payloads, size_t count, float* out, float scale,
           const Context& context) const override {
    add_valid(layout_, payloads, count, out, scale, context.threads);
  }

  void vote(const uint8_t* payloads, size_t count, float* out, float scale,
            const Context& context) const override {
    vote_valid(layout_, payloads, count, out, scale, context.threads);
  }

  std::string check(const uint8_t* payload) const override { return layout_.check(payload); }
  std::vector<uint8_t> poison() const override { return layout_.poison(); }

  void settle(const Proposal& proposal, const float* residual, const Context& context,
              float* memory) const override {
    if (selector_) selector_->settle(proposal, residual, context, memory);
  }

 private:
  Layout layout_;
  std::shared_ptr<const Selector> selector_;
  bool vote_;
};

// coordinates n= k= indices= values= select= [vote=1] [settings of the selector]
std::shared_ptr<const Codec> make_coordinates(Settings* settings) {
  const size_t n = settings->whole("n", 0, std::numeric_limits<uint32_t>::max());
  const size_t k = settings->whole("k", 0, n);
  const Layout layout(n, k, index_coder(settings->word("indices")), ValueCoder(settings->word("values")));
  const bool vote = settings->has("vote") && settings->flag("vote");
  if (vote && k != n) throw std::invalid_argument("vote is 1; allowed: 0 unless k is n");
  std::shared_ptr<const Selector> selector = make_selector(settings, n, k);
  const char* const coder = selector ? selector->coder() : nullptr;
  if (coder && layout.values().name() != coder)
    throw std::invalid_argument("values is " + layout.values().name() +
                                "; allowed with this select: " + coder);
  return std::make_shared<Coordinates>(layout, std::move(selector), vote);
}

struct Kind {
  const char* name;
  std::shared_ptr<const Codec> (*make)(Settings* settings);
};

const Kind kKinds[] = {
    {"coordinates", make_coordinates}, {"random", make_random}, {"sketch", make_sketch},
    {"lowrank", make_low_rank},        {"ranges", make_ranges},
};

}  // namespace

void Proposal::read(size_t first, size_t count, float* out) const {
  if (coding) {
    if (count > 0) coding->decode(n, coded, first, count, out);
  } else {
    std::copy_n(sent.data() + first, count, out);
  }
}

Floats Proposal::values() const {
  if (!coding) return sent;
  Floats all(n);
  read(0, n, all.data());
  return all;
}

void Proposal::masked(float* out) const {
  if (dense) {
    read(0, n, out);
    return;
  }
  std::fill(out, out + n, 0.0f);
  for (size_t j = 0; j < sent.size(); ++j) out[indices[j]] = sent[j];
}

void Codec::open(const float*, const Context&, float*) const {}

void Codec::vote(const uint8_t*, size_t, float*, float, const Context&) const {
  throw std::logic_error("the payloads of this codec are summed, not counted as votes");
}

size_t Codec::begin(size_t) const { throw std::logic_error("the payloads of this codec have no parts"); }

void Codec::reduce(size_t, const uint8_t*, size_t, const Context&, uint8_t*, float*) const {
  throw std::logic_error("the payloads of this codec have no parts");
}

void Codec::settle(const Proposal&, const float*, const Context&, float*) const {}

void Codec::absorb(const uint8_t*, size_t, float*) const {}

Proposal Codec::poisoned() const {
  Proposal p;
  p.n = n();
  p.dense = sent() == n();
  const std::vector<uint8_t> bytes = poison();
  p.payload.assign(bytes.begin(), bytes.end());
  p.sent.assign(sent(), std::numeric_limits<float>::quiet_NaN());
  if (!p.dense) {
    p.indices.resize(sent());
    std::iota(p.indices.begin(), p.indices.end(), 0u);
  }
  return p;
}

Proposal packed(const Layout& layout, const float* values, std::vector<uint32_t> indices,
                const Context& context, const ValueCoding* coding) {
  Proposal p;
  p.n = layout.n();
  p.dense = layout.dense();
  p.finite = true;
  p.payload.resize(layout.nbytes());
  if (p.dense) {
    p.coding = layout.values().shared();
    p.coded = p.payload.data();
  } else {
    p.sent.resize(layout.k());
  }
  if (coding && layout.n() > 0) {
    coding->encode(values, layout.n(), context.randomness.own, context.threads, p.payload.data(), nullptr);
  } else {
    layout.pack(indices.data(), values, p.payload.data(), p.dense ? nullptr : p.sent.data(),
                context.randomness.own, context.threads);
  }
  p.indices = std::move(indices);
  return p;
}

float opened_by_quantile(const std::vector<const Codec*>& codecs, const std::vector<const float*>& opened) {
  struct Sampled {
    float magnitude;
    double elements;  // that it stands for
  };
  std::vector<Sampled> samples;
  double wanted = 0.0;
  for (size_t t = 0; t < codecs.size(); ++t) {
    const Codec& codec = *codecs[t];
    const size_t count = codec.opening().count;
    if (count == 0) continue;
    wanted += codecs[0]->opening().share * static_cast<double>(codec.n());
    for (size_t i = 0; i < count; ++i) {
      if (std::isnan(opened[t][i])) return opened[t][i];
      samples.push_back({opened[t][i], static_cast<double>(codec.n()) / static_cast<double>(count)});
    }
  }
  // Halves, as long as there is a choice: the larger magnitudes come first.
  auto first = samples.begin();
  auto last = samples.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last,
                     [](const Sampled& a, const Sampled& b) { return a.magnitude > b.magnitude; });
    const double larger = std::accumulate(
        first, middle, 0.0, [](double sum, const Sampled& sample) { return sum + sample.elements; });
    // A share that is whole on paper must not ask for one more because of its last bit.
    if (larger >= wanted * (1.0 - 1e-9)) {
      last = middle;
    } else {
      wanted -= larger;
      first = middle;
    }
  }
  return first == last ? 0.0f : first->magnitude;
}

bool any_poisoned(const Codec& codec, const uint8_t* payloads, size_t count) {
  const std::vector<uint8_t> poison = codec.poison();
  for (size_t i = 0; i < count; ++i) {
    if (std::equal(poison.begin(), poison.end(), payloads + i * poison.size())) return true;
  }
  return false;
}

void validate(const Codec& codec, const uint8_t* payloads, size_t count, int threads) {
  validate_each(count, codec.sent() * count, threads,
                [&](size_t p) { return codec.check(payloads + p * codec.nbytes()); });
}

std::shared_ptr<const Codec> largest(const Layout& layout) {
  return std::make_shared<Coordinates>(layout, nullptr, false);
}

std::shared_ptr<const Codec> make_codec(const std::string& description) {
  Settings settings(description);
  std::string allowed;
  for (const Kind& kind : kKinds) {
    allowed += (allowed.empty() ? "" : ", ") + std::string(kind.name);
    if (settings.kind() != kind.name) continue;
    std::shared_ptr<const Codec> codec = kind.make(&settings);
    settings.done();
    return codec;
  }
  throw std::invalid_argument("codec is '" + settings.kind() + "'; allowed: " + allowed);
}

}  // namespace dgc
