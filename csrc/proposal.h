// A step of one tensor: what it would send and what it would leave behind.
//
// propose + commit is a transaction: propose only reads, so that a step which turns out not to be finite on
// any rank changes nothing on any rank. encode does both in one pass over memory.
#pragma once

#include <cstddef>

#include "arrays.h"
#include "codec.h"
#include "update.h"

namespace dgc {

struct Options {
  double sample_ratio = 0.01;  // share of the elements sampled for the threshold; affects speed only
  int threads = 1;             // affects speed only
  bool mask_velocity = true;   // momentum factor masking, section 3.2 of the DGC paper
  bool zero_grad = false;      // leave the gradient zeroed
};

// This worker's part of the opening round: out, codec.opening().count floats. Reads the arrays, writes none of
// them. False, and out is NaN, if v' is not finite somewhere.
bool open(const Codec& codec, const Update& update, const Arrays& a, const Options& options, Context context,
          float* out);

// What the codec makes of v'; the k largest are exact, ties go to the lower index. Reads the arrays, writes none
// of them. Uses options.sample_ratio and options.threads. a.n == codec.n().
Proposal propose(const Codec& codec, const Update& update, const Arrays& a, const Options& options,
                 Context context = {});

// Applies a finite proposal that was made from these very arrays and this update: velocity = u',
// residual = v' - sent, and, with mask_velocity and where not all is sent, velocity = 0 where sent is not 0.
// memory: the codec's, changed as the codec settles it; may be null if it has none.
void commit(const Codec& codec, const Proposal& proposal, const Update& update, const Arrays& a,
            const Options& options, Context context = {}, float* memory = nullptr);

// propose and commit, where possible in one pass, with the same results bit for bit. A gradient (or weight) that
// is not finite leaves all arrays untouched: that takes a look at the whole gradient first, a third of what the
// pass reads. What only the pass itself finds not to be finite (a sum of finite terms that overflows, though
// gradient and weights are below 2^60) leaves the arrays holding the update with nothing sent, and the gradient
// zeroed if that was asked for.
Proposal encode(const Codec& codec, const Update& update, const Arrays& a, const Options& options,
                Context context = {}, float* memory = nullptr);

}  // namespace dgc
