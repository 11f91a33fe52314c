#include "coordinates.h"

#include <limits>
#include <stdexcept>
#include <utility>

#include "decode.h"
#include "selectors.h"

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

}  // namespace

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

std::shared_ptr<const Codec> largest(const Layout& layout) {
  return std::make_shared<Coordinates>(layout, nullptr, false);
}

}  // namespace dgc
