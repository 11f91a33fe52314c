#include "codec.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "agreed.h"
#include "decode.h"
#include "low_rank.h"
#include "parallel.h"
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
    if (selector_ && chosen.values.empty() && n() > 0) return poisoned();
    Proposal p =
        packed(layout_, selector_ ? chosen.values.data() : values, std::move(chosen.indices), context);
    p.overflow = chosen.overflow;
    return p;
  }

  Proposal recover(const uint8_t* payload, const Context&) const override {
    Proposal p;
    p.n = n();
    p.dense = layout_.dense();
    p.finite = true;
    p.indices.resize(layout_.k());
    p.sent.resize(layout_.k());
    layout_.unpack(payload, p.indices.data(), p.sent.data());
    if (p.dense) p.indices.clear();
    return p;
  }

  void add(const uint8_t* payloads, size_t count, float* out, float scale,
           const Context& context) const override {
    add_valid(layout_, payloads, count, out, scale, context.threads);
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

IndexCoder index_coder(const std::string& name) {
  if (name == "elias-fano") return IndexCoder::elias_fano;
  if (name == "runlength16") return IndexCoder::runlength16;
  if (name == "int32") return IndexCoder::int32;
  throw std::invalid_argument("indices is '" + name + "'; allowed: elias-fano, runlength16, int32");
}

// coordinates n= k= indices= values= select= [vote=1] [settings of the selector]
std::shared_ptr<const Codec> make_coordinates(Settings* settings) {
  const size_t n = settings->whole("n", 0, std::numeric_limits<uint32_t>::max());
  const size_t k = settings->whole("k", 0, n);
  const Layout layout(n, k, index_coder(settings->word("indices")), ValueCoder(settings->word("values")));
  const bool vote = settings->has("vote") && settings->flag("vote");
  return std::make_shared<Coordinates>(layout, make_selector(settings, n, k), vote);
}

struct Kind {
  const char* name;
  std::shared_ptr<const Codec> (*make)(Settings* settings);
};

const Kind kKinds[] = {
    {"coordinates", make_coordinates},
    {"random", make_random},
    {"sketch", make_sketch},
    {"lowrank", make_low_rank},
};

}  // namespace

void Proposal::masked(float* out) const {
  if (dense) {
    std::copy(sent.begin(), sent.end(), out);
    return;
  }
  std::fill(out, out + n, 0.0f);
  for (size_t j = 0; j < sent.size(); ++j) out[indices[j]] = sent[j];
}

void Codec::open(const float*, const Context&, float*) const {}

void Codec::settle(const Proposal&, const float*, const Context&, float*) const {}

void Codec::absorb(const uint8_t*, size_t, float*) const {}

Proposal Codec::poisoned() const {
  Proposal p;
  p.n = n();
  p.dense = sent() == n();
  p.payload = poison();
  p.sent.assign(sent(), std::numeric_limits<float>::quiet_NaN());
  if (!p.dense) {
    p.indices.resize(sent());
    std::iota(p.indices.begin(), p.indices.end(), 0u);
  }
  return p;
}

Proposal packed(const Layout& layout, const float* values, std::vector<uint32_t> indices,
                const Context& context) {
  Proposal p;
  p.n = layout.n();
  p.dense = layout.dense();
  p.finite = true;
  p.payload.resize(layout.nbytes());
  p.sent.resize(layout.k());
  layout.pack(indices.data(), values, p.payload.data(), p.sent.data(), context.randomness.own,
              context.threads);
  p.indices = std::move(indices);
  return p;
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
