// Adding gathered payloads to dense arrays.
#pragma once

#include "tables.h"

namespace dgc::cuda {

// out[i] += scale * value for every coordinate of every payload, in payload order at each coordinate, for all sums.
// A payload that encoding cannot have made is told by *sums.malformed; nothing is read or written out of bounds.
void add(const Sums& sums, void* stream);

}  // namespace dgc::cuda
