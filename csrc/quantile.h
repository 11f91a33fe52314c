// An opening round within one worker: one threshold for all of its tensors.
#pragma once

#include <vector>

#include "codec.h"

namespace dgc {

// What the opening round comes to for the tensors of one worker whose codecs reduce by quantile, with the
// share of the first: the magnitude that this share of all elements reach, each contribution standing for n /
// count of its tensor's. NaN if one of them is. opened: what each contributed.
float opened_by_quantile(const std::vector<const Codec*>& codecs, const std::vector<const float*>& opened);

}  // namespace dgc
