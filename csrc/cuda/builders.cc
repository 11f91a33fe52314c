#include "builders.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "index_coding.h"
#include "threshold.h"

namespace dgc::cuda {
namespace {

constexpr size_t kAligned = 16;
// Of fewer elements, all are candidates.
constexpr size_t kLeastSampledOf = 128;
constexpr uint32_t kLeastMembers = 1u << 13;
constexpr size_t kMostElements = std::numeric_limits<int32_t>::max();

size_t aligned(size_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; }

uint32_t pieces(size_t count, size_t each) { return static_cast<uint32_t>((count + each - 1) / each); }

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

bool values_of(const ValueCoder& coder, Values* values) {
  constexpr struct {
    const char* name;
    Values values;
  } kKnown[] = {{"float32", Values::float32},
                {"float16", Values::float16},
                {"bfloat16", Values::bfloat16},
                {"int8", Values::int8},
                {"int4", Values::int4}};
  for (const auto& known : kKnown) {
    if (coder.name() != known.name) continue;
    *values = known.values;
    return true;
  }
  return false;
}

// One array after another, each from a multiple of kAligned on.
class Writer {
 public:
  explicit Writer(uint8_t* to) : to_(to) {}

  template <class T>
  void put(const std::vector<T>& array) {
    static_assert(std::is_trivially_copyable<T>::value, "kernels read a copy of its bytes");
    std::memcpy(to_, array.data(), array.size() * sizeof(T));
    to_ += aligned(array.size() * sizeof(T));
  }

 private:
  uint8_t* to_;
};

template <class... Arrays>
size_t written_bytes(const Arrays&... arrays) {
  return (aligned(arrays.size() * sizeof(typename Arrays::value_type)) + ...);
}

// Where the array after these is.
template <class... Arrays>
const uint32_t* after(Address table, const Arrays&... arrays) {
  return pointer<const uint32_t>(table + written_bytes(arrays...));
}

Memory memory_of(const float* velocity, const Update& update) {
  if (velocity == nullptr) return Memory::plain;
  return update.nesterov ? Memory::nesterov : Memory::momentum;
}

}  // namespace

bool has_format(const Layout& layout) {
  Values values;
  return layout.n() <= kMostElements && values_of(layout.values(), &values) &&
         (layout.dense() || layout.indices() != IndexCoder::runlength16);
}

Format format_of(const Layout& layout) {
  if (!has_format(layout)) {
    throw std::invalid_argument(
        "this layout is not coded on a GPU; allowed: n below 2^31, indices elias-fano or int32, values float32, "
        "float16, bfloat16, int8 or int4");
  }
  Format format{};
  format.n = static_cast<uint32_t>(layout.n());
  format.k = static_cast<uint32_t>(layout.k());
  values_of(layout.values(), &format.values);
  format.value_bytes = value_bytes(layout.values(), layout.k());
  if (layout.dense()) return format;
  const uint64_t index_part = layout.nbytes() - format.value_bytes;
  format.elias_fano = layout.indices() == IndexCoder::elias_fano;
  format.low = static_cast<uint8_t>(format.elias_fano ? low_bits_per_index(layout.n(), layout.k()) : 32);
  format.low_bytes = (uint64_t{format.k} * format.low + 7) / 8;
  format.high_bytes = index_part - format.low_bytes;
  return format;
}

size_t BatchBuilder::add(const Layout& layout, const Update& update, const Arrays& arrays, bool mask, bool zero_grad) {
  Slot slot{};
  slot.format = format_of(layout);
  slot.coefficients = Coefficients(update);
  slot.memory = memory_of(arrays.velocity, update);
  slot.grad = arrays.grad;
  slot.weights = arrays.weights;
  slot.residual = arrays.residual;
  slot.velocity = arrays.velocity;
  slot.grad_type = arrays.grad_type;
  slot.weights_type = arrays.weights_type;
  const auto fits = [](const void* data, Scalar type) {
    return reinterpret_cast<uintptr_t>(data) % (4 * scalar_size(type)) == 0;
  };
  slot.aligned = fits(slot.grad, slot.grad_type) && fits(slot.weights, slot.weights_type) &&
                 fits(slot.residual, Scalar::float32) && fits(slot.velocity, Scalar::float32);
  slot.plain = slot.aligned && slot.residual && slot.grad_type == Scalar::float32 &&
               (!slot.weights || slot.weights_type == Scalar::float32);
  slot.mask = mask && !layout.dense();
  slot.zero_grad = zero_grad;

  const size_t number = slots_.size();
  const size_t n = layout.n(), k = layout.k();
  slot.first_stripe = static_cast<uint32_t>(stripe_slot_.size());
  slot.stripes = pieces(n, kStripe);
  slot.first_row = static_cast<uint32_t>(row_slot_.size());
  slot.first_group = static_cast<uint32_t>(group_slot_.size());
  stripe_slot_.resize(stripe_slot_.size() + slot.stripes, static_cast<uint32_t>(number));
  slot.rows = pieces(slot.stripes, kRow);
  row_slot_.resize(row_slot_.size() + slot.rows, static_cast<uint32_t>(number));
  payload_offsets_.push_back(payload_bytes_);
  payload_bytes_ += aligned(layout.nbytes());
  kept_offsets_.push_back(kept_bytes_);
  if (!layout.dense()) {
    group_slot_.resize(group_slot_.size() + pieces(k, kGroup), static_cast<uint32_t>(number));
    // All that the threads of a block have time for: many read at once.
    const size_t sampled = n < kLeastSampledOf ? 0 : std::min<size_t>(n, kMostSampled) / 32 * 32;
    const size_t rank = sampled > 0 ? sample_rank(sampled, n, k) : 0;
    slot.sampled = static_cast<uint32_t>(sampled);
    slot.rank = rank < sampled ? static_cast<uint32_t>(rank) : 0;
    slot.capacity = static_cast<uint32_t>(n);
    if (slot.rank > 0) {
      // What the sample leads to expect, and six standard deviations.
      const double expected = static_cast<double>(n) * slot.rank / static_cast<double>(sampled);
      const double bound = expected * (1.0 + 6.0 / std::sqrt(static_cast<double>(slot.rank))) + kSampleThreads;
      slot.capacity = static_cast<uint32_t>(std::min(static_cast<double>(n), bound));
    }
    slot.member_capacity = std::min(slot.capacity, std::max(kLeastMembers, slot.capacity / 16));
    candidates_ += slot.capacity;
    members_ += slot.member_capacity;
    sparse_ += 1;
    kept_bytes_ += 2 * aligned(4 * k);
  }
  slots_.push_back(slot);
  return number;
}

uint32_t BatchBuilder::groups(size_t number) const {
  const Format& format = slots_.at(number).format;
  return format.dense() ? 0 : pieces(format.k, kGroup);
}

size_t BatchBuilder::scratch_bytes() const {
  const size_t stripes = stripe_slot_.size();
  return 4 * (kAligned + 3 * aligned(row_slot_.size()) + 3 * aligned(stripes) + kBins * (1 + sparse_) + kStripeWords * stripes +
              2 * aligned(candidates_)) +
         members_ * sizeof(Member);
}

size_t BatchBuilder::table_bytes() const { return written_bytes(slots_, stripe_slot_, row_slot_, group_slot_); }

void BatchBuilder::write(Address table, Address payloads, Address kept, Address progress, Address scratch,
                         uint8_t* host) const {
  std::vector<Slot> slots = slots_;
  const Batch whole = batch(table, scratch);
  uint32_t* histogram = whole.bitmaps + kStripeWords * stripe_slot_.size();
  uint32_t* candidates = histogram + kBins * sparse_;
  float* values = reinterpret_cast<float*>(candidates + aligned(candidates_));
  Member* members = reinterpret_cast<Member*>(values + aligned(candidates_));
  for (size_t i = 0; i < slots.size(); ++i) {
    Slot& slot = slots[i];
    slot.progress = pointer<Progress>(progress) + i;
    slot.payload = pointer<uint8_t>(payloads + payload_offsets_[i]);
    if (slot.format.dense()) continue;
    const Address own = kept + kept_offsets_[i];
    slot.indices = pointer<uint32_t>(own);
    slot.sent = pointer<float>(own + aligned(size_t{4} * slot.format.k));
    slot.histogram = std::exchange(histogram, histogram + kBins);
    slot.candidates = std::exchange(candidates, candidates + slot.capacity);
    slot.candidate_values = std::exchange(values, values + slot.capacity);
    slot.members = std::exchange(members, members + slot.member_capacity);
  }
  Writer writer(host);
  writer.put(slots);
  writer.put(stripe_slot_);
  writer.put(row_slot_);
  writer.put(group_slot_);
}

Batch BatchBuilder::batch(Address table, Address scratch) const {
  const size_t stripes = stripe_slot_.size();
  Batch batch{};
  batch.slots = pointer<const Slot>(table);
  batch.stripe_slot = after(table, slots_);
  batch.row_slot = after(table, slots_, stripe_slot_);
  batch.group_slot = after(table, slots_, stripe_slot_, row_slot_);
  batch.count = static_cast<uint32_t>(slots_.size());
  batch.stripes = static_cast<uint32_t>(stripes);
  batch.rows = static_cast<uint32_t>(row_slot_.size());
  batch.groups = static_cast<uint32_t>(group_slot_.size());
  uint32_t* next = pointer<uint32_t>(scratch);
  const auto part = [&next](size_t count) { return std::exchange(next, next + count); };
  batch.rescue_histogram = part(kBins);
  batch.failures = part(kAligned);
  for (auto [counts, count] : {std::pair(&batch.row_counts, row_slot_.size()), std::pair(&batch.stripe_counts, stripes)}) {
    counts->candidates = part(aligned(count));
    counts->larger = part(aligned(count));
    counts->ties = part(aligned(count));
  }
  batch.bitmaps = next;
  return batch;
}

void SumsBuilder::add(const Layout& layout, Address payloads, size_t count, Address out, float scale) {
  Sum sum{};
  sum.format = format_of(layout);
  sum.payloads = pointer<const uint8_t>(payloads);
  sum.count = static_cast<uint32_t>(count);
  sum.out = pointer<float>(out);
  sum.scale = scale;
  sum.first_block = static_cast<uint32_t>(block_sum_.size());
  const uint32_t number = static_cast<uint32_t>(sums_.size());
  const uint32_t blocks = pieces(layout.n(), layout.dense() ? kStripe : kRange);
  block_sum_.resize(block_sum_.size() + blocks, number);
  sum.first_segment = static_cast<uint32_t>(segment_sum_.size());
  if (!layout.dense()) {
    sum.segments = sum.format.elias_fano ? pieces(sum.format.high_bytes, kSegment) : pieces(layout.k(), kThreads);
    segment_sum_.resize(segment_sum_.size() + count * sum.segments, number);
  }
  offsets_.push_back(coordinates_);
  coordinates_ += layout.dense() ? 0 : count * layout.k();
  sums_.push_back(sum);
}

size_t SumsBuilder::table_bytes() const { return written_bytes(sums_, block_sum_, segment_sum_); }

void SumsBuilder::write(Address scratch, uint8_t* host) const {
  std::vector<Sum> sums = sums_;
  for (size_t i = 0; i < sums.size(); ++i) sums[i].indices = pointer<uint32_t>(scratch) + offsets_[i];
  Writer writer(host);
  writer.put(sums);
  writer.put(block_sum_);
  writer.put(segment_sum_);
}

Sums SumsBuilder::sums(Address table, Address malformed) const {
  Sums sums{};
  sums.sums = pointer<const Sum>(table);
  sums.block_sum = after(table, sums_);
  sums.segment_sum = after(table, sums_, block_sum_);
  sums.blocks = static_cast<uint32_t>(block_sum_.size());
  sums.segments = static_cast<uint32_t>(segment_sum_.size());
  sums.malformed = pointer<uint32_t>(malformed);
  return sums;
}

template <class Each>
void StripesBuilder<Each>::put(Each tensor, size_t n) {
  if (n > kMostElements) {
    throw std::invalid_argument("n is " + std::to_string(n) + "; allowed: up to " + std::to_string(kMostElements));
  }
  tensor.n = static_cast<uint32_t>(n);
  tensor.first_stripe = stripes();
  stripe_tensor_.resize(stripe_tensor_.size() + pieces(n, kStripe), static_cast<uint32_t>(tensors_.size()));
  tensors_.push_back(tensor);
}

template <class Each>
size_t StripesBuilder<Each>::table_bytes() const {
  return written_bytes(tensors_, stripe_tensor_);
}

template <class Each>
void StripesBuilder<Each>::write(uint8_t* host) const {
  Writer writer(host);
  writer.put(tensors_);
  writer.put(stripe_tensor_);
}

template <class Each>
const uint32_t* StripesBuilder<Each>::stripe_tensor(Address table) const {
  return after(table, tensors_);
}

template class StripesBuilder<Reduced>;
template class StripesBuilder<Squared>;

void ReducedBuilder::add(size_t n, Address in, Scalar in_type, Address out, Address velocity, const Update& update,
                         float factor, float after) {
  Reduced tensor{};
  tensor.coefficients = Coefficients(update);
  tensor.memory = memory_of(pointer<float>(velocity), update);
  tensor.in = pointer<const void>(in);
  tensor.in_type = in_type;
  tensor.out = pointer<float>(out);
  tensor.velocity = pointer<float>(velocity);
  tensor.factor = factor;
  tensor.after = after;
  put(tensor, n);
}

void SquaresBuilder::add(size_t n, Address data, Scalar type) {
  Squared array{};
  array.data = pointer<const void>(data);
  array.type = type;
  put(array, n);
}

}  // namespace dgc::cuda
