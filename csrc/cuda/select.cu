#include "coded_values.h"
#include "elements.h"
#include "launch.h"
#include "propose.h"

namespace dgc::cuda {
namespace {

// Bits of a candidate's distance from the threshold that the histogram leaves open: it has 1024 bins for every doubling,
// and all beyond the second in the last one, or, where everything is a candidate, 8 for every doubling there is.
__device__ uint32_t open_bits(int32_t threshold) { return threshold == kNoThreshold ? 20 : 13; }

__device__ uint32_t bin_of(int32_t m, int32_t threshold) {
  const uint32_t bin = static_cast<uint32_t>(m - threshold - 1) >> open_bits(threshold);
  return bin < kBins ? bin : kBins - 1;
}

// Which coordinates of its stripe exceed the threshold, as a bitmap.
__device__ void find_candidates(const Batch& batch, const Slot& slot, uint32_t stripe) {
  struct Shared {
    uint32_t bitmap[kStripeWords];
    BlockScratch scratch;
  };
  DGC_SHARED(Shared, shared);
  static_assert(kThreads == kStripeWords, "one word for each thread");
  const uint32_t thread = threadIdx.x;
  const uint32_t n = slot.format.n;
  const uint32_t begin = (stripe - slot.first_stripe) * kStripe;
  const int32_t threshold = slot.progress->threshold;
  shared.bitmap[thread] = 0;
  __syncthreads();
  bool finite = true;
  visit_stripe(slot, begin, [&](uint32_t i, bool, const Four& v, const Four&) {
    uint32_t bits = 0;
#pragma unroll
    for (uint32_t c = 0; c < 4; ++c) {
      const int32_t m = magnitude(v.x[c]);
      finite = finite && m < kInfinityBits;
      bits |= (m > threshold ? 1u : 0u) << c;
    }
    if (bits == 0) return;
    for (uint32_t c = 0; c < 4; ++c) {
      if (i + c >= n) bits &= ~(1u << c);
      if (bits >> c & 1) atomicAdd(&slot.histogram[bin_of(magnitude(v.x[c]), threshold)], 1u);
    }
    atomicOr(&shared.bitmap[(i - begin) / 32], bits << i % 32);
  });
  if (!finite) slot.progress->nonfinite = 1;
  __syncthreads();
  const uint32_t word = shared.bitmap[thread];
  const uint32_t found = sum_of_block<kThreads>(static_cast<uint32_t>(__popc(word)), &shared.scratch);
  if (found > 0) batch.bitmaps[uint64_t{stripe} * kStripeWords + thread] = word;
  if (thread == 0) {
    batch.stripe_counts.candidates[stripe] = found;
    const uint32_t row = slot.first_row + (stripe - slot.first_stripe) / kRow;
    if (found > 0) atomicAdd(&batch.row_counts.candidates[row], found);
  }
}
// All values of its stripe of a dense layout, coded.
__device__ void code_stripe(const Slot& slot, uint32_t stripe, bool poison) {
  DGC_SHARED(BlockScratch, scratch);
  const uint32_t n = slot.format.n;
  const uint32_t begin = (stripe - slot.first_stripe) * kStripe;
  for (uint32_t at = 0; at < kStripe && begin + at < n; at += kGroup) {
    const uint32_t i = begin + at + threadIdx.x;
    const float v = poison ? quiet_nan() : i < n ? accumulated(slot, i) : 0.0f;
    if (magnitude(v) >= kInfinityBits) slot.progress->nonfinite = 1;
    code_value(slot.format, slot.payload, (begin + at) / kGroup, v, &scratch);
  }
}

__global__ void __launch_bounds__(kThreads) collect(Batch batch) {
  const uint32_t stripe = blockIdx.x;
  const Slot slot = batch.slots[batch.stripe_slot[stripe]];
  if (slot.format.dense()) {
    code_stripe(slot, stripe, false);
  } else {
    find_candidates(batch, slot, stripe);
  }
}

// Magnitudes from `low` to `high` among which the smallest one that is taken is looked for, and how many of
// them are taken: always at least one.
struct Search {
  int32_t low;
  int32_t high;
  uint32_t taken;

  __device__ bool over() const { return low == high; }

  // Bits of a magnitude's distance from `low` that a bin of the histogram leaves open.
  __device__ uint32_t shift() const {
    const uint32_t width = 32 - static_cast<uint32_t>(__clz(high - low));
    return width > 11 ? width - 11 : 0;
  }

  __device__ bool has(int32_t m) const { return m >= low && m <= high; }
  __device__ uint32_t bin(int32_t m) const { return static_cast<uint32_t>(m - low) >> shift(); }
};

static_assert(kBins == 1u << 11, "eleven bits of a magnitude");

// Adds one to a bin; those of a warp that go to the same one together.
__device__ void count_in(uint32_t* histogram, bool counts, uint32_t bin) {
  const uint32_t same = __match_any_sync(kAllLanes, counts ? bin : kBins);
  const uint32_t lane = threadIdx.x % kWarp;
  const bool first = static_cast<uint32_t>(__ffs(static_cast<int>(same))) - 1 == lane;
  if (counts && first) atomicAdd(&histogram[bin], static_cast<uint32_t>(__popc(same)));
}

struct Narrowed {
  uint32_t bin;
  uint32_t above;
};

// The bin, counted from the uppermost one down, in which the number reaches `wanted`, and how many are above it;
// *result, in shared memory, stays as it is where it never does.
template <uint32_t kBlock>
__device__ Narrowed bin_with(uint32_t wanted, const uint32_t* histogram, BlockScratch* scratch, Narrowed* result) {
  constexpr uint32_t kEach = kBins / kBlock;
  // The first thread has the uppermost bins.
  const uint32_t first = kBins - (threadIdx.x + 1) * kEach;
  uint32_t counts[kEach];
  uint32_t own = 0;
#pragma unroll
  for (uint32_t b = 0; b < kEach; ++b) own += counts[b] = histogram[first + b];
  uint32_t total;
  uint32_t above = sum_before<kBlock>(own, scratch, &total);
  if (above < wanted && wanted <= above + own) {
#pragma unroll
    for (uint32_t b = kEach; b-- > 0;) {
      if (wanted > above && wanted <= above + counts[b]) *result = {first + b, above};
      above += counts[b];
    }
  }
  __syncthreads();
  const Narrowed found = *result;
  __syncthreads();
  return found;
}

// The search among the magnitudes of the bin that the last one taken is in.
template <uint32_t kBlock>
__device__ Search narrowed(const Search& search, const uint32_t* histogram, BlockScratch* scratch, Narrowed* result) {
  const Narrowed found = bin_with<kBlock>(search.taken, histogram, scratch, result);
  const uint32_t shift = search.shift();
  Search next = search;
  next.low = search.low + static_cast<int32_t>(found.bin << shift);
  const int32_t high = next.low + static_cast<int32_t>((1u << shift) - 1);
  if (high < next.high) next.high = high;
  next.taken = search.taken - found.above;
  return next;
}

// Sums of three counts over the tensor's stripes before the one of this thread's warp.
struct Before {
  uint32_t candidates, larger, ties;
};

__device__ Before counted_before(const Batch& batch, const Slot& slot, uint32_t row, BlockScratch* scratch) {
  const auto sum = [&](const uint32_t* of_rows, const uint32_t* of_stripes) {
    uint32_t before = 0;
    for (uint32_t r = slot.first_row + threadIdx.x; r < row; r += kThreads) before += of_rows[r];
    before = sum_of_block<kThreads>(before, scratch);
    const uint32_t first = slot.first_stripe + (row - slot.first_row) * kRow;
    return before + sum_of_lanes(lane() < threadIdx.x / kWarp ? of_stripes[first + lane()] : 0);
  };
  Before before;
  before.candidates = sum(batch.row_counts.candidates, batch.stripe_counts.candidates);
  before.larger = sum(batch.row_counts.larger, batch.stripe_counts.larger);
  before.ties = sum(batch.row_counts.ties, batch.stripe_counts.ties);
  return before;
}

// A warp's stripe: its candidates go to the list. How many are certain to be taken is counted at once; those that may be
// are members.
__device__ void place_stripe(const Batch& batch, const Slot& slot, uint32_t stripe, uint32_t before, uint32_t bin) {
  constexpr uint32_t kEach = kStripeWords / kWarp;
  const int32_t threshold = slot.progress->threshold;
  const uint32_t* const words = batch.bitmaps + uint64_t{stripe} * kStripeWords + kEach * lane();
  uint32_t own[kEach];
  uint32_t found = 0;
#pragma unroll
  for (uint32_t w = 0; w < kEach; ++w) {
    own[w] = words[w];
    found += static_cast<uint32_t>(__popc(own[w]));
  }
  uint32_t total;
  uint32_t to = before + sum_of_lanes_before(found, &total);
  const uint32_t begin = (stripe - slot.first_stripe) * kStripe + 32 * kEach * lane();
  uint32_t larger = 0;
#pragma unroll
  for (uint32_t w = 0; w < kEach; ++w) {
    for (uint32_t word = own[w]; word != 0 && to < slot.capacity; word &= word - 1, ++to) {
      const uint32_t i = begin + 32 * w + static_cast<uint32_t>(__ffs(static_cast<int>(word))) - 1;
      const float v = accumulated(slot, i);
      slot.candidates[to] = i;
      slot.candidate_values[to] = v;
      const uint32_t its = bin_of(magnitude(v), threshold);
      larger += its > bin ? 1 : 0;
      if (its != bin) continue;
      const uint32_t place = atomicAdd(&slot.progress->members, 1u);
      if (place < slot.member_capacity) slot.members[place] = {magnitude(v), stripe};
    }
  }
  larger = sum_of_lanes(larger);
  if (lane() == 0) {
    batch.stripe_counts.larger[stripe] = larger;
    if (larger > 0) atomicAdd(&batch.row_counts.larger[slot.first_row + (stripe - slot.first_stripe) / kRow], larger);
  }
}

__global__ void __launch_bounds__(kThreads) place(Batch batch) {
  struct Shared {
    BlockScratch scratch;
    Narrowed narrowed;
  };
  DGC_SHARED(Shared, shared);
  const uint32_t row = blockIdx.x;
  const Slot slot = batch.slots[batch.row_slot[row]];
  const uint32_t first = slot.first_stripe + (row - slot.first_row) * kRow;
  const uint32_t beyond = slot.first_stripe + slot.stripes;
  const bool finite = slot.progress->nonfinite == 0;
  if (slot.format.dense()) {
    for (uint32_t s = first; s < first + kRow && s < beyond && !finite; ++s) code_stripe(slot, s, true);
    return;
  }
  if (!finite) return;
  const uint32_t stripe = first + threadIdx.x / kWarp;
  const uint32_t own = stripe < beyond ? batch.stripe_counts.candidates[stripe] : 0;
  if (stripe < beyond && lane() == 0) {
    batch.stripe_counts.ties[stripe] = 0;
    if (own == 0) batch.stripe_counts.larger[stripe] = 0;
  }
  if (batch.row_counts.candidates[row] == 0) return;
  // Where there are fewer candidates than k, nothing of what is found here is used.
  if (threadIdx.x == 0) shared.narrowed = {kBins, 0};
  const Narrowed bin = bin_with<kThreads>(slot.format.k, slot.histogram, &shared.scratch, &shared.narrowed);
  uint32_t before = 0;
  for (uint32_t r = slot.first_row + threadIdx.x; r < row; r += kThreads) before += batch.row_counts.candidates[r];
  before = sum_of_block<kThreads>(before, &shared.scratch);
  before += sum_of_lanes(lane() < threadIdx.x / kWarp ? batch.stripe_counts.candidates[first + lane()] : 0);
  if (own > 0) place_stripe(batch, slot, stripe, before, bin.bin);
}

struct SettleShared {
  BlockScratch scratch;
  Narrowed narrowed;
  uint32_t histogram[kBins];
};

// The k-th magnitude of one tensor, among the members of the bin that it is in.
__device__ void settle_tensor(const Batch& batch, const Slot& slot, SettleShared* shared) {
  Progress& progress = *slot.progress;
  uint32_t own = 0;
  for (uint32_t b = threadIdx.x; b < kBins; b += kThreads) own += slot.histogram[b];
  const uint32_t candidates = sum_of_block<kThreads>(own, &shared->scratch);
  const uint32_t members = progress.members;
  const bool found = candidates >= slot.format.k && candidates <= slot.capacity && members <= slot.member_capacity;
  if (threadIdx.x == 0) {
    progress.outcome = found ? Outcome::found : Outcome::failed;
    if (!found) atomicAdd(batch.failures, 1u);
  }
  if (!found) return;
  const Narrowed bin = bin_with<kThreads>(slot.format.k, slot.histogram, &shared->scratch, &shared->narrowed);
  const uint32_t open = open_bits(progress.threshold);
  Search search{progress.threshold + 1 + static_cast<int32_t>(bin.bin << open), kLargestFinite,
                slot.format.k - bin.above};
  if (bin.bin + 1 < kBins) {
    const int32_t high = search.low + static_cast<int32_t>((1u << open) - 1);
    if (high < search.high) search.high = high;
  }
  while (!search.over()) {
    for (uint32_t b = threadIdx.x; b < kBins; b += kThreads) shared->histogram[b] = 0;
    __syncthreads();
    for (uint32_t first = 0; first < members; first += kThreads) {
      const int32_t m = first + threadIdx.x < members ? slot.members[first + threadIdx.x].magnitude : -1;
      const bool counts = search.has(m);
      count_in(shared->histogram, counts, counts ? search.bin(m) : 0);
    }
    __syncthreads();
    search = narrowed<kThreads>(search, shared->histogram, &shared->scratch, &shared->narrowed);
  }
  for (uint32_t i = threadIdx.x; i < members; i += kThreads) {
    const Member member = slot.members[i];
    if (member.magnitude < search.low) continue;
    const bool tie = member.magnitude == search.low;
    const uint32_t row = slot.first_row + (member.stripe - slot.first_stripe) / kRow;
    atomicAdd(&(tie ? batch.stripe_counts.ties : batch.stripe_counts.larger)[member.stripe], 1u);
    atomicAdd(&(tie ? batch.row_counts.ties : batch.row_counts.larger)[row], 1u);
  }
  if (threadIdx.x == 0) {
    progress.smallest = search.low;
    progress.taken = search.taken;
  }
}
// The smallest magnitude among the k largest of a tensor, searched in passes over everything by all blocks together.
__device__ Search searched_everywhere(const Batch& batch, const Slot& slot, SettleShared* shared) {
  const uint32_t thread = threadIdx.x;
  const uint32_t n = slot.format.n;
  Search search{0, kLargestFinite, slot.format.k};
  while (!search.over()) {
    grid_barrier();
    for (uint32_t b = blockIdx.x * kThreads + thread; b < kBins; b += gridDim.x * kThreads) batch.rescue_histogram[b] = 0;
    for (uint32_t b = thread; b < kBins; b += kThreads) shared->histogram[b] = 0;
    grid_barrier();
    for (uint32_t stripe = blockIdx.x; stripe < slot.stripes; stripe += gridDim.x) {
      for (uint32_t at = 0; at < kStripe && stripe * kStripe + at < n; at += kThreads) {
        const uint32_t i = stripe * kStripe + at + thread;
        const int32_t m = i < n ? magnitude(accumulated(slot, i)) : -1;
        const bool counts = search.has(m);
        count_in(shared->histogram, counts, counts ? search.bin(m) : 0);
      }
    }
    __syncthreads();
    for (uint32_t b = thread; b < kBins; b += kThreads) {
      if (shared->histogram[b]) atomicAdd(&batch.rescue_histogram[b], shared->histogram[b]);
    }
    grid_barrier();
    search = narrowed<kThreads>(search, batch.rescue_histogram, &shared->scratch, &shared->narrowed);
  }
  return search;
}

// How many coordinates of each stripe are larger than the smallest one that is taken, and how many are as large.
__device__ void count_everywhere(const Batch& batch, const Slot& slot, const Search& search, BlockScratch* scratch) {
  const uint32_t n = slot.format.n;
  for (uint32_t stripe = blockIdx.x; stripe < slot.stripes; stripe += gridDim.x) {
    uint32_t above = 0, ties = 0;
    for (uint32_t i = stripe * kStripe + threadIdx.x; i < n && i < (stripe + 1) * kStripe; i += kThreads) {
      const int32_t m = magnitude(accumulated(slot, i));
      above += m > search.low ? 1 : 0;
      ties += m == search.low ? 1 : 0;
    }
    above = sum_of_block<kThreads>(above, scratch);
    ties = sum_of_block<kThreads>(ties, scratch);
    if (threadIdx.x == 0) {
      batch.stripe_counts.larger[slot.first_stripe + stripe] = above;
      batch.stripe_counts.ties[slot.first_stripe + stripe] = ties;
    }
  }
}

// The k largest of all coordinates, in order, once those of each stripe have been counted.
__device__ void take_everywhere(const Batch& batch, const Slot& slot, const Search& search, BlockScratch* scratch) {
  const uint32_t thread = threadIdx.x;
  const uint32_t n = slot.format.n;
  for (uint32_t stripe = blockIdx.x; stripe < slot.stripes; stripe += gridDim.x) {
    uint32_t above = 0, ties = 0;
    for (uint32_t s = thread; s < stripe; s += kThreads) {
      above += batch.stripe_counts.larger[slot.first_stripe + s];
      ties += batch.stripe_counts.ties[slot.first_stripe + s];
    }
    above = sum_of_block<kThreads>(above, scratch);
    ties = sum_of_block<kThreads>(ties, scratch);
    for (uint32_t at = 0; at < kStripe && stripe * kStripe + at < n; at += kThreads) {
      const uint32_t i = stripe * kStripe + at + thread;
      const float v = i < n ? accumulated(slot, i) : 0.0f;
      const int32_t m = i < n ? magnitude(v) : -1;
      uint32_t all;
      const uint32_t ties_here = sum_before<kThreads>(m == search.low ? 1 : 0, scratch, &all);
      const uint32_t all_ties = all;
      const uint32_t above_here = sum_before<kThreads>(m > search.low ? 1 : 0, scratch, &all);
      const uint32_t tied = ties + ties_here;
      if (m > search.low || (m == search.low && tied < search.taken)) {
        const uint32_t to = above + above_here + (tied < search.taken ? tied : search.taken);
        slot.indices[to] = i;
        slot.sent[to] = v;
      }
      above += all;
      ties += all_ties;
    }
  }
}

// What becomes of a tensor whose candidates were fewer than k, or more than there is room for: the k largest all the
// same, without a list. Each pass over everything settles eleven bits of the last one's magnitude.
__device__ void rescue(const Batch& batch, const Slot& slot, SettleShared* shared) {
  const Search search = searched_everywhere(batch, slot, shared);
  count_everywhere(batch, slot, search, &shared->scratch);
  grid_barrier();
  take_everywhere(batch, slot, search, &shared->scratch);
  grid_barrier();
  if (blockIdx.x == 0 && threadIdx.x == 0) slot.progress->outcome = Outcome::rescued;
}

// A tensor for each block; then those that it has failed for, all blocks together.
__global__ void __launch_bounds__(kThreads) settle(Batch batch) {
  DGC_SHARED(SettleShared, shared);
  for (uint32_t number = blockIdx.x; number < batch.count; number += gridDim.x) {
    const Slot& slot = batch.slots[number];
    if (!slot.format.dense() && !slot.progress->nonfinite) settle_tensor(batch, slot, &shared);
  }
  grid_barrier();
  if (*batch.failures == 0) return;
  for (uint32_t number = 0; number < batch.count; ++number) {
    const Slot& slot = batch.slots[number];
    if (!slot.format.dense() && slot.progress->outcome == Outcome::failed) rescue(batch, slot, &shared);
  }
}

__global__ void __launch_bounds__(kThreads) take(Batch batch) {
  DGC_SHARED(BlockScratch, scratch);
  const uint32_t row = blockIdx.x;
  const Slot slot = batch.slots[batch.row_slot[row]];
  if (slot.format.dense() || batch.row_counts.candidates[row] == 0 || slot.progress->outcome != Outcome::found) return;
  const Before before = counted_before(batch, slot, row, &scratch);
  const uint32_t stripe = slot.first_stripe + (row - slot.first_row) * kRow + threadIdx.x / kWarp;
  const uint32_t count = stripe < slot.first_stripe + slot.stripes ? batch.stripe_counts.candidates[stripe] : 0;
  const int32_t smallest = slot.progress->smallest;
  const uint32_t taken = slot.progress->taken;
  uint32_t larger = before.larger, ties = before.ties;
  for (uint32_t first = 0; first < count; first += kWarp) {
    const uint32_t i = before.candidates + first + lane();
    const bool there = first + lane() < count;
    const float v = there ? slot.candidate_values[i] : 0.0f;
    const int32_t m = there ? magnitude(v) : -1;
    // Both counts in one word.
    uint32_t both;
    const uint32_t own = (m > smallest ? 1u << 16 : 0u) | (m == smallest ? 1u : 0u);
    const uint32_t here = sum_of_lanes_before(own, &both);
    const uint32_t tied = ties + (here & 0xffffu);
    if (m > smallest || (m == smallest && tied < taken)) {
      const uint32_t to = larger + (here >> 16) + (tied < taken ? tied : taken);
      slot.indices[to] = slot.candidates[i];
      slot.sent[to] = v;
    }
    larger += both >> 16;
    ties += both & 0xffffu;
  }
}

}  // namespace

void select_largest(const Batch& batch, void* stream) {
  launch("collect", collect, batch.stripes, kThreads, stream, batch);
  launch("place", place, batch.rows, kThreads, stream, batch);
  launch_together("settle", settle, batch.stripes, kThreads, stream, batch);
  launch("take", take, batch.rows, kThreads, stream, batch);
}

}  // namespace dgc::cuda
