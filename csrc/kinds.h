// The kinds of codecs by their names.
#pragma once

#include <memory>
#include <string>

#include "codec.h"

namespace dgc {

// From a description such as "coordinates n=1000 k=10 indices=elias-fano values=float16 select=largest": the
// kind of codec, then settings in any order. The kinds are in kinds.cc, and the settings of each at the function
// that makes it. Throws std::invalid_argument naming the setting, its value and what is allowed.
std::shared_ptr<const Codec> make_codec(const std::string& description);

}  // namespace dgc
