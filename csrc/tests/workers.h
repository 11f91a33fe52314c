// What one worker keeps, and its steps, for the tests of codecs.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "cases.h"
#include "kinds.h"
#include "proposal.h"
#include "quantile.h"

namespace dgc::test {

// One worker with all that it keeps.
struct Worker {
  std::shared_ptr<const Codec> codec;
  std::vector<float> grad, residual, memory, opened;
  Randomness randomness{1, 2, 3, 0};
  int threads = 1;

  Worker(std::shared_ptr<const Codec> made, std::vector<float> gradient)
      : codec(std::move(made)),
        grad(std::move(gradient)),
        residual(normal(codec->n(), 5, 0.3f)),
        memory(codec->memory(), 0.0f),
        opened(codec->opening().count) {}

  Arrays arrays() {
    Arrays a;
    a.n = codec->n();
    a.grad = grad.data();
    a.residual = residual.data();
    return a;
  }

  Context context() const {
    Context c;
    c.randomness = randomness;
    c.opened = opened.data();
    c.memory = memory.data();
    c.threads = threads;
    return c;
  }

  Options options() const {
    Options o;
    o.threads = threads;
    return o;
  }

  bool open() {
    opened.resize(codec->opening().count);
    const bool finite = dgc::open(*codec, Update(), arrays(), options(), context(), opened.data());
    if (codec->opening().reduction == Reduction::quantile)
      opened = {opened_by_quantile({codec.get()}, {opened.data()})};
    return finite;
  }

  Proposal propose() { return dgc::propose(*codec, Update(), arrays(), options(), context()); }

  void commit(const Proposal& p) {
    dgc::commit(*codec, p, Update(), arrays(), options(), context(),
                memory.empty() ? nullptr : memory.data());
  }
};

inline std::vector<float> dense(const Proposal& p) {
  std::vector<float> out(p.n, 7.0f);
  p.masked(out.data());
  return out;
}

}  // namespace dgc::test
