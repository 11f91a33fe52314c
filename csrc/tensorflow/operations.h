// What the TensorFlow operations share: how they read their inputs, and the state of one variable.
//
//   [Open -> (a collective of Horovod) ->] Propose -> payload -> (a collective) -------------> Finish
//                                                -> Nonfinite -> (one for the step) -> Conclude -^
//
// A step is a transaction over all variables: Propose only reads the state, Conclude learns whether a
// gradient was not finite on any rank, and Finish commits and decodes, or leaves all state as it was. They
// are stateful: none may be folded away, shared or run twice.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "codec.h"
#include "kinds.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace dgc {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::Var;

// Below this size a second thread costs more to start than it saves.
constexpr int64_t kThreadedElements = 1 << 20;

// A number by the name that Python knows it by. The tables of them are all that Python learns of the numbers.
template <class Number>
struct Named {
  const char* name;
  Number number;
};

// Columns of the int64 matrix `counts`; its row 0 holds totals, its row 1 the latest step.
enum Count { kSteps, kSkipped, kSent, kControl, kDense, kNonzero, kOverflow, kEncode, kDecode, kCounts };

inline constexpr Named<Count> kCountNames[] = {
    {"steps", kSteps},     {"skipped", kSkipped},   {"sent", kSent},     {"control", kControl}, {"dense", kDense},
    {"nonzero", kNonzero}, {"overflow", kOverflow}, {"encode", kEncode}, {"decode", kDecode},
};
static_assert(std::size(kCountNames) == kCounts, "a name for each");

// Elements of the float64 vector `applied`, which carries a proposal's arithmetic to Finish.
enum Applied {
  kUnscale,
  kMomentum,
  kVelocityScale,
  kRate,
  kFinite,
  kWaiting,
  kEncodeNanoseconds,
  kEnded,
  kApplied
};

// A velocity scale that says that the velocity takes no part in the step.
constexpr double kAtRest = 0.0;

// What Conclude counts for the whole step, in the int64 vector `progress`.
enum Progress { kStepsDone, kStepsSkipped, kWait, kLastWait, kProgress };

inline constexpr Named<Progress> kProgressNames[] = {
    {"steps", kStepsDone}, {"skipped", kStepsSkipped}, {"wait", kWait}, {"last_wait", kLastWait}};
static_assert(std::size(kProgressNames) == kProgress, "a name for each");

// How the bytes that arrive at Finish are to be read: the payloads of all ranks, one after another; the sum
// of their dense forms, in float32; the sum of the payloads themselves, in either type; or the payload of
// their sum that a sparse allreduce makes.
enum class Message { payloads, dense, float32, float16, ranges };

inline constexpr Named<Message> kMessageNames[] = {{"payloads", Message::payloads},
                                                   {"dense", Message::dense},
                                                   {"float32", Message::float32},
                                                   {"float16", Message::float16},
                                                   {"ranges", Message::ranges}};

// What is kept of a variable besides its counts.
enum class Kept { residual, velocity, rate, memory };

inline constexpr Named<Kept> kKeptNames[] = {{"residual", Kept::residual},
                                             {"velocity", Kept::velocity},
                                             {"rate", Kept::rate},
                                             {"memory", Kept::memory}};

// The attribute that is a list of such names, for TensorFlow, which refuses others.
template <class Number, size_t kCount>
std::string attribute_of_names(const std::string& attribute, const Named<Number> (&names)[kCount]) {
  std::string allowed;
  for (const auto& each : names) allowed += (allowed.empty() ? "'" : ", '") + std::string(each.name) + "'";
  return attribute + ": list({" + allowed + "})";
}

// The numbers that the names of such an attribute stand for.
template <class Number, size_t kCount>
std::vector<Number> numbers_of(OpKernelConstruction* context, const char* attribute,
                               const Named<Number> (&names)[kCount]) {
  std::vector<std::string> given;
  std::vector<Number> numbers;
  const absl::Status status = context->GetAttr(attribute, &given);
  if (!status.ok()) context->SetStatus(status);
  for (const std::string& name : given) {
    for (const auto& each : names) {
      if (name == each.name) numbers.push_back(each.number);
    }
  }
  return numbers;
}

inline int64_t now() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

inline int threads_for(OpKernelContext* context, int64_t elements) {
  if (elements < kThreadedElements) return 1;
  const auto* workers = context->device()->tensorflow_cpu_worker_threads();
  return workers ? std::max(1, workers->num_threads) : 1;
}

inline Scalar scalar_of(tensorflow::DataType type) {
  if (type == tensorflow::DT_HALF) return Scalar::float16;
  if (type == tensorflow::DT_BFLOAT16) return Scalar::bfloat16;
  return Scalar::float32;
}

// A call of TensorFlow's that failed, on its way to the operation's status.
struct Failure {
  absl::Status status;
};

inline void require(const absl::Status& status) {
  if (!status.ok()) throw Failure{status};
}

// The variable behind an input that is a resource handle.
inline tensorflow::core::RefCountPtr<Var> variable_of(OpKernelContext* context, int input) {
  tensorflow::core::RefCountPtr<Var> variable;
  require(tensorflow::LookupResource(context, tensorflow::HandleFromInput(context, input), &variable));
  return variable;
}

inline Tensor* output(OpKernelContext* context, int index, const TensorShape& shape) {
  Tensor* tensor = nullptr;
  require(context->allocate_output(index, shape, &tensor));
  return tensor;
}

inline void* data_of(const Tensor& tensor) { return const_cast<char*>(tensor.tensor_data().data()); }

inline const uint8_t* bytes_of(const Tensor& tensor) {
  return reinterpret_cast<const uint8_t*>(tensor.tensor_data().data());
}

// The codecs of attribute `codecs`, made from their descriptions.
inline std::vector<std::shared_ptr<const Codec>> codecs_of(OpKernelConstruction* context) {
  std::vector<std::string> descriptions;
  std::vector<std::shared_ptr<const Codec>> codecs;
  const absl::Status status = context->GetAttr("codecs", &descriptions);
  if (!status.ok()) context->SetStatus(status);
  try {
    for (const std::string& description : descriptions) codecs.push_back(make_codec(description));
  } catch (const std::invalid_argument& error) {
    context->SetStatus(absl::InvalidArgumentError(error.what()));
  }
  return codecs;
}

// How one variable travels: its codec in each stage of the density schedule, and what its random numbers
// follow from.
class Plan {
 public:
  explicit Plan(OpKernelConstruction* context) : codecs_(codecs_of(context)) {
    OP_REQUIRES_OK(context, context->GetAttr("seed", &seed_));
    OP_REQUIRES_OK(context, context->GetAttr("number", &number_));
    OP_REQUIRES_OK(context, context->GetAttr("rank", &rank_));
  }

  // Throws std::invalid_argument for a stage that the plan does not have.
  const Codec& codec(int64_t stage) const {
    if (stage < 0 || stage >= static_cast<int64_t>(codecs_.size()))
      throw std::invalid_argument("stage is " + std::to_string(stage) + "; allowed: 0 to " +
                                  std::to_string(static_cast<int64_t>(codecs_.size()) - 1));
    return *codecs_[static_cast<size_t>(stage)];
  }

  int64_t rank() const { return rank_; }

  int64_t numel() const { return static_cast<int64_t>(codecs_.front()->n()); }

  // opened: what came back from the opening round, a vector without elements where there is none.
  // squares: the step's second moments, a vector without elements where they are not known.
  Context context_of(int64_t step, const Codec& codec, const Tensor* opened, const Tensor* squares,
                     int threads) const {
    Context context;
    context.randomness = Randomness(static_cast<uint64_t>(seed_), static_cast<uint64_t>(number_),
                                    static_cast<uint64_t>(step), static_cast<uint64_t>(rank_));
    context.threads = threads;
    if (squares != nullptr && squares->NumElements() != 0) {
      if (squares->NumElements() != numel())
        throw std::invalid_argument("squares has " + std::to_string(squares->NumElements()) +
                                    " elements; allowed: " + std::to_string(numel()) +
                                    ", or 0 for the gradient's own");
      context.squares = squares->flat<float>().data();
    }
    if (opened == nullptr) return context;
    if (static_cast<size_t>(opened->NumElements()) != codec.opening().returned())
      throw std::invalid_argument("opened has " + std::to_string(opened->NumElements()) +
                                  " elements; allowed: " + std::to_string(codec.opening().returned()));
    context.opened = opened->flat<float>().data();
    return context;
  }

 private:
  std::vector<std::shared_ptr<const Codec>> codecs_;
  int64_t seed_ = 0;
  int64_t number_ = 0;
  int64_t rank_ = 0;
};

// What is kept of one variable from step to step. Its locks are held for as long as the object lives.
class State {
 public:
  // Its handles are the operation's last inputs, from `first` on: counts, and then those of residual,
  // velocity (with the learning rate in whose units it stands) and the codec's memory that are kept.
  State(OpKernelContext* context, int first, const std::vector<Kept>& kept, const Plan& plan) {
    held_.reserve(static_cast<size_t>(context->num_inputs() - first));
    for (int i = first; i < context->num_inputs(); ++i) held_.emplace_back(variable_of(context, i));
    counts_ = take("counts", 2 * kCounts);
    const Codec& codec = plan.codec(0);
    for (const Kept each : kept) {
      if (each == Kept::residual) residual_ = take("residual", plan.numel());
      if (each == Kept::velocity) velocity_ = take("velocity", plan.numel());
      if (each == Kept::rate) rate_ = take("rate", 1);
      if (each == Kept::memory) memory_ = take("memory", static_cast<int64_t>(codec.memory()));
    }
    if ((memory_ == kNone) != (codec.memory() == 0))
      throw std::invalid_argument("memory is missing, or kept for a codec that has none");
  }

  bool has_velocity() const { return velocity_ != kNone; }
  int64_t* counts() { return tensor(counts_)->flat<int64_t>().data(); }
  float* residual() { return floats(residual_); }
  float* velocity() { return floats(velocity_); }
  float* rate() { return floats(rate_); }
  float* memory() { return floats(memory_); }

  // A value that somebody has read shares its memory with the variable: what is written from now on is a
  // copy.
  void own(OpKernelContext* context) {
    for (size_t i = 0; i < held_.size(); ++i) {
      if (tensor(i)->RefCountIsOne()) continue;
      Tensor copy;
      require(context->allocate_temp(tensor(i)->dtype(), tensor(i)->shape(), &copy));
      std::memcpy(data_of(copy), data_of(*tensor(i)), tensor(i)->TotalBytes());
      *tensor(i) = copy;
    }
  }

 private:
  // A variable and its lock.
  struct Held {
    explicit Held(tensorflow::core::RefCountPtr<Var> v) : variable(std::move(v)) { variable->mu()->lock(); }
    Held(Held&&) = default;
    ~Held() {
      if (variable) variable->mu()->unlock();
    }
    tensorflow::core::RefCountPtr<Var> variable;
  };

  static constexpr size_t kNone = ~size_t{0};

  Tensor* tensor(size_t i) { return held_[i].variable->tensor(); }
  float* floats(size_t i) { return i == kNone ? nullptr : tensor(i)->flat<float>().data(); }

  // Position of the next handle, whose variable must have so many elements.
  size_t take(const char* name, int64_t expected) {
    if (taken_ == held_.size()) throw std::invalid_argument(std::string(name) + " is missing");
    const int64_t elements = tensor(taken_)->NumElements();
    if (elements != expected)
      throw std::invalid_argument(std::string(name) + " has " + std::to_string(elements) +
                                  " elements; allowed: " + std::to_string(expected));
    return taken_++;
  }

  std::vector<Held> held_;
  size_t taken_ = 0;
  size_t counts_ = kNone;
  size_t residual_ = kNone;
  size_t velocity_ = kNone;
  size_t rate_ = kNone;
  size_t memory_ = kNone;
};

// Base of the operations: what is thrown becomes the operation's error.
class Operation : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) final {
    try {
      run(context);
    } catch (const std::invalid_argument& error) {
      context->SetStatus(absl::InvalidArgumentError(error.what()));
    } catch (const Failure& failure) {
      context->SetStatus(failure.status);
    }
  }

 protected:
  virtual void run(OpKernelContext* context) = 0;
};

}  // namespace dgc
