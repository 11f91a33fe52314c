// What the kernels know of the tensors that they work on: plain structures, written by the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arrays.h"
#include "half.h"
#include "update.h"
#include "value_coding.h"

namespace dgc::cuda {

constexpr uint32_t kThreads = 256;        // of a block, unless said otherwise
constexpr uint32_t kSampleThreads = 1024; // of a block that samples a whole tensor
constexpr uint32_t kStripe = 8192;        // elements that one block goes through
constexpr uint32_t kStripeWords = kStripe / 32;
constexpr uint32_t kRow = kThreads / 32;  // stripes of a tensor that one block has, a warp each
constexpr uint32_t kGroup = kChunk;       // coordinates that are coded together
constexpr uint32_t kRange = 1u << 15;     // coordinates that payloads are added to by one block
constexpr uint32_t kBins = 2048;          // of a histogram
constexpr int32_t kNoThreshold = -1;      // that every magnitude exceeds
constexpr int32_t kLargestFinite = kInfinityBits - 1;  // a magnitude (half.h)
constexpr uint32_t kMostSampled = 16 * kSampleThreads;
constexpr uint32_t kSegment = 4 * kThreads;  // bytes of a payload's high part that are decoded by one block

enum class Values : uint8_t { float32, float16, bfloat16, int8, int4 };

// A layout (layout.h) with n below 2^31 and indices in Elias-Fano's coding or as int32. A payload has value_bytes,
// then low_bytes and high_bytes of indices.
struct Format {
  uint32_t n;
  uint32_t k;
  uint64_t value_bytes;
  uint64_t low_bytes;   // int32: all of the indices
  uint64_t high_bytes;  // int32: 0
  Values values;
  uint8_t low;  // bits of an index in the low part; int32: 32
  bool elias_fano;

  DGC_HOST_DEVICE bool dense() const { return k == n; }
  DGC_HOST_DEVICE uint64_t nbytes() const { return value_bytes + low_bytes + high_bytes; }
};

enum class Outcome : uint32_t {
  unknown,
  found,   // `smallest` and `taken` say which candidates are taken
  failed,  // too few candidates, or more than there is room for
  rescued, // indices and values have been written all the same
};

// How far the selection of one tensor has come.
struct Progress {
  int32_t threshold;    // a magnitude (half.h)
  uint32_t nonfinite;   // 1: some v' is not finite
  uint32_t nonzero;     // coordinates sent with a value other than 0, of a layout that is not dense
  uint32_t members;     // candidates in the bin of the histogram that the last one taken is in
  int32_t smallest;     // magnitude of the last one taken
  uint32_t taken;       // coordinates of that magnitude that are taken, those with the lowest indices
  Outcome outcome;
};

// The words of 32 bits that Progress has, and where among them is what callers read.
constexpr size_t kProgressWords = sizeof(Progress) / 4;
constexpr struct {
  const char* name;
  size_t word;
} kProgressFields[] = {
    {"nonfinite", offsetof(Progress, nonfinite) / 4},
    {"nonzero", offsetof(Progress, nonzero) / 4},
};

struct Member {
  int32_t magnitude;
  uint32_t stripe;
};

// One tensor of a batch.
struct Slot {
  Format format;
  Coefficients coefficients{Update()};
  Memory memory;
  void* grad;
  const void* weights;  // null: no weight decay
  float* residual;      // null: nothing is kept
  float* velocity;      // null: no momentum correction
  Scalar grad_type;
  Scalar weights_type;
  bool aligned;    // whether four elements at a time can be read
  bool plain;      // aligned, all of them float32, with a residual
  bool mask;       // clear the velocity where something is sent
  bool zero_grad;  // leave the gradient zeroed when committing
  uint32_t sampled;
  uint32_t rank;      // in the sample, of the magnitude that becomes the threshold; 0: everything exceeds it
  uint32_t capacity;         // of the list of candidates
  uint32_t member_capacity;  // of the list of members
  uint32_t first_stripe;
  uint32_t stripes;
  uint32_t first_row;
  uint32_t rows;
  uint32_t first_group;
  Progress* progress;
  uint8_t* payload;
  uint32_t* indices;             // k, ascending; null if dense
  float* sent;                   // k: what decoding adds there; null if dense
  uint32_t* histogram;           // kBins: candidates by magnitude; null if dense
  uint32_t* candidates;          // capacity, ascending
  float* candidate_values;       // capacity
  Member* members;               // member_capacity, in any order
};

// For each stripe, or for each row of stripes.
struct Counts {
  uint32_t* candidates;
  uint32_t* larger;  // coordinates larger than the last one taken
  uint32_t* ties;    // coordinates of its magnitude
};

// A batch of tensors.
struct Batch {
  const Slot* slots;
  const uint32_t* stripe_slot;  // which slot a stripe belongs to
  const uint32_t* row_slot;     // which slot a row of stripes belongs to
  const uint32_t* group_slot;   // which slot a group of sent coordinates belongs to
  uint32_t count;
  uint32_t stripes;
  uint32_t rows;
  uint32_t groups;
  uint32_t* bitmaps;  // kStripeWords for each stripe: the candidates in it
  Counts stripe_counts;
  Counts row_counts;
  uint32_t* failures;          // tensors whose candidates did not do
  uint32_t* rescue_histogram;  // kBins
};

// The payloads of one tensor that have arrived, and what they are added to.
struct Sum {
  Format format;
  const uint8_t* payloads;  // count, one after another
  uint32_t count;
  float* out;  // n
  float scale;
  uint32_t* indices;  // k for each payload: room for the decoded ones
  uint32_t first_block;
  uint32_t first_segment;
  uint32_t segments;  // of each payload
};

struct Sums {
  const Sum* sums;
  const uint32_t* block_sum;    // which sum a block of additions belongs to
  const uint32_t* segment_sum;  // which sum a segment of a payload belongs to
  uint32_t blocks;
  uint32_t segments;
  uint32_t* malformed;  // 1 + number of a malformed payload's sum, if there is one
};

// A reduced tensor that becomes the gradient: out = after * momentum(factor * in).
struct Reduced {
  Coefficients coefficients{Update()};
  Memory memory;
  const void* in;  // n
  Scalar in_type;
  float* out;       // n; may be in
  float* velocity;  // null: no momentum
  uint32_t n;
  float factor;
  float after;
  uint32_t first_stripe;
};

// An array whose squares are summed.
struct Squared {
  const void* data;
  Scalar type;
  uint32_t n;
  uint32_t first_stripe;
};

}  // namespace dgc::cuda
