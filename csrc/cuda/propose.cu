#include "propose.h"

#include "coded_values.h"
#include "elements.h"
#include "launch.h"

namespace dgc::cuda {
namespace {

constexpr uint32_t kSampledEach = kMostSampled / kSelectThreads;
constexpr uint32_t kSampleRun = 32;  // neighbours that are sampled together
constexpr int32_t kLargestFinite = kInfinityBits - 1;

__global__ void __launch_bounds__(kSelectThreads) sample(Batch batch) {
  DGC_SHARED(BlockScratch, scratch);
  const Slot slot = batch.slots[blockIdx.x];
  const uint32_t thread = threadIdx.x;
  const uint32_t rows = (slot.stripes + kRow - 1) / kRow;
  for (uint32_t row = thread; row < rows; row += kSelectThreads) batch.rows[slot.first_row + row] = 0;
  int32_t threshold = kNoThreshold;
  if (slot.rank > 0) {
    // In registers: the loops over them are unrolled.
    int32_t sampled[kSampledEach];
    // Run r begins at line floor(r * lines / runs), without a product that has more than 32 bits.
    const uint32_t runs = slot.sampled / kSampleRun;
    const uint32_t distance = slot.format.n / kSampleRun / runs;
    const uint32_t rest = slot.format.n / kSampleRun % runs;
#pragma unroll
    for (uint32_t s = 0; s < kSampledEach; ++s) {
      const uint32_t number = s * kSelectThreads + thread;
      sampled[s] = -1;
      if (number < slot.sampled) {
        const uint32_t run = number / kSampleRun;
        const uint32_t line = run * distance + run * rest / runs;
        sampled[s] = magnitude(accumulated(slot, line * kSampleRun + number % kSampleRun));
      }
    }
    // At least `rank` exceed `threshold`, fewer exceed `above`. Seven bits of the mantissa will do for a guess.
    int32_t above = 0x7fffffff;
    for (;;) {
      const uint32_t apart = static_cast<uint32_t>(above) - static_cast<uint32_t>(threshold);
      if (apart <= 1u << 16) break;
      const int32_t middle = static_cast<int32_t>(static_cast<uint32_t>(threshold) + apart / 2);
      uint32_t larger = 0;
#pragma unroll
      for (uint32_t s = 0; s < kSampledEach; ++s) larger += sampled[s] > middle ? 1 : 0;
      if (sum_of_block<kSelectThreads>(larger, &scratch) >= slot.rank) {
        threshold = middle;
      } else {
        above = middle;
      }
    }
  }
  if (thread == 0) *slot.progress = {threshold < kLargestFinite ? threshold : kLargestFinite, 0, 0, 0, 0};
}

// Which coordinates of its stripe exceed the threshold, as a bitmap in shared memory.
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
  for (uint32_t at = 4 * thread; at < kStripe && begin + at < n; at += 4 * kThreads) {
    const uint32_t i = begin + at;
    Four velocity;
    const Four v = accumulated_four(slot, i, slot.aligned && i + 4 <= n, &velocity);
    uint32_t bits = 0;
    for (uint32_t c = 0; c < 4; ++c) {
      const int32_t m = magnitude(v.x[c]);
      finite = finite && m < kInfinityBits;
      bits |= (m > threshold && i + c < n ? 1u : 0u) << c;
    }
    if (bits) atomicOr(&shared.bitmap[at / 32], bits << at % 32);
  }
  if (!finite) slot.progress->nonfinite = 1;
  __syncthreads();
  const uint32_t word = shared.bitmap[thread];
  const uint32_t found = sum_of_block<kThreads>(static_cast<uint32_t>(__popc(word)), &shared.scratch);
  if (found > 0) batch.bitmaps[uint64_t{stripe} * kStripeWords + thread] = word;
  if (thread == 0) {
    batch.counts[stripe] = found;
    if (found > 0) atomicAdd(&batch.rows[slot.first_row + (stripe - slot.first_stripe) / kRow], found);
  }
}

// All values of its stripe, coded.
__device__ void code_stripe(const Slot& slot, uint32_t stripe) {
  DGC_SHARED(BlockScratch, scratch);
  const uint32_t n = slot.format.n;
  const uint32_t begin = (stripe - slot.first_stripe) * kStripe;
  for (uint32_t at = 0; at < kStripe && begin + at < n; at += kGroup) {
    const uint32_t i = begin + at + threadIdx.x;
    const float v = i < n ? accumulated(slot, i) : 0.0f;
    if (magnitude(v) >= kInfinityBits) slot.progress->nonfinite = 1;
    code_value(slot.format, slot.payload, (begin + at) / kGroup, v, &scratch);
  }
}

__global__ void __launch_bounds__(kThreads) collect(Batch batch) {
  const uint32_t stripe = blockIdx.x;
  const Slot slot = batch.slots[batch.stripe_slot[stripe]];
  if (slot.format.dense()) {
    code_stripe(slot, stripe);
  } else {
    find_candidates(batch, slot, stripe);
  }
}

// Sum of counts[0..count) over the stripes of a tensor, with the help of the sums of its rows.
__device__ uint32_t counted_before(const Batch& batch, const Slot& slot, uint32_t stripe, BlockScratch* scratch) {
  const uint32_t own = stripe - slot.first_stripe;
  const uint32_t row = own / kRow;
  uint32_t before = 0;
  for (uint32_t r = threadIdx.x; r < row; r += kThreads) before += batch.rows[slot.first_row + r];
  const uint32_t s = row * kRow + threadIdx.x;
  if (s < own) before += batch.counts[slot.first_stripe + s];
  return sum_of_block<kThreads>(before, scratch);
}

__global__ void __launch_bounds__(kThreads) place(Batch batch) {
  DGC_SHARED(BlockScratch, scratch);
  const uint32_t stripe = blockIdx.x;
  const Slot slot = batch.slots[batch.stripe_slot[stripe]];
  const bool last = stripe + 1 == slot.first_stripe + slot.stripes;
  if (slot.format.dense() || (batch.counts[stripe] == 0 && !last)) return;
  const uint32_t before = counted_before(batch, slot, stripe, &scratch);
  if (last && threadIdx.x == 0) slot.progress->candidates = before + batch.counts[stripe];
  if (batch.counts[stripe] == 0) return;
  uint32_t word = batch.bitmaps[uint64_t{stripe} * kStripeWords + threadIdx.x];
  uint32_t total;
  uint32_t to = before + sum_before<kThreads>(static_cast<uint32_t>(__popc(word)), &scratch, &total);
  const uint32_t begin = (stripe - slot.first_stripe) * kStripe + 32 * threadIdx.x;
  for (; word != 0 && to < slot.capacity; word &= word - 1, ++to) {
    const uint32_t i = begin + static_cast<uint32_t>(__ffs(static_cast<int>(word))) - 1;
    slot.candidates[to] = i;
    slot.candidate_values[to] = accumulated(slot, i);
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

// The search among the magnitudes of the bin that the last one taken is in.
template <uint32_t kBlock>
__device__ Search narrowed(const Search& search, const uint32_t* histogram, BlockScratch* scratch, Narrowed* result) {
  constexpr uint32_t kEach = kBins / kBlock;
  // The first thread has the uppermost bins.
  const uint32_t first = kBins - (threadIdx.x + 1) * kEach;
  uint32_t own = 0;
  for (uint32_t b = 0; b < kEach; ++b) own += histogram[first + b];
  uint32_t total;
  uint32_t above = sum_before<kBlock>(own, scratch, &total);
  if (above < search.taken && search.taken <= above + own) {
    uint32_t bin = first + kEach - 1;
    while (above + histogram[bin] < search.taken) above += histogram[bin--];
    *result = {bin, above};
  }
  __syncthreads();
  const uint32_t shift = search.shift();
  Search next = search;
  next.low = search.low + static_cast<int32_t>(result->bin << shift);
  const int32_t high = next.low + static_cast<int32_t>((1u << shift) - 1);
  if (high < next.high) next.high = high;
  next.taken = search.taken - result->above;
  __syncthreads();
  return next;
}

// Passes over everything, all blocks together, tensor by tensor.
__global__ void __launch_bounds__(kThreads) rescue(Batch batch) {
  struct Shared {
    uint32_t histogram[kBins];
    BlockScratch scratch;
    Narrowed narrowed;
  };
  DGC_SHARED(Shared, shared);
  const uint32_t thread = threadIdx.x;
  for (uint32_t number = 0; number < batch.count; ++number) {
    const Slot& slot = batch.slots[number];
    const uint32_t n = slot.format.n;
    const uint32_t candidates = slot.progress->candidates;
    if (slot.format.dense() || slot.progress->nonfinite ||
        (candidates >= slot.format.k && candidates <= slot.capacity)) {
      continue;
    }
    Search search{0, kLargestFinite, slot.format.k};
    while (!search.over()) {
      grid_barrier();
      for (uint32_t b = blockIdx.x * kThreads + thread; b < kBins; b += gridDim.x * kThreads) batch.histogram[b] = 0;
      for (uint32_t b = thread; b < kBins; b += kThreads) shared.histogram[b] = 0;
      grid_barrier();
      for (uint32_t stripe = blockIdx.x; stripe < slot.stripes; stripe += gridDim.x) {
        for (uint32_t at = 0; at < kStripe && stripe * kStripe + at < n; at += kThreads) {
          const uint32_t i = stripe * kStripe + at + thread;
          const int32_t m = i < n ? magnitude(accumulated(slot, i)) : -1;
          const bool counts = search.has(m);
          count_in(shared.histogram, counts, counts ? search.bin(m) : 0);
        }
      }
      __syncthreads();
      for (uint32_t b = thread; b < kBins; b += kThreads) {
        if (shared.histogram[b]) atomicAdd(&batch.histogram[b], shared.histogram[b]);
      }
      grid_barrier();
      search = narrowed<kThreads>(search, batch.histogram, &shared.scratch, &shared.narrowed);
    }
    for (uint32_t stripe = blockIdx.x; stripe < slot.stripes; stripe += gridDim.x) {
      uint32_t above = 0, ties = 0;
      for (uint32_t i = stripe * kStripe + thread; i < n && i < (stripe + 1) * kStripe; i += kThreads) {
        const int32_t m = magnitude(accumulated(slot, i));
        above += m > search.low ? 1 : 0;
        ties += m == search.low ? 1 : 0;
      }
      above = sum_of_block<kThreads>(above, &shared.scratch);
      ties = sum_of_block<kThreads>(ties, &shared.scratch);
      if (thread == 0) {
        batch.counts[slot.first_stripe + stripe] = above;
        batch.ties[slot.first_stripe + stripe] = ties;
      }
    }
    grid_barrier();
    for (uint32_t stripe = blockIdx.x; stripe < slot.stripes; stripe += gridDim.x) {
      uint32_t above = 0, ties = 0;
      for (uint32_t s = thread; s < stripe; s += kThreads) {
        above += batch.counts[slot.first_stripe + s];
        ties += batch.ties[slot.first_stripe + s];
      }
      above = sum_of_block<kThreads>(above, &shared.scratch);
      ties = sum_of_block<kThreads>(ties, &shared.scratch);
      for (uint32_t at = 0; at < kStripe && stripe * kStripe + at < n; at += kThreads) {
        const uint32_t i = stripe * kStripe + at + thread;
        const float v = i < n ? accumulated(slot, i) : 0.0f;
        const int32_t m = i < n ? magnitude(v) : -1;
        uint32_t all;
        const uint32_t ties_here = sum_before<kThreads>(m == search.low ? 1 : 0, &shared.scratch, &all);
        const uint32_t all_ties = all;
        const uint32_t above_here = sum_before<kThreads>(m > search.low ? 1 : 0, &shared.scratch, &all);
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
    if (blockIdx.x == 0 && thread == 0) slot.progress->settled = 1;
    grid_barrier();
  }
}

// The payload that says that a value is not finite: NaN at the first coordinates.
__device__ void poison(const Slot& slot) {
  const Format& format = slot.format;
  const float nan = bits_float(0x7fc00000u);
  if (!format.dense()) {
    for (uint32_t j = threadIdx.x; j < format.k; j += kSelectThreads) {
      slot.indices[j] = j;
      slot.sent[j] = nan;
    }
    return;
  }
  const bool codes = format.values == Values::int8 || format.values == Values::int4;
  const uint64_t header = codes ? scale_bytes(format.k) : format.value_bytes;
  if (format.values == Values::float32 || codes) {
    for (uint64_t j = threadIdx.x; j < header / 4; j += kSelectThreads) reinterpret_cast<float*>(slot.payload)[j] = nan;
  } else {
    const uint16_t half = format.values == Values::float16 ? float_to_half(nan) : float_to_bfloat16(nan);
    for (uint64_t j = threadIdx.x; j < header / 2; j += kSelectThreads) {
      reinterpret_cast<uint16_t*>(slot.payload)[j] = half;
    }
  }
  for (uint64_t b = header + threadIdx.x; b < format.value_bytes; b += kSelectThreads) slot.payload[b] = 0;
}

// A whole tensor in one block.
__global__ void __launch_bounds__(kSelectThreads) select(Batch batch) {
  struct Shared {
    uint32_t histogram[kBins];
    BlockScratch scratch;
    Narrowed narrowed;
  };
  DGC_SHARED(Shared, shared);
  const Slot slot = batch.slots[blockIdx.x];
  const uint32_t thread = threadIdx.x;
  if (slot.progress->nonfinite) {
    poison(slot);
    return;
  }
  if (slot.format.dense() || slot.progress->settled) return;
  const uint32_t count = slot.progress->candidates;
  const float* const values = slot.candidate_values;
  int32_t largest = 0;
  for (uint32_t i = thread; i < count; i += kSelectThreads) {
    const int32_t m = magnitude(values[i]);
    largest = m > largest ? m : largest;
  }
  Search search{slot.progress->threshold + 1, max_of_block<kSelectThreads>(largest, &shared.scratch), slot.format.k};
  while (!search.over()) {
    for (uint32_t b = thread; b < kBins; b += kSelectThreads) shared.histogram[b] = 0;
    __syncthreads();
    for (uint32_t first = 0; first < count; first += kSelectThreads) {
      const int32_t m = first + thread < count ? magnitude(values[first + thread]) : -1;
      const bool counts = search.has(m);
      count_in(shared.histogram, counts, counts ? search.bin(m) : 0);
    }
    __syncthreads();
    search = narrowed<kSelectThreads>(search, shared.histogram, &shared.scratch, &shared.narrowed);
  }
  // Several in a row for each thread, so that there is little to add up between threads.
  constexpr uint32_t kEach = 8;
  uint32_t above = 0, ties = 0;
  for (uint32_t tile = 0; tile < count; tile += kEach * kSelectThreads) {
    const uint32_t first = tile + kEach * thread;
    uint32_t own_above = 0, own_ties = 0;
    for (uint32_t i = first; i < first + kEach && i < count; ++i) {
      const int32_t m = magnitude(values[i]);
      own_above += m > search.low ? 1 : 0;
      own_ties += m == search.low ? 1 : 0;
    }
    // Both counts in one word: a tile has less than 2^16.
    uint32_t both;
    const uint32_t before = sum_before<kSelectThreads>(own_above << 16 | own_ties, &shared.scratch, &both);
    uint32_t a = above + (before >> 16), t = ties + (before & 0xffffu);
    for (uint32_t i = first; i < first + kEach && i < count; ++i) {
      const float v = values[i];
      const int32_t m = magnitude(v);
      if (m < search.low) continue;
      const bool tie = m == search.low;
      if (!tie || t < search.taken) {
        const uint32_t to = a + (t < search.taken ? t : search.taken);
        slot.indices[to] = slot.candidates[i];
        slot.sent[to] = v;
      }
      a += tie ? 0 : 1;
      t += tie ? 1 : 0;
    }
    above += both >> 16;
    ties += both & 0xffffu;
  }
}

// Bits of the high part are set in shared memory, window by window.
constexpr uint32_t kWindow = 1024;  // bytes

struct CodeShared {
  BlockScratch scratch;
  uint32_t low[kGroup];  // at most 32 bits of each index
  uint32_t window[kWindow / 4];
};

__device__ uint8_t byte_of(const uint32_t* words, uint32_t b) {
  return static_cast<uint8_t>(words[b / 4] >> (8 * (b % 4)));
}

// The bytes of the high part in which this group's bits are, up to the first one of the next group's.
__device__ void code_high(const Slot& slot, uint32_t group, CodeShared* shared) {
  const Format& format = slot.format;
  const uint32_t low = format.low;
  const auto bit_of = [&](uint32_t j) { return uint64_t{slot.indices[j] >> low} + j; };
  const uint32_t begin = group * kGroup;
  const uint32_t end = begin + kGroup < format.k ? begin + kGroup : format.k;
  const uint64_t from = group == 0 ? 0 : bit_of(begin) / 8;
  const uint64_t until = end == format.k ? format.high_bytes : bit_of(end) / 8;
  uint8_t* const bytes = slot.payload + format.value_bytes + format.low_bytes;
  // Of the groups before, only the last eight coordinates can have bits in the first byte.
  constexpr uint32_t kBefore = 8;
  const uint32_t mine = begin + threadIdx.x;
  const uint32_t other = begin - kBefore + threadIdx.x;
  const bool has_mine = mine < end, has_other = threadIdx.x < kBefore && group > 0;
  const uint64_t my_bit = has_mine ? bit_of(mine) : 0, other_bit = has_other ? bit_of(other) : 0;
  for (uint64_t window = from; window < until; window += kWindow) {
    shared->window[threadIdx.x] = 0;
    static_assert(kWindow / 4 == kGroup, "one word for each thread");
    __syncthreads();
    const auto set = [&](bool there, uint64_t bit) {
      if (!there || bit / 8 < window || bit / 8 >= window + kWindow) return;
      const uint32_t in_window = static_cast<uint32_t>(bit - 8 * window);
      atomicOr(&shared->window[in_window / 32], 1u << in_window % 32);
    };
    set(has_mine, my_bit);
    set(has_other, other_bit);
    __syncthreads();
    for (uint32_t b = threadIdx.x; b < kWindow && window + b < until; b += kGroup) {
      bytes[window + b] = byte_of(shared->window, b);
    }
    __syncthreads();
  }
}

// The low bits of this group's indices are whole bytes, since a group has a multiple of 8.
__device__ void code_low(const Slot& slot, uint32_t group, CodeShared* shared) {
  const Format& format = slot.format;
  const uint32_t low = format.low;
  const uint32_t j = group * kGroup + threadIdx.x;
  shared->low[threadIdx.x] = 0;
  __syncthreads();
  if (j < format.k && low > 0) {
    const uint64_t bits = low < 32 ? slot.indices[j] & ((1u << low) - 1) : slot.indices[j];
    const uint32_t at = threadIdx.x * low;
    const uint64_t shifted = bits << at % 32;
    atomicOr(&shared->low[at / 32], static_cast<uint32_t>(shifted));
    if (shifted >> 32) atomicOr(&shared->low[at / 32 + 1], static_cast<uint32_t>(shifted >> 32));
  }
  __syncthreads();
  const uint64_t begin = uint64_t{group} * kGroup / 8 * low;
  uint8_t* const bytes = slot.payload + format.value_bytes + begin;
  for (uint32_t b = threadIdx.x; b < kGroup / 8 * low && begin + b < format.low_bytes; b += kGroup) {
    bytes[b] = byte_of(shared->low, b);
  }
}

__global__ void __launch_bounds__(kGroup) code(Batch batch) {
  DGC_SHARED(CodeShared, shared);
  const Slot slot = batch.slots[batch.group_slot[blockIdx.x]];
  const uint32_t group = blockIdx.x - slot.first_group;
  const uint32_t j = group * kGroup + threadIdx.x;
  const bool there = j < slot.format.k;
  const float sent = code_value(slot.format, slot.payload, group, there ? slot.sent[j] : 0.0f, &shared.scratch);
  if (there) slot.sent[j] = sent;
  const uint32_t nonzero = sum_of_block<kGroup>(there && sent != 0.0f ? 1 : 0, &shared.scratch);
  if (threadIdx.x == 0) atomicAdd(&slot.progress->nonzero, nonzero);
  code_low(slot, group, &shared);
  if (slot.format.elias_fano) code_high(slot, group, &shared);
}

}  // namespace

void propose(const Batch& batch, void* stream) {
  launch("sample", sample, batch.count, kSelectThreads, stream, batch);
  launch("collect", collect, batch.stripes, kThreads, stream, batch);
  launch("place", place, batch.stripes, kThreads, stream, batch);
  launch_together("rescue", rescue, batch.stripes, kThreads, stream, batch);
  launch("select", select, batch.count, kSelectThreads, stream, batch);
  launch("code", code, batch.groups, kGroup, stream, batch);
}

}  // namespace dgc::cuda
