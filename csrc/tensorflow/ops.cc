// TensorFlow operations over the core: one step of one variable as graph operations.
//
//   Propose -> payload -> (a collective of Horovod) -> Poisoned -> Conclude -> Finish
//
// A step is a transaction over all variables: Propose only reads the state, Conclude learns from what every rank
// sent whether a gradient was not finite anywhere, and Finish commits and decodes, or leaves all state as it was.
// All are stateful: none may be folded away, shared or run twice.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "decode.h"
#include "norms.h"
#include "proposal.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using dgc::Arrays;
using dgc::IndexCoder;
using dgc::Layout;
using dgc::Options;
using dgc::Scalar;
using dgc::Update;
using dgc::ValueCoder;
using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::Var;
using tensorflow::shape_inference::InferenceContext;

// Below this size a second thread costs more to start than it saves.
constexpr int64_t kThreadedElements = 1 << 20;

// Columns of the int64 matrix `counts`; its row 0 holds totals, its row 1 the latest step.
enum Count { kSteps, kSkipped, kSent, kControl, kDense, kNonzero, kEncode, kDecode, kCounts };

// Elements of the float64 vector `applied`, which carries a proposal's arithmetic to Finish.
enum Applied { kUnscale, kMomentum, kRate, kEncodeNanoseconds, kEnded, kApplied };

// What Conclude counts for the whole step, in the int64 vector `progress`.
enum Progress { kStepsDone, kStepsSkipped, kWait, kLastWait, kProgress };

// How the bytes that arrive at Finish are to be read.
enum class Message { payloads, float32, float16 };

int64_t now() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

int threads_for(OpKernelContext* context, int64_t elements) {
  if (elements < kThreadedElements) return 1;
  const auto* workers = context->device()->tensorflow_cpu_worker_threads();
  return workers ? std::max(1, workers->num_threads) : 1;
}

Scalar scalar_of(tensorflow::DataType type) {
  if (type == tensorflow::DT_HALF) return Scalar::float16;
  if (type == tensorflow::DT_BFLOAT16) return Scalar::bfloat16;
  return Scalar::float32;
}

// A call of TensorFlow's that failed, on its way to the operation's status.
struct Failure {
  absl::Status status;
};

void require(const absl::Status& status) {
  if (!status.ok()) throw Failure{status};
}

// The variable behind an input that is a resource handle.
tensorflow::core::RefCountPtr<Var> variable_of(OpKernelContext* context, int input) {
  tensorflow::core::RefCountPtr<Var> variable;
  require(tensorflow::LookupResource(context, tensorflow::HandleFromInput(context, input), &variable));
  return variable;
}

Tensor* output(OpKernelContext* context, int index, const TensorShape& shape) {
  Tensor* tensor = nullptr;
  require(context->allocate_output(index, shape, &tensor));
  return tensor;
}

void* data_of(const Tensor& tensor) { return const_cast<char*>(tensor.tensor_data().data()); }

const uint8_t* bytes_of(const Tensor& tensor) {
  return reinterpret_cast<const uint8_t*>(tensor.tensor_data().data());
}

// How one variable travels: what does not change from step to step, and the number of coordinates sent in each
// stage of the density schedule.
class Plan {
 public:
  explicit Plan(OpKernelConstruction* context) {
    int indices = 0;
    int values = 0;
    OP_REQUIRES_OK(context, context->GetAttr("numel", &numel_));
    OP_REQUIRES_OK(context, context->GetAttr("sent", &sent_));
    OP_REQUIRES_OK(context, context->GetAttr("indices", &indices));
    OP_REQUIRES_OK(context, context->GetAttr("values", &values));
    indices_ = static_cast<IndexCoder>(indices);
    values_ = static_cast<ValueCoder>(values);
  }

  int64_t numel() const { return numel_; }

  // Throws std::invalid_argument for a stage that the plan does not have.
  Layout layout(int64_t stage) const {
    if (stage < 0 || stage >= static_cast<int64_t>(sent_.size()))
      throw std::invalid_argument("stage is " + std::to_string(stage) + "; allowed: 0 to " +
                                  std::to_string(static_cast<int64_t>(sent_.size()) - 1));
    return Layout(static_cast<size_t>(numel_), static_cast<size_t>(sent_[static_cast<size_t>(stage)]), indices_,
                  values_);
  }

 private:
  int64_t numel_ = 0;
  std::vector<int64_t> sent_;
  IndexCoder indices_ = IndexCoder::elias_fano;
  ValueCoder values_ = ValueCoder::float32;
};

// The state of one variable: residual and counts, and, with momentum correction, velocity and the learning rate
// in whose units the velocity stands. Its locks are held for as long as the object lives.
class State {
 public:
  State(OpKernelContext* context, int first, int count, int64_t numel) {
    for (int i = 0; i < count; ++i) variables_.push_back(variable_of(context, first + i));
    for (const auto& variable : variables_) locks_.emplace_back(*variable->mu());
    const int64_t expected[] = {numel, 2 * kCounts, numel, 1};
    for (size_t i = 0; i < variables_.size(); ++i) {
      const int64_t elements = variables_[i]->tensor()->NumElements();
      if (elements != expected[i])
        throw std::invalid_argument("state " + std::to_string(i) + " of a variable of " + std::to_string(numel) +
                                    " elements has " + std::to_string(elements) + "; allowed: " +
                                    std::to_string(expected[i]));
    }
  }

  bool has_velocity() const { return variables_.size() > 2; }
  float* residual() { return variables_[0]->tensor()->flat<float>().data(); }
  int64_t* counts() { return variables_[1]->tensor()->flat<int64_t>().data(); }
  float* velocity() { return has_velocity() ? variables_[2]->tensor()->flat<float>().data() : nullptr; }
  float* rate() { return variables_[3]->tensor()->flat<float>().data(); }

  // A value that somebody has read shares its memory with the variable: what is written from now on is a copy.
  void own(OpKernelContext* context) {
    for (const auto& variable : variables_) {
      Tensor* tensor = variable->tensor();
      if (tensor->RefCountIsOne()) continue;
      Tensor copy;
      require(context->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
      std::memcpy(data_of(copy), data_of(*tensor), tensor->TotalBytes());
      *tensor = copy;
    }
  }

 private:
  std::vector<tensorflow::core::RefCountPtr<Var>> variables_;
  using Mutex = std::remove_pointer_t<decltype(std::declval<Var>().mu())>;

  std::vector<std::unique_lock<Mutex>> locks_;
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

absl::Status unknown_length(InferenceContext* c) {
  c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
  return absl::OkStatus();
}

// An address that tells one variable from another for as long as both live.
int64_t identity_of(const Var* variable) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(variable)); }

REGISTER_OP("HorovodDgcIdentity")
    .Input("variable: resource")
    .Output("identity: int64")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc("A number that tells a variable from every other of this process.");

class IdentityOp : public Operation {
 public:
  using Operation::Operation;

 protected:
  void run(OpKernelContext* context) override {
    output(context, 0, {})->scalar<int64_t>()() = identity_of(variable_of(context, 0).get());
  }
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcIdentity").Device(DEVICE_CPU), IdentityOp);

REGISTER_OP("HorovodDgcSumSquares")
    .Attr("T: {float, half, bfloat16}")
    .Input("gradient: T")
    .Output("sum: double")
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc("Sum of squares of a gradient, accumulated in double precision.");

class SumSquaresOp : public Operation {
 public:
  using Operation::Operation;

 protected:
  void run(OpKernelContext* context) override {
    const Tensor& gradient = context->input(0);
    const int64_t n = gradient.NumElements();
    output(context, 0, {})->scalar<double>()() = dgc::sum_squares(
        data_of(gradient), scalar_of(gradient.dtype()), static_cast<size_t>(n), threads_for(context, n));
  }
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcSumSquares").Device(DEVICE_CPU), SumSquaresOp);

REGISTER_OP("HorovodDgcPropose")
    .Attr("T: {float, half, bfloat16}")
    .Attr("K: int >= 2")
    .Attr("identity: int")
    .Attr("label: string")
    .Attr("numel: int")
    .Attr("starts: list(int)")
    .Attr("sent: list(int)")
    .Attr("indices: int")
    .Attr("values: int")
    .Attr("nesterov: bool")
    .Attr("sample_ratio: float")
    .Input("gradient: T")
    .Input("variable: resource")
    .Input("state: K * resource")
    .Input("unscale: double")
    .Input("momentum: double")
    .Input("rate: double")
    .Output("payload: uint8")
    .Output("stage: int64")
    .Output("applied: double")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(1, c->Scalar());
      c->set_output(2, c->Vector(kApplied));
      return unknown_length(c);
    })
    .Doc(R"doc(
Selects and codes what one variable sends in this step; changes no state.

gradient: any shape, `numel` elements.
variable: the variable that the gradient belongs to, checked against `identity`.
state: residual float32 [numel], counts int64 [2, 8]; with momentum correction also velocity float32 [numel] and
  rate float32 [], the learning rate in whose units the velocity stands.
unscale, momentum, rate: factor of the gradient, momentum, and learning rate of this step.
starts, sent: first step of each stage of the density schedule, and the coordinates sent in it.
payload: of Layout(numel, sent[stage], indices, values).
applied: what Finish needs to commit this proposal.
)doc");

class ProposeOp : public Operation {
 public:
  explicit ProposeOp(OpKernelConstruction* context) : Operation(context), plan_(context) {
    OP_REQUIRES_OK(context, context->GetAttr("identity", &identity_));
    OP_REQUIRES_OK(context, context->GetAttr("label", &label_));
    OP_REQUIRES_OK(context, context->GetAttr("starts", &starts_));
    OP_REQUIRES_OK(context, context->GetAttr("nesterov", &nesterov_));
    OP_REQUIRES_OK(context, context->GetAttr("sample_ratio", &sample_ratio_));
    OP_REQUIRES_OK(context, context->GetAttr("K", &states_));
  }

 protected:
  void run(OpKernelContext* context) override {
    const int64_t began = now();
    const Tensor& gradient = context->input(0);
    const int64_t n = plan_.numel();
    if (gradient.NumElements() != n)
      throw std::invalid_argument("the gradient of " + label_ + " has " + std::to_string(gradient.NumElements()) +
                                  " elements; allowed: " + std::to_string(n));
    if (identity_of(variable_of(context, 1).get()) != identity_)
      throw std::invalid_argument("a gradient taken for that of " + label_ +
                                  " belongs to a variable of another model: each model and each optimizer needs a "
                                  "horovod_dgc.tensorflow.Compression of its own");
    State state(context, 2, states_, n);

    const double unscale = context->input(2 + states_).scalar<double>()();
    const double rate = context->input(4 + states_).scalar<double>()();
    double momentum = 0.0;
    if (state.has_velocity()) {
      // The velocity stands in units of the gradient, and the optimizer multiplies what it is given by today's
      // learning rate. Momentum that was gathered at another rate is worth what it was worth then.
      momentum = context->input(3 + states_).scalar<double>()();
      if (*state.rate() > 0 && rate > 0) momentum *= static_cast<double>(*state.rate()) / static_cast<float>(rate);
    }
    const int64_t step = state.counts()[kSteps];
    const auto stage = std::upper_bound(starts_.begin(), starts_.end(), step) - starts_.begin() - 1;
    const Layout layout = plan_.layout(stage);
    const Update update(unscale, 0.0, momentum, 0.0, nesterov_);
    Arrays arrays;
    arrays.n = static_cast<size_t>(n);
    arrays.grad = data_of(gradient);
    arrays.grad_type = scalar_of(gradient.dtype());
    arrays.residual = state.residual();
    arrays.velocity = state.velocity();
    Options options;
    options.sample_ratio = sample_ratio_;
    options.threads = threads_for(context, n);
    const dgc::Proposal proposal = dgc::propose(layout, update, arrays, options);

    Tensor* payload = output(context, 0, TensorShape({static_cast<int64_t>(proposal.payload.size())}));
    std::copy(proposal.payload.begin(), proposal.payload.end(), static_cast<uint8_t*>(data_of(*payload)));
    output(context, 1, {})->scalar<int64_t>()() = stage;
    auto out = output(context, 2, TensorShape({kApplied}))->vec<double>();
    const int64_t ended = now();
    out(kUnscale) = unscale;
    out(kMomentum) = momentum;
    out(kRate) = rate;
    out(kEncodeNanoseconds) = static_cast<double>(ended - began);
    out(kEnded) = static_cast<double>(ended);
  }

 private:
  Plan plan_;
  int64_t identity_ = 0;
  std::string label_;
  std::vector<int64_t> starts_;
  bool nesterov_ = false;
  float sample_ratio_ = 0;
  int states_ = 0;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcPropose").Device(DEVICE_CPU), ProposeOp);

REGISTER_OP("HorovodDgcMasked")
    .Attr("numel: int")
    .Attr("sent: list(int)")
    .Attr("indices: int")
    .Attr("values: int")
    .Input("payload: uint8")
    .Input("stage: int64")
    .Output("dense: float")
    .SetShapeFn([](InferenceContext* c) {
      int64_t numel = 0;
      TF_RETURN_IF_ERROR(c->GetAttr("numel", &numel));
      c->set_output(0, c->Vector(numel));
      return absl::OkStatus();
    })
    .Doc("A payload as a dense vector with zeros where nothing is sent: its form for an allreduce.");

class MaskedOp : public Operation {
 public:
  explicit MaskedOp(OpKernelConstruction* context) : Operation(context), plan_(context) {}

 protected:
  void run(OpKernelContext* context) override {
    const Layout layout = plan_.layout(context->input(1).scalar<int64_t>()());
    auto* dense = static_cast<float*>(data_of(*output(context, 0, TensorShape({plan_.numel()}))));
    std::fill(dense, dense + plan_.numel(), 0.0f);
    dgc::decode_add(layout, bytes_of(context->input(0)), 1, dense, 1.0f, threads_for(context, plan_.numel()));
  }

 private:
  Plan plan_;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcMasked").Device(DEVICE_CPU), MaskedOp);

// Whether the first value of a message that some rank poisoned is NaN: a poisoned payload is NaN throughout, and
// the sum of dense messages is NaN wherever one of them is.
bool first_is_nan(const Tensor& received, Message message) {
  if (message == Message::float16) {
    uint16_t bits = 0;
    std::memcpy(&bits, data_of(received), sizeof bits);
    return (bits & 0x7fff) > 0x7c00;
  }
  float first = 0;
  std::memcpy(&first, data_of(received), sizeof first);
  return std::isnan(first);
}

size_t bytes_per_element(Message message) { return message == Message::float16 ? 2 : 4; }

// What came back from the collective, with its size checked. received: uint8.
void check_received(const Tensor& received, const Layout& layout, Message message, int64_t workers) {
  const size_t expected = message == Message::payloads ? static_cast<size_t>(workers) * layout.nbytes()
                                                       : layout.n() * bytes_per_element(message);
  if (static_cast<size_t>(received.NumElements()) != expected)
    throw std::invalid_argument("the payloads of " + std::to_string(workers) + " ranks must have " +
                                std::to_string(expected) + " bytes in all, got " +
                                std::to_string(received.NumElements()) +
                                ": are all ranks at the same step of the density schedule?");
}

REGISTER_OP("HorovodDgcPoisoned")
    .Attr("numel: int")
    .Attr("sent: list(int)")
    .Attr("indices: int")
    .Attr("values: int")
    .Attr("messages: list(int)")
    .Attr("workers: int")
    .Input("received: uint8")
    .Input("stage: int64")
    .Output("poisoned: bool")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Whether the gradient of this variable was not finite on some rank.

messages: for each stage, what `received` holds: 0 the payloads of all ranks, one after another; 1 or 2 the sum of
  dense messages in float32 or float16.
)doc");

class PoisonedOp : public Operation {
 public:
  explicit PoisonedOp(OpKernelConstruction* context) : Operation(context), plan_(context) {
    OP_REQUIRES_OK(context, context->GetAttr("messages", &messages_));
    OP_REQUIRES_OK(context, context->GetAttr("workers", &workers_));
  }

 protected:
  void run(OpKernelContext* context) override {
    const Tensor& received = context->input(0);
    const int64_t stage = context->input(1).scalar<int64_t>()();
    const Layout layout = plan_.layout(stage);
    const auto message = static_cast<Message>(messages_.at(static_cast<size_t>(stage)));
    check_received(received, layout, message, workers_);
    bool poisoned = false;
    if (message == Message::payloads) {
      const std::vector<uint8_t> poison = layout.poison();
      for (int64_t i = 0; i < workers_ && !poisoned; ++i) {
        const uint8_t* payload = bytes_of(received) + static_cast<size_t>(i) * poison.size();
        poisoned = std::memcmp(payload, poison.data(), poison.size()) == 0;
      }
    } else {
      poisoned = first_is_nan(received, message);
    }
    output(context, 0, {})->scalar<bool>()() = poisoned;
  }

 private:
  Plan plan_;
  std::vector<int> messages_;
  int64_t workers_ = 0;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcPoisoned").Device(DEVICE_CPU), PoisonedOp);

REGISTER_OP("HorovodDgcConclude")
    .Attr("N: int >= 1")
    .Input("poisoned: N * bool")
    .Input("applied: N * double")
    .Input("progress: resource")
    .Output("skipped: bool")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Decides for all variables of a step together, and so for all ranks alike, whether it counts.

progress: int64 [4]: steps, steps skipped, nanoseconds of waiting for collectives in total and in the latest step.
skipped: true if a gradient was not finite on some rank.
)doc");

class ConcludeOp : public Operation {
 public:
  explicit ConcludeOp(OpKernelConstruction* context) : Operation(context) {
    OP_REQUIRES_OK(context, context->GetAttr("N", &count_));
  }

 protected:
  void run(OpKernelContext* context) override {
    bool skipped = false;
    double ended = 0;
    for (int i = 0; i < count_; ++i) {
      skipped |= context->input(i).scalar<bool>()();
      ended = std::max(ended, context->input(count_ + i).vec<double>()(kEnded));
    }
    const auto progress = variable_of(context, 2 * count_);
    {
      const std::lock_guard lock(*progress->mu());
      Tensor next;
      require(context->allocate_temp(tensorflow::DT_INT64, TensorShape({kProgress}), &next));
      next.vec<int64_t>() = progress->tensor()->vec<int64_t>();
      auto values = next.vec<int64_t>();
      ++values(skipped ? kStepsSkipped : kStepsDone);
      const int64_t wait = now() - static_cast<int64_t>(ended);
      values(kWait) += wait;
      if (!skipped) values(kLastWait) = wait;
      *progress->tensor() = next;
    }
    output(context, 0, {})->scalar<bool>()() = skipped;
  }

 private:
  int count_ = 0;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcConclude").Device(DEVICE_CPU), ConcludeOp);

REGISTER_OP("HorovodDgcFinish")
    .Attr("T: {float, half, bfloat16}")
    .Attr("K: int >= 2")
    .Attr("numel: int")
    .Attr("sent: list(int)")
    .Attr("indices: int")
    .Attr("values: int")
    .Attr("messages: list(int)")
    .Attr("workers: int")
    .Attr("nesterov: bool")
    .Attr("masking: bool")
    .Input("gradient: T")
    .Input("received: uint8")
    .Input("payload: uint8")
    .Input("stage: int64")
    .Input("applied: double")
    .Input("poisoned: bool")
    .Input("skipped: bool")
    .Input("factor: float")
    .Input("loss_scale: double")
    .Input("state: K * resource")
    .Output("result: T")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape)
    .Doc(R"doc(
Commits one variable's step and returns the gradient to apply; or, in a skipped step, changes nothing and returns NaN
for a variable whose gradient was not finite on some rank, zeros for the others.

gradient, payload, stage, applied: of Propose.
received, messages, workers: as for Poisoned.
factor: what the user's options (Average, Sum) make of 1; float32, one element.
loss_scale: factor that the result carries.
)doc");

class FinishOp : public Operation {
 public:
  explicit FinishOp(OpKernelConstruction* context) : Operation(context), plan_(context) {
    OP_REQUIRES_OK(context, context->GetAttr("messages", &messages_));
    OP_REQUIRES_OK(context, context->GetAttr("workers", &workers_));
    OP_REQUIRES_OK(context, context->GetAttr("nesterov", &nesterov_));
    OP_REQUIRES_OK(context, context->GetAttr("masking", &masking_));
    OP_REQUIRES_OK(context, context->GetAttr("K", &states_));
  }

 protected:
  void run(OpKernelContext* context) override {
    const int64_t began = now();
    const Tensor gradient = context->input(0);
    const Tensor& received = context->input(1);
    const Tensor& payload = context->input(2);
    const int64_t stage = context->input(3).scalar<int64_t>()();
    const auto applied = context->input(4).vec<double>();
    const bool poisoned = context->input(5).scalar<bool>()();
    const bool skipped = context->input(6).scalar<bool>()();
    const double factor = static_cast<double>(context->input(7).flat<float>()(0));
    const double loss_scale = context->input(8).scalar<double>()();
    const Layout layout = plan_.layout(stage);
    const auto message = static_cast<Message>(messages_.at(static_cast<size_t>(stage)));
    check_received(received, layout, message, workers_);
    State state(context, 9, states_, plan_.numel());
    state.own(context);

    Tensor* result = output(context, 0, gradient.shape());
    // float32 results are written where they are wanted; narrower ones are summed up in float32 first.
    Tensor wide = *result;
    if (result->dtype() != tensorflow::DT_FLOAT)
      require(context->allocate_temp(tensorflow::DT_FLOAT, gradient.shape(), &wide));
    auto* out = static_cast<float*>(data_of(wide));
    int64_t nonzero = 0;
    if (skipped) {
      std::fill(out, out + plan_.numel(), poisoned ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
    } else {
      nonzero = commit(context, layout, gradient, payload, applied(kUnscale), applied(kMomentum), &state);
      // Sums over workers, times what the options ask for, in the units of the loss as it is scaled.
      const double scale = factor / static_cast<double>(workers_) * loss_scale;
      deliver(context, layout, received, message, static_cast<float>(scale), out);
      if (state.has_velocity() && applied(kRate) > 0) *state.rate() = static_cast<float>(applied(kRate));
    }
    if (result->dtype() != tensorflow::DT_FLOAT) narrow(wide, result);
    count(layout, message, gradient, skipped, nonzero, static_cast<int64_t>(applied(kEncodeNanoseconds)),
          now() - began, state.counts());
  }

 private:
  // Applies the proposal to the state; what was proposed is read back from the payload. Returns the number of
  // coordinates sent with a value other than zero.
  int64_t commit(OpKernelContext* context, const Layout& layout, const Tensor& gradient, const Tensor& payload,
                 double unscale, double momentum, State* state) const {
    const size_t k = layout.k();
    dgc::Proposal proposal{layout, true, {}, {}, {}};
    proposal.indices.resize(k);
    proposal.sent.resize(k);
    layout.unpack(bytes_of(payload), proposal.indices.data(), proposal.sent.data());
    Arrays arrays;
    arrays.n = layout.n();
    arrays.grad = data_of(gradient);
    arrays.grad_type = scalar_of(gradient.dtype());
    arrays.residual = state->residual();
    arrays.velocity = state->velocity();
    Options options;
    options.threads = threads_for(context, plan_.numel());
    options.mask_velocity = masking_;
    dgc::commit(proposal, Update(unscale, 0.0, momentum, 0.0, nesterov_), arrays, options);
    if (layout.dense()) return plan_.numel();
    return static_cast<int64_t>(k) - std::count(proposal.sent.begin(), proposal.sent.end(), 0.0f);
  }

  void deliver(OpKernelContext* context, const Layout& layout, const Tensor& received, Message message, float scale,
               float* out) const {
    const int64_t n = plan_.numel();
    if (message == Message::payloads) {
      std::fill(out, out + n, 0.0f);
      dgc::decode_add(layout, bytes_of(received), static_cast<size_t>(workers_), out, scale,
                      threads_for(context, static_cast<int64_t>(received.NumElements())));
    } else if (message == Message::float16) {
      const auto* values = static_cast<const Eigen::half*>(data_of(received));
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(values[i]) * scale;
    } else {
      const auto* values = static_cast<const float*>(data_of(received));
      for (int64_t i = 0; i < n; ++i) out[i] = values[i] * scale;
    }
  }

  static void narrow(const Tensor& wide, Tensor* result) {
    const auto from = wide.flat<float>();
    if (result->dtype() == tensorflow::DT_HALF) {
      result->flat<Eigen::half>() = from.cast<Eigen::half>();
    } else {
      result->flat<Eigen::bfloat16>() = from.cast<Eigen::bfloat16>();
    }
  }

  void count(const Layout& layout, Message message, const Tensor& gradient, bool skipped, int64_t nonzero,
             int64_t encode, int64_t decode, int64_t* counts) const {
    int64_t step[kCounts] = {};
    step[skipped ? kSkipped : kSteps] = 1;
    step[kSent] = static_cast<int64_t>(message == Message::payloads ? layout.nbytes()
                                                                    : layout.n() * bytes_per_element(message));
    step[kControl] = static_cast<int64_t>(sizeof(float));
    step[kDense] = static_cast<int64_t>(gradient.TotalBytes());
    step[kNonzero] = nonzero;
    step[kEncode] = encode;
    step[kDecode] = decode;
    for (int i = 0; i < kCounts; ++i) counts[i] += step[i];
    if (!skipped) std::copy(step, step + kCounts, counts + kCounts);
  }

  Plan plan_;
  std::vector<int> messages_;
  int64_t workers_ = 0;
  bool nesterov_ = false;
  bool masking_ = false;
  int states_ = 0;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcFinish").Device(DEVICE_CPU), FinishOp);

}  // namespace
