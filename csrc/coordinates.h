// A codec whose workers each choose coordinates of their own, or send all of them.
#pragma once

#include <memory>

#include "codec.h"
#include "layout.h"
#include "settings.h"

namespace dgc {

// coordinates n= k= indices= values= select= [vote=1] [settings of the selector]: k coordinates in a layout
// (layout.h), chosen as selectors.h has it. vote: of all coordinates, the sum's sign is wanted.
std::shared_ptr<const Codec> make_coordinates(Settings* settings);

// The k coordinates of largest |v'|, all of them if k == n, in this layout.
std::shared_ptr<const Codec> largest(const Layout& layout);

}  // namespace dgc
