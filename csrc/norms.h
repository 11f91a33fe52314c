// Reductions over one array of float32, float16 or bfloat16 elements. The results do not depend on `threads`.
#pragma once

#include <cstddef>

#include "arrays.h"

namespace dgc {

// Sum of squares, accumulated in double; infinite or NaN if an element is.
double sum_squares(const void* data, Scalar type, size_t n, int threads);

// Whether no element is infinite or NaN.
bool all_finite(const void* data, Scalar type, size_t n);

// Largest magnitude; infinite or NaN if an element is; 0 if n == 0.
float max_magnitude(const void* data, Scalar type, size_t n, int threads);

}  // namespace dgc
