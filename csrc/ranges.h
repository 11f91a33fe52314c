// Payloads for a sparse allreduce: one part for each worker, who sums up one range of the coordinates.
#pragma once

#include <memory>

#include "codec.h"
#include "settings.h"

namespace dgc {

// ranges n= k= parts= indices= values=: [0, n) in `parts` ranges of equal size (to one coordinate), of each
// of which the largest are sent, in proportion to k and one at least. A payload is one part after another,
// all of one length. 1 <= k <= n, 1 <= parts <= n.
std::shared_ptr<const Codec> make_ranges(Settings* settings);

}  // namespace dgc
