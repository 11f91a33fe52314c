#include "coded_values.h"
#include "launch.h"
#include "propose.h"

namespace dgc::cuda {
namespace {

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
__device__ void code_high(const Slot& slot, uint32_t group, bool poison, CodeShared* shared) {
  const Format& format = slot.format;
  const uint32_t low = format.low;
  const auto bit_of = [&](uint32_t j) { return uint64_t{(poison ? j : slot.indices[j]) >> low} + j; };
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
__device__ void code_low(const Slot& slot, uint32_t group, uint32_t index, CodeShared* shared) {
  const Format& format = slot.format;
  const uint32_t low = format.low;
  const uint32_t j = group * kGroup + threadIdx.x;
  shared->low[threadIdx.x] = 0;
  __syncthreads();
  if (j < format.k && low > 0) {
    const uint64_t bits = low < 32 ? index & ((1u << low) - 1) : index;
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
  // NaN at the first coordinates says that a value is not finite.
  const bool poison = slot.progress->nonfinite != 0;
  const float value = !there ? 0.0f : poison ? quiet_nan() : slot.sent[j];
  const uint32_t index = !there || poison ? j : slot.indices[j];
  const float sent = code_value(slot.format, slot.payload, group, value, &shared.scratch);
  if (there) slot.sent[j] = sent;
  if (there && poison) slot.indices[j] = j;
  const uint32_t nonzero = sum_of_block<kGroup>(there && sent != 0.0f ? 1 : 0, &shared.scratch);
  if (threadIdx.x == 0) atomicAdd(&slot.progress->nonzero, nonzero);
  code_low(slot, group, index, &shared);
  if (slot.format.elias_fano) code_high(slot, group, poison, &shared);
}

}  // namespace

void code_payloads(const Batch& batch, void* stream) {
  launch("code", code, batch.groups, kGroup, stream, batch);
}

}  // namespace dgc::cuda
