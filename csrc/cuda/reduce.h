// What happens to whole tensors before and after their exchange: norms, and momentum of the aggregated gradient.
#pragma once

#include "tables.h"

namespace dgc::cuda {

// sums[s] = the sum of squares of stripe s, in double precision. stripe_array: which array a stripe belongs to.
void sum_squares(const Squared* arrays, const uint32_t* stripe_array, uint32_t stripes, double* sums, void* stream);

// stripe_tensor: which tensor a stripe belongs to.
void finish_reduced(const Reduced* tensors, const uint32_t* stripe_tensor, uint32_t stripes, void* stream);

}  // namespace dgc::cuda
