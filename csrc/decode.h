// Adding payloads to a dense array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "layout.h"

namespace dgc {

// check(p) for each of `count` payloads of so many coordinates in all. Throws std::invalid_argument naming
// the first payload for which the answer is not empty, and the answer.
void validate_each(size_t count, size_t coordinates, int threads,
                   const std::function<std::string(size_t)>& check);

// Throws std::invalid_argument naming the first payload that is malformed and what is wrong with it.
// payloads: count * layout.nbytes() bytes.
void validate(const Layout& layout, const uint8_t* payloads, size_t count, int threads);

// What decode_add does with payloads that validate() has passed.
void add_valid(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
               int threads);

// What majority vote makes of sums of signs: 1, -1, or 0 for a tie; NaN where a sum is not finite.
void vote(float* sums, size_t n);

// out[i] += scale * vote() of the sum of the payloads' values. For a dense layout.
void vote_valid(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
                int threads);

// out[i] += scale * value for every coordinate of payloads 0..count-1, in this order at each coordinate, so
// that the result does not depend on `threads`. Validates first: nothing is written if a payload is
// malformed. out: layout.n() floats.
void decode_add(const Layout& layout, const uint8_t* payloads, size_t count, float* out, float scale,
                int threads);

}  // namespace dgc
