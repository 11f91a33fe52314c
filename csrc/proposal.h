// A step of one tensor: what it would send and what it would leave behind.
//
// propose + commit is a transaction: propose only reads, so that a step which turns out not to be finite on
// any rank changes nothing on any rank. encode does both in one pass over memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "layout.h"
#include "update.h"

namespace dgc {

struct Proposal {
  Layout layout;
  bool finite;  // false: v' (update.h) is not finite somewhere; the payload is layout.poison()
  std::vector<uint8_t> payload;   // layout.nbytes()
  std::vector<uint32_t> indices;  // the k selected coordinates, strictly increasing; empty if layout.dense()
  std::vector<float> sent;        // k: what decoding the payload adds there; NaN if not finite

  // out (layout.n() floats) = 0, then sent at the selected coordinates.
  void masked(float* out) const;
};

struct Options {
  double sample_ratio = 0.01;  // share of the elements sampled for the threshold; affects speed only
  int threads = 1;             // affects speed only
  bool mask_velocity = true;   // momentum factor masking, section 3.2 of the DGC paper
  bool zero_grad = false;      // leave the gradient zeroed
  bool assume_finite = false;  // encode only: do not look for infinities and NaN beforehand
};

// Exactly the k coordinates of largest |v'|, ties to the lower index. Reads the arrays, writes none of them.
// Uses options.sample_ratio and options.threads. a.n == layout.n().
Proposal propose(const Layout& layout, const Update& update, const Arrays& a, const Options& options);

// Applies a finite proposal that was made from these very arrays and this update: velocity = u',
// residual = v' - sent, and, with mask_velocity and k < n, velocity = 0 where sent is not 0.
void commit(const Proposal& proposal, const Update& update, const Arrays& a, const Options& options);

// propose and commit in one pass, with the same results bit for bit. A gradient (or weight) that is not
// finite leaves all arrays untouched: that takes a look at the whole gradient first, a third of what the pass
// reads, which options.assume_finite saves those who have just taken its norm. What only the pass itself
// finds not to be finite (a wrong assumption; a sum of finite terms that overflows, though gradient and
// weights are below 2^60) leaves the arrays holding the update with nothing sent, and the gradient zeroed if
// that was asked for.
Proposal encode(const Layout& layout, const Update& update, const Arrays& a, const Options& options);

}  // namespace dgc
