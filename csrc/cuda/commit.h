// Applying a batch's proposals to the arrays that they were made from, and their dense form.
#pragma once

#include "tables.h"

namespace dgc::cuda {

// velocity = u', residual = v' - sent, the velocity 0 where something was sent, and the gradient 0, as each slot asks
// for.
void commit(const Batch& batch, void* stream);

// out[i] = what is sent at coordinate i of slot `number`, whose layout is not dense; out is left as it is elsewhere.
void scatter_sent(const Batch& batch, uint32_t first_group, uint32_t groups, float* out, void* stream);

}  // namespace dgc::cuda
