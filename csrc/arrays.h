// The arrays of one encoding step, as plain pointers.
#pragma once

#include <cstddef>
#include <cstdint>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "payloads are little-endian and are written and read without swapping bytes");

namespace dgc {

enum class Scalar { float32, float16, bfloat16 };

inline size_t scalar_size(Scalar type) { return type == Scalar::float32 ? 4 : 2; }

// `n` elements each; the arrays do not overlap. float16 and bfloat16 elements are stored as uint16 bit
// patterns.
struct Arrays {
  size_t n = 0;
  void* grad = nullptr;  // written only where zero_grad is asked for
  Scalar grad_type = Scalar::float32;
  const void* weights = nullptr;  // null: no weight decay
  Scalar weights_type = Scalar::float32;
  float* residual = nullptr;  // null: nothing is kept; written only by encode and commit
  float* velocity = nullptr;  // null: no momentum correction; written only by encode and commit
};

}  // namespace dgc
