// What happens once the collectives have brought every rank's payloads.
#include <limits>
#include <mutex>

#include "decode.h"
#include "operations.h"
#include "proposal.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace dgc {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::shape_inference::InferenceContext;

// What came back from the collective, with its size checked. received: uint8.
void check_received(const Tensor& received, const Codec& codec, Message message, int64_t workers) {
  const size_t expected = message == Message::payloads ? static_cast<size_t>(workers) * codec.nbytes()
                          : message == Message::dense  ? codec.n() * sizeof(float)
                                                       : codec.nbytes();
  if (static_cast<size_t>(received.NumElements()) != expected)
    throw std::invalid_argument("the payloads of " + std::to_string(workers) + " ranks must have " +
                                std::to_string(expected) + " bytes in all, got " +
                                std::to_string(received.NumElements()) +
                                ": are all ranks at the same step of the density schedule?");
}

// Whether the gradient of this variable was not finite on some rank, judging by what came back.
bool poisoned(const Tensor& received, const Codec& codec, Message message, int64_t workers) {
  if (message == Message::payloads) return any_poisoned(codec, bytes_of(received), static_cast<size_t>(workers));
  if (message == Message::ranges) return any_poisoned(codec, bytes_of(received), 1);
  const Scalar type = message == Message::float16 ? Scalar::float16 : Scalar::float32;
  return any_poisoned(data_of(received), type, static_cast<size_t>(received.NumElements()) / scalar_size(type));
}

REGISTER_OP("HorovodDgcNonfinite")
    .Attr("N: int >= 1")
    .Input("applied: N * double")
    .Output("count: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(1));
      return absl::OkStatus();
    })
    .Doc("Number of this rank's proposals whose gradient was not finite, a vector of one element.");

class NonfiniteOp : public Operation {
 public:
  using Operation::Operation;

 protected:
  void run(OpKernelContext* context) override {
    int nonfinite = 0;
    for (int i = 0; i < context->num_inputs(); ++i)
      nonfinite += context->input(i).vec<double>()(kFinite) == 0.0;
    output(context, 0, TensorShape({1}))->vec<float>()(0) = static_cast<float>(nonfinite);
  }
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcNonfinite").Device(DEVICE_CPU), NonfiniteOp);

REGISTER_OP("HorovodDgcConclude")
    .Attr("N: int >= 1")
    .Input("nonfinite: float")
    .Input("applied: N * double")
    .Input("progress: resource")
    .Output("skipped: bool")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Decides for all variables of a step together, and so for all ranks alike, whether it counts.

nonfinite: what HorovodDgcNonfinite counts, summed over all ranks.
progress: int64 [4]: steps, steps skipped, nanoseconds of waiting for collectives in total and in the latest step.
skipped: true if a gradient was not finite on some rank.
)doc");

class ConcludeOp : public Operation {
 public:
  using Operation::Operation;

 protected:
  void run(OpKernelContext* context) override {
    const bool skipped = context->input(0).flat<float>()(0) != 0;
    double ended = 0;
    const int last = context->num_inputs() - 1;
    for (int i = 1; i < last; ++i) ended = std::max(ended, context->input(i).vec<double>()(kEnded));
    const auto progress = variable_of(context, last);
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
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcConclude").Device(DEVICE_CPU), ConcludeOp);

REGISTER_OP("HorovodDgcFinish")
    .Attr("T: {float, half, bfloat16}")
    .Attr("K: int >= 1")
    .Attr(attribute_of_names("kept", kKeptNames))
    .Attr("codecs: list(string)")
    .Attr("seed: int")
    .Attr("number: int")
    .Attr("rank: int")
    .Attr(attribute_of_names("messages", kMessageNames))
    .Attr("carried: bool")
    .Attr("workers: int")
    .Attr("summand_scale: float = 1.0")
    .Attr("nesterov: bool")
    .Attr("masking: bool")
    .Input("gradient: T")
    .Input("received: uint8")
    .Input("payload: uint8")
    .Input("stage: int64")
    .Input("applied: double")
    .Input("skipped: bool")
    .Input("factor: float")
    .Input("loss_scale: double")
    .Input("opened: float")
    .Input("squares: float")
    .Input("returned: float")
    .Input("state: K * resource")
    .Output("result: T")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape)
    .Doc(R"doc(
Commits one variable's step and returns the gradient to apply; or, in a skipped step, changes nothing and returns NaN
for a variable whose gradient was not finite on some rank, zeros for the others.

gradient, payload, stage, applied, squares: of Propose.
received: what came back from all `workers`, as bytes. messages: for each stage, what that is: the payloads of all
  ranks, one after another; the sum of their dense forms in float32; the sum of payloads in float32 or float16; ranges,
  the payload of the sum that HorovodDgcReduce makes the parts of.
summand_scale: what each worker has multiplied the halves by that have been summed, so that their sum fits into a half.
returned: of HorovodDgcReduce, for the residual; without elements elsewhere.
carried: `received` has been multiplied already by what the user's options (Average, Sum) ask for.
factor: otherwise, what they make of 1; float32, one element.
loss_scale: factor that the result carries.
)doc");

class FinishOp : public Operation {
 public:
  explicit FinishOp(OpKernelConstruction* context)
      : Operation(context),
        plan_(context),
        messages_(numbers_of(context, "messages", kMessageNames)),
        kept_(numbers_of(context, "kept", kKeptNames)) {
    OP_REQUIRES_OK(context, context->GetAttr("carried", &carried_));
    OP_REQUIRES_OK(context, context->GetAttr("workers", &workers_));
    OP_REQUIRES_OK(context, context->GetAttr("summand_scale", &summand_scale_));
    OP_REQUIRES_OK(context, context->GetAttr("nesterov", &nesterov_));
    OP_REQUIRES_OK(context, context->GetAttr("masking", &masking_));
  }

 protected:
  void run(OpKernelContext* context) override {
    const int64_t began = now();
    const Tensor& received = context->input(1);
    const Tensor& payload = context->input(2);
    const int64_t stage = context->input(3).scalar<int64_t>()();
    const auto applied = context->input(4).vec<double>();
    const bool skipped = context->input(5).scalar<bool>()();
    const double factor = static_cast<double>(context->input(6).flat<float>()(0));
    const double loss_scale = context->input(7).scalar<double>()();
    const Codec& codec = plan_.codec(stage);
    const Message message = messages_.at(static_cast<size_t>(stage));
    check_received(received, codec, message, workers_);
    // Nothing is committed unless what came back can be decoded.
    if (message == Message::payloads || message == Message::ranges)
      validate(codec, bytes_of(received), payloads_in(message), threads_for(context, received.NumElements()));
    State state(context, 11, kept_, plan_);
    if (message == Message::ranges) check_returned(codec, context->input(10), state.residual());
    state.own(context);
    dgc::Context settings = plan_.context_of(state.counts()[kSteps], codec, &context->input(8),
                                             &context->input(9), threads_for(context, plan_.numel()));
    settings.memory = state.memory();

    // The gradient's own memory serves for the result where nobody else needs it any more.
    Tensor* result = nullptr;
    const TensorShape shape = context->input(0).shape();
    require(context->forward_input_or_allocate_output({0}, 0, shape, &result));
    const Tensor& gradient = context->input(0);
    // float32 results are written where they are wanted; narrower ones are summed up in float32 first.
    Tensor wide = *result;
    if (result->dtype() != tensorflow::DT_FLOAT)
      require(context->allocate_temp(tensorflow::DT_FLOAT, shape, &wide));
    auto* out = static_cast<float*>(data_of(wide));
    int64_t nonzero = 0;
    if (skipped) {
      const bool affected = poisoned(received, codec, message, workers_);
      std::fill(out, out + plan_.numel(), affected ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
    } else {
      const Update update(applied(kUnscale), 0.0, applied(kMomentum), 0.0, nesterov_,
                          applied(kVelocityScale));
      const bool in_place = gradient.SharesBufferWith(wide);
      nonzero = commit(codec, settings, gradient, payload, update, in_place, &state);
      if (message == Message::ranges) take_back(codec, context->input(10), state.residual());
      if (message != Message::dense && !in_place) std::fill(out, out + plan_.numel(), 0.0f);
      // Sums over workers, times what the options ask for, in the units of the loss as it is scaled.
      const double summand_scale = message == Message::float16 ? static_cast<double>(summand_scale_) : 1.0;
      const double mean = (carried_ ? 1.0 : factor / static_cast<double>(workers_)) / summand_scale;
      const double scale = mean * loss_scale;
      deliver(codec, settings, received, message, codec.votes() ? 1.0f : static_cast<float>(scale), out);
      if (codec.votes()) {
        vote(out, codec.n());
        const float size = static_cast<float>(factor * loss_scale);
        for (size_t i = 0; i < codec.n(); ++i) out[i] *= size;
      }
      if (state.memory() && message != Message::dense)
        codec.absorb(bytes_of(received), payloads_in(message), state.memory());
      if (moves(state, update) && applied(kRate) > 0) *state.rate() = static_cast<float>(applied(kRate));
    }
    if (result->dtype() != tensorflow::DT_FLOAT) narrow(wide, result);
    count(codec, message, gradient, skipped, nonzero, applied, now() - began, state.counts());
  }

 private:
  size_t payloads_in(Message message) const {
    return message == Message::payloads ? static_cast<size_t>(workers_) : 1;
  }

  static bool moves(const State& state, const Update& update) {
    return state.has_velocity() && update.velocity_scale != kAtRest;
  }

  // Of this rank's range of coordinates.
  size_t begin_of(const Codec& codec) const { return codec.begin(static_cast<size_t>(plan_.rank())); }
  size_t end_of(const Codec& codec) const { return codec.begin(static_cast<size_t>(plan_.rank()) + 1); }

  void check_returned(const Codec& codec, const Tensor& returned, const float* residual) const {
    const size_t count = end_of(codec) - begin_of(codec);
    if (static_cast<size_t>(returned.NumElements()) != count || residual == nullptr)
      throw std::invalid_argument("returned has " + std::to_string(returned.NumElements()) +
                                  " elements; allowed: " + std::to_string(count) + ", and a residual");
  }

  // Adds to the residual what found no room in the sum of this rank's range.
  void take_back(const Codec& codec, const Tensor& returned, float* residual) const {
    const float* values = returned.flat<float>().data();
    for (size_t i = begin_of(codec); i < end_of(codec); ++i) residual[i] += *values++;
  }

  // Applies the proposal to the state, and zeroes the gradient if asked to; what was proposed is read back
  // from the payload. Returns the number of coordinates sent with a value other than zero.
  int64_t commit(const Codec& codec, const dgc::Context& settings, const Tensor& gradient,
                 const Tensor& payload, const Update& update, bool zero_grad, State* state) const {
    const Proposal proposal = codec.recover(bytes_of(payload), settings);
    Arrays arrays;
    arrays.n = codec.n();
    arrays.grad = data_of(gradient);
    arrays.grad_type = scalar_of(gradient.dtype());
    arrays.residual = state->residual();
    if (moves(*state, update)) arrays.velocity = state->velocity();
    Options options;
    options.threads = settings.threads;
    options.mask_velocity = masking_;
    options.zero_grad = zero_grad;
    dgc::commit(codec, proposal, update, arrays, options, settings, state->memory());
    if (proposal.dense) return plan_.numel();
    return static_cast<int64_t>(proposal.sent.size()) -
           std::count(proposal.sent.begin(), proposal.sent.end(), 0.0f);
  }

  void deliver(const Codec& codec, const dgc::Context& settings, const Tensor& received, Message message,
               float scale, float* out) const {
    if (message == Message::dense) {
      const auto* values = static_cast<const float*>(data_of(received));
      for (int64_t i = 0; i < plan_.numel(); ++i) out[i] = values[i] * scale;
      return;
    }
    codec.add(bytes_of(received), payloads_in(message), out, scale, settings);
  }

  static void narrow(const Tensor& wide, Tensor* result) {
    const auto from = wide.flat<float>();
    if (result->dtype() == tensorflow::DT_HALF) {
      result->flat<Eigen::half>() = from.cast<Eigen::half>();
    } else {
      result->flat<Eigen::bfloat16>() = from.cast<Eigen::bfloat16>();
    }
  }

  void count(const Codec& codec, Message message, const Tensor& gradient, bool skipped, int64_t nonzero,
             tensorflow::TTypes<double>::ConstVec applied, int64_t decode, int64_t* counts) const {
    int64_t step[kCounts] = {};
    step[skipped ? kSkipped : kSteps] = 1;
    step[kSent] =
        static_cast<int64_t>(message == Message::dense ? codec.n() * sizeof(float) : codec.nbytes()) +
        static_cast<int64_t>(message == Message::ranges ? codec.nbytes() / codec.parts() : 0) +
        static_cast<int64_t>(codec.opening().agreed() * sizeof(float));
    step[kControl] = carried_ ? 0 : static_cast<int64_t>(sizeof(float));
    step[kDense] = static_cast<int64_t>(gradient.TotalBytes());
    step[kNonzero] = nonzero;
    step[kOverflow] = skipped ? 0 : static_cast<int64_t>(applied(kWaiting));
    step[kEncode] = static_cast<int64_t>(applied(kEncodeNanoseconds));
    step[kDecode] = decode;
    for (int i = 0; i < kCounts; ++i) counts[i] += step[i];
    if (!skipped) std::copy(step, step + kCounts, counts + kCounts);
  }

  Plan plan_;
  std::vector<Message> messages_;
  std::vector<Kept> kept_;
  bool carried_ = false;
  int64_t workers_ = 0;
  float summand_scale_ = 1.0F;
  bool nesterov_ = false;
  bool masking_ = false;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcFinish").Device(DEVICE_CPU), FinishOp);

}  // namespace
}  // namespace dgc
