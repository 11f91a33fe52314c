// The quantisers: codings of k float32 values v in a few bits each, by family of ValueCoder's names.
//
// Numbers of the header come first, then the codes, packed as in code_packing.h. A number of the header that
// is not finite is sent as NaN, and all values that depend on it decode to NaN; one that would be subnormal
// is 0. Random numbers u are uniform on [0, 1), each a function of the key and of the value's position.
//
// sign
//     SignSGD and Signum (Bernstein et al. 2018). Header: 1, or NaN if a value is not finite. A bit each:
//     1 -> +1 where v >= 0, 0 -> -1.
// meansign
//     EF-SignSGD (Karimireddy et al. 2019). Header: the mean a of |v|. A bit each, decoded to +a or -a.
// onebit:G
//     1-bit SGD (Seide et al. 2014). Groups of G values in a row, the last may be shorter. Header: the mean
//     of the values >= 0 of every group, then the mean of the values < 0 of every group (0 where there are
//     none). A bit each, decoded to the mean of its group and sign.
// onebitcolumns:C
//     The same with C groups (k, if that is less): value i belongs to group i mod C.
// ternary
//     Values -b, 0, a, or such that are to be replaced by the mean of their sign. Header: the mean a of the
//     values > 0 and the mean b of the magnitudes of those < 0. A trit each: 0 -> 0, 1 -> a, 2 -> -b.
//     Nothing is lost where all values of a sign are equal.
// qsgd:B:S
//     QSGD (Alistarh et al. 2017). Buckets of S values; B of 2, 4, 8. Header: the norm n = |x|_2 of every
//     bucket x (at most the largest float32). B bits each: level l of B - 1 bits, then a sign bit. With
//     s = 2^(B-1) - 1 levels and t = s |v| / n, l = floor(t) + [u < t - floor(t)]; decoded to
//     n sign(v) l / s. Unbiased.
// dorefa:B
//     DoReFa-Net's gradients (Zhou et al. 2016), B of 1 to 8. Header: M = max |v|. B bits each: with
//     L = 2^B - 1 and t = L (v / 2M + 1/2), c = floor(t) + [u < t - floor(t)]; decoded to 2M (c / L - 1/2).
//     This is the paper's round(t + L n) for n uniform on (-1/2, 1/2) / L. Unbiased everywhere: t is 0 or L
//     at -M and M, from where rounding leads nowhere else, so that clamping to [0, L] changes nothing.
//     L is odd: a 0 among other values is sent as M / L or -M / L.
// natural
//     Natural compression (Horvath et al. 2019). 9 bits each: all sign bits (1 = negative), padded to a byte,
//     then an exponent byte e each, decoded to 2^(e - 127): |v| = 2^(e - 127) (1 + f) becomes e + [u < f].
//     e = 0 is 0, to which, or to 2^-126, subnormal values are rounded; 255 is NaN, for each value that is
//     not finite. Unbiased up to 2^127; all above is rounded down to that.
// power4
//     Of Tsuzuku et al. 2018. Header: 2^E, E = floor(log2 max |v|). 4 bits each: d of 3 bits, then a sign
//     bit, decoded to 2^(E - d), d = 0..6: |v| rounded to the nearest power of two (a value in the middle to
//     the larger), at most 2^E. What is nearer to smaller ones is d = 7 without a sign, which decodes to 0:
//     the eighth power of the paper has gone to it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "value_coding.h"

namespace dgc {

// What follows the family in a coder's name. Factories throw std::invalid_argument naming the number, its
// value and what is allowed.
using CoderNumbers = std::vector<uint32_t>;
using CodingFactory = std::shared_ptr<const ValueCoding>(const CoderNumbers& numbers);

CodingFactory make_int8, make_int4;  // see value_coding.h
CodingFactory make_sign, make_meansign, make_onebit, make_onebitcolumns;
CodingFactory make_ternary;

// Writes what `ternary` decodes: each value v becomes scale with the sign of v, with probability
// min(|v|, limit) / scale, else 0, for the key and the value's position. scale: finite, not negative.
std::shared_ptr<const ValueCoding> make_drawn_ternary(float limit, float scale);

CodingFactory make_qsgd, make_dorefa;
CodingFactory make_natural, make_power4;

// Throws std::invalid_argument.
[[noreturn]] void refuse_number(const char* name, uint32_t is, const char* allowed);

}  // namespace dgc
