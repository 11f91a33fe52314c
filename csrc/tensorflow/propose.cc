// Selecting and coding one variable's gradient as graph operations.
#include "norms.h"
#include "operations.h"
#include "proposal.h"
#include "quantile.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace dgc {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::shape_inference::InferenceContext;

// An address that tells one variable from another for as long as both live.
int64_t identity_of(const Var* variable) {
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(variable));
}

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
    output(context, 0, {})->scalar<double>()() = sum_squares(data_of(gradient), scalar_of(gradient.dtype()),
                                                             static_cast<size_t>(n), threads_for(context, n));
  }
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcSumSquares").Device(DEVICE_CPU), SumSquaresOp);

// What Open and Propose have in common: the arithmetic of the step, read from the inputs
//   gradient, variable, unscale, momentum, rate, opened, squares, state...
class ArithmeticOp : public Operation {
 public:
  explicit ArithmeticOp(OpKernelConstruction* context)
      : Operation(context), plan_(context), kept_(numbers_of(context, "kept", kKeptNames)) {
    OP_REQUIRES_OK(context, context->GetAttr("identity", &identity_));
    OP_REQUIRES_OK(context, context->GetAttr("label", &label_));
    OP_REQUIRES_OK(context, context->GetAttr("starts", &starts_));
    OP_REQUIRES_OK(context, context->GetAttr("nesterov", &nesterov_));
    OP_REQUIRES_OK(context, context->GetAttr("pauses", &pauses_));
  }

 protected:
  struct Arithmetic {
    State state;
    int64_t stage;
    const Codec& codec;
    Update update;
    Arrays arrays;
    dgc::Context context;
  };

  Arithmetic read(OpKernelContext* context, bool opened) const {
    const Tensor& gradient = context->input(0);
    const int64_t n = plan_.numel();
    if (gradient.NumElements() != n)
      throw std::invalid_argument("the gradient of " + label_ + " has " +
                                  std::to_string(gradient.NumElements()) +
                                  " elements; allowed: " + std::to_string(n));
    if (identity_of(variable_of(context, 1).get()) != identity_)
      throw std::invalid_argument(
          "a gradient taken for that of " + label_ +
          " belongs to a variable of another model: each model and each optimizer needs a "
          "horovod_dgc.tensorflow.Compression of its own");
    State state(context, 7, kept_, plan_);
    double unscale = context->input(2).scalar<double>()();
    double momentum = 0.0;
    double velocity_scale = 1.0;
    if (state.has_velocity()) {
      momentum = context->input(3).scalar<double>()();
      // The velocity stands in units of the gradient, and the optimizer multiplies what it is given by
      // today's learning rate. Momentum that was gathered at another rate is worth what it was worth then.
      const auto today = static_cast<float>(context->input(4).scalar<double>()());  // as the state keeps it
      if (*state.rate() > 0 && today > 0) velocity_scale = static_cast<double>(*state.rate()) / today;
      // At rate 0 a gradient is worth nothing, and what has gathered moves on in units of the rate before.
      if (today == 0) unscale = 0.0;
    }
    const int64_t step = state.counts()[kSteps];
    const auto stage = std::upper_bound(starts_.begin(), starts_.end(), step) - starts_.begin() - 1;
    const Codec& codec = plan_.codec(stage);
    Arrays arrays;
    arrays.n = static_cast<size_t>(n);
    arrays.grad = data_of(gradient);
    arrays.grad_type = scalar_of(gradient.dtype());
    arrays.residual = state.residual();
    const bool moves = state.has_velocity() && !(pauses_ && momentum == 0.0);
    if (moves) arrays.velocity = state.velocity();
    if (state.has_velocity() && !moves) velocity_scale = kAtRest;
    const Tensor* agreed = opened ? &context->input(5) : nullptr;
    dgc::Context settings =
        plan_.context_of(step, codec, agreed, &context->input(6), threads_for(context, n));
    settings.memory = state.memory();
    const Update update(unscale, 0.0, momentum, 0.0, nesterov_, velocity_scale);
    return {std::move(state), stage, codec, update, arrays, settings};
  }

 private:
  Plan plan_;
  std::vector<Kept> kept_;
  int64_t identity_ = 0;
  std::string label_;
  std::vector<int64_t> starts_;
  bool nesterov_ = false;
  bool pauses_ = false;
};

#define HOROVOD_DGC_ARITHMETIC(op)                       \
  op.Attr("T: {float, half, bfloat16}")                  \
      .Attr("K: int >= 1")                               \
      .Attr("identity: int")                             \
      .Attr("label: string")                             \
      .Attr("starts: list(int)")                         \
      .Attr(attribute_of_names("kept", kKeptNames))      \
      .Attr("codecs: list(string)")                      \
      .Attr("seed: int")                                 \
      .Attr("number: int")                               \
      .Attr("rank: int")                                 \
      .Attr("nesterov: bool")                            \
      .Attr("pauses: bool")                              \
      .Input("gradient: T")                              \
      .Input("variable: resource")                       \
      .Input("unscale: double")                          \
      .Input("momentum: double")                         \
      .Input("rate: double")                             \
      .Input("opened: float")                            \
      .Input("squares: float")                           \
      .Input("state: K * resource")

HOROVOD_DGC_ARITHMETIC(REGISTER_OP("HorovodDgcOpen"))
    .Output("opening: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    })
    .Doc("This worker's part of a codec's opening round; arguments as for HorovodDgcPropose, opened unused.");

class OpenOp : public ArithmeticOp {
 public:
  using ArithmeticOp::ArithmeticOp;

 protected:
  void run(OpKernelContext* context) override {
    const Arithmetic a = read(context, false);
    Options options;
    options.threads = a.context.threads;
    Tensor* opening = output(context, 0, TensorShape({static_cast<int64_t>(a.codec.opening().count)}));
    open(a.codec, a.update, a.arrays, options, a.context, opening->flat<float>().data());
  }
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcOpen").Device(DEVICE_CPU), OpenOp);

REGISTER_OP("HorovodDgcQuantile")
    .Attr("N: int >= 1")
    .Attr("codecs: list(string)")
    .Input("openings: N * float")
    .Output("opened: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(1));
      return absl::OkStatus();
    })
    .Doc("What the opening rounds of one worker's variables, whose codecs reduce them by quantile, come to.");

class QuantileOp : public Operation {
 public:
  explicit QuantileOp(OpKernelConstruction* context) : Operation(context), codecs_(codecs_of(context)) {}

 protected:
  void run(OpKernelContext* context) override {
    std::vector<const Codec*> codecs;
    std::vector<const float*> openings;
    for (int i = 0; i < context->num_inputs(); ++i) {
      codecs.push_back(codecs_.at(static_cast<size_t>(i)).get());
      const size_t count = static_cast<size_t>(context->input(i).NumElements());
      if (count != codecs.back()->opening().count)
        throw std::invalid_argument("opening " + std::to_string(i) + " has " + std::to_string(count) +
                                    " elements; allowed: " + std::to_string(codecs.back()->opening().count));
      openings.push_back(context->input(i).flat<float>().data());
    }
    output(context, 0, TensorShape({1}))->vec<float>()(0) = opened_by_quantile(codecs, openings);
  }

 private:
  std::vector<std::shared_ptr<const Codec>> codecs_;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcQuantile").Device(DEVICE_CPU), QuantileOp);

HOROVOD_DGC_ARITHMETIC(REGISTER_OP("HorovodDgcPropose"))
    .Attr("sample_ratio: float")
    .Output("payload: uint8")
    .Output("stage: int64")
    .Output("applied: double")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      c->set_output(1, c->Scalar());
      c->set_output(2, c->Vector(kApplied));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Selects and codes what one variable sends in this step; changes no state.

identity, label: HorovodDgcIdentity's answer for the variable that this operation was made for, and its name.
starts: number of steps done at which each stage of the density schedule begins, ascending from 0.
codecs: for each stage, the codec's description. seed, number, rank: what random numbers follow from.
kept: what follows counts in `state`, in this order. counts int64 [2, columns], residual and velocity float32 [numel],
  rate float32 [], the learning rate in whose units the velocity stands, memory float32, the codec's.
unscale, momentum, rate: factor of the gradient, momentum, and learning rate of this step.
pauses: a momentum of 0 leaves the velocity as it is; otherwise that clears it.
opened: what came back from the opening round; without elements where there is none.
squares: float32 [numel], sums over samples of the squared gradient in unscaled units, for a codec that weighs by
  them; without elements for the squares of the gradient itself.
payload: its length depends on the stage only. applied: float64, for HorovodDgcFinish.
)doc");

#undef HOROVOD_DGC_ARITHMETIC

class ProposeOp : public ArithmeticOp {
 public:
  explicit ProposeOp(OpKernelConstruction* context) : ArithmeticOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("sample_ratio", &sample_ratio_));
  }

 protected:
  void run(OpKernelContext* context) override {
    const int64_t began = now();
    const Arithmetic a = read(context, true);
    Options options;
    options.sample_ratio = sample_ratio_;
    options.threads = a.context.threads;
    const Proposal proposal = propose(a.codec, a.update, a.arrays, options, a.context);

    Tensor* payload = output(context, 0, TensorShape({static_cast<int64_t>(proposal.payload.size())}));
    std::copy(proposal.payload.begin(), proposal.payload.end(), static_cast<uint8_t*>(data_of(*payload)));
    output(context, 1, {})->scalar<int64_t>()() = a.stage;
    auto out = output(context, 2, TensorShape({kApplied}))->vec<double>();
    const int64_t ended = now();
    out(kUnscale) = a.update.unscale;
    out(kMomentum) = a.update.momentum;
    out(kVelocityScale) = a.update.velocity_scale;
    out(kRate) = context->input(4).scalar<double>()();
    out(kFinite) = proposal.finite ? 1.0 : 0.0;
    out(kWaiting) = static_cast<double>(proposal.overflow);
    out(kEncodeNanoseconds) = static_cast<double>(ended - began);
    out(kEnded) = static_cast<double>(ended);
  }

 private:
  float sample_ratio_ = 0;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcPropose").Device(DEVICE_CPU), ProposeOp);

REGISTER_OP("HorovodDgcReduce")
    .Attr("codecs: list(string)")
    .Attr("seed: int")
    .Attr("number: int")
    .Attr("rank: int")
    .Input("received: uint8")
    .Input("stage: int64")
    .Output("part: uint8")
    .Output("returned: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      c->set_output(1, c->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    })
    .Doc(
        "From the parts of all workers' payloads that this rank adds up to that part of their sum's payload, "
        "and the "
        "rest.");

class ReduceOp : public Operation {
 public:
  explicit ReduceOp(OpKernelConstruction* context) : Operation(context), plan_(context) {}

 protected:
  void run(OpKernelContext* context) override {
    const Tensor& received = context->input(0);
    const Codec& codec = plan_.codec(context->input(1).scalar<int64_t>()());
    const size_t part = static_cast<size_t>(plan_.rank());
    if (part >= codec.parts())
      throw std::invalid_argument("rank is " + std::to_string(part) +
                                  "; allowed: below the codec's number of parts, " +
                                  std::to_string(codec.parts()));
    const size_t nbytes = codec.nbytes() / codec.parts();
    if (static_cast<size_t>(received.NumElements()) != codec.nbytes())
      throw std::invalid_argument("the parts of " + std::to_string(codec.parts()) + " ranks must have " +
                                  std::to_string(codec.nbytes()) + " bytes in all, got " +
                                  std::to_string(received.NumElements()) +
                                  ": are all ranks at the same step of the density schedule?");
    const int64_t count = static_cast<int64_t>(codec.begin(part + 1) - codec.begin(part));
    Tensor* const payload = output(context, 0, TensorShape({static_cast<int64_t>(nbytes)}));
    Tensor* const returned = output(context, 1, TensorShape({count}));
    codec.reduce(part, bytes_of(received), codec.parts(), dgc::Context(),
                 static_cast<uint8_t*>(data_of(*payload)), returned->flat<float>().data());
  }

 private:
  Plan plan_;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcReduce").Device(DEVICE_CPU), ReduceOp);

REGISTER_OP("HorovodDgcMasked")
    .Attr("codecs: list(string)")
    .Attr("seed: int")
    .Attr("number: int")
    .Attr("rank: int")
    .Input("payload: uint8")
    .Input("stage: int64")
    .Input("opened: float")
    .Output("dense: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    })
    .Doc("A payload as a dense vector with zeros where nothing is sent: its form for an allreduce.");

// Only for codecs whose payloads cannot be summed: those decode without knowing the step.
class MaskedOp : public Operation {
 public:
  explicit MaskedOp(OpKernelConstruction* context) : Operation(context), plan_(context) {}

 protected:
  void run(OpKernelContext* context) override {
    const Codec& codec = plan_.codec(context->input(1).scalar<int64_t>()());
    auto* dense = static_cast<float*>(data_of(*output(context, 0, TensorShape({plan_.numel()}))));
    std::fill(dense, dense + plan_.numel(), 0.0f);
    codec.add(bytes_of(context->input(0)), 1, dense, 1.0f,
              plan_.context_of(0, codec, &context->input(2), nullptr, threads_for(context, plan_.numel())));
  }

 private:
  Plan plan_;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcMasked").Device(DEVICE_CPU), MaskedOp);

}  // namespace
}  // namespace dgc
