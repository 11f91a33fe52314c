// What the TensorFlow operations share: how they read their inputs, and the state of one variable.
//
//   Propose -> payload -> (a collective of Horovod) ----------------> Finish
//          -> Nonfinite -> (one more for the step) -> Conclude -> skipped -^
//
// A step is a transaction over all variables: Propose only reads the state, Conclude learns whether a
// gradient was not finite on any rank, and Finish commits and decodes, or leaves all state as it was. They
// are stateful: none may be folded away, shared or run twice.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "layout.h"
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

// Columns of the int64 matrix `counts`; its row 0 holds totals, its row 1 the latest step.
enum Count { kSteps, kSkipped, kSent, kControl, kDense, kNonzero, kEncode, kDecode, kCounts };

// Elements of the float64 vector `applied`, which carries a proposal's arithmetic to Finish.
enum Applied { kUnscale, kMomentum, kVelocityScale, kRate, kFinite, kEncodeNanoseconds, kEnded, kApplied };

// What Conclude counts for the whole step, in the int64 vector `progress`.
enum Progress { kStepsDone, kStepsSkipped, kWait, kLastWait, kProgress };

// How the bytes that arrive at Finish are to be read.
enum class Message { payloads, float32, float16 };

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

// How one variable travels: what does not change from step to step, and the number of coordinates sent in
// each stage of the density schedule.
class Plan {
 public:
  explicit Plan(OpKernelConstruction* context) {
    int indices = 0;
    std::string values;
    OP_REQUIRES_OK(context, context->GetAttr("numel", &numel_));
    OP_REQUIRES_OK(context, context->GetAttr("sent", &sent_));
    OP_REQUIRES_OK(context, context->GetAttr("indices", &indices));
    OP_REQUIRES_OK(context, context->GetAttr("values", &values));
    indices_ = static_cast<IndexCoder>(indices);
    values_ = ValueCoder(values);
  }

  int64_t numel() const { return numel_; }

  // Throws std::invalid_argument for a stage that the plan does not have.
  Layout layout(int64_t stage) const {
    if (stage < 0 || stage >= static_cast<int64_t>(sent_.size()))
      throw std::invalid_argument("stage is " + std::to_string(stage) + "; allowed: 0 to " +
                                  std::to_string(static_cast<int64_t>(sent_.size()) - 1));
    return Layout(static_cast<size_t>(numel_), static_cast<size_t>(sent_[static_cast<size_t>(stage)]),
                  indices_, values_);
  }

 private:
  int64_t numel_ = 0;
  std::vector<int64_t> sent_;
  IndexCoder indices_ = IndexCoder::elias_fano;
  ValueCoder values_ = ValueCoder::float32;
};

// The state of one variable: residual and counts, and, with momentum correction, velocity and the learning
// rate in whose units the velocity stands. Its locks are held for as long as the object lives.
class State {
 public:
  // Its handles are the operation's last inputs, from `first` on.
  State(OpKernelContext* context, int first, int64_t numel) {
    held_.reserve(static_cast<size_t>(context->num_inputs() - first));
    for (int i = first; i < context->num_inputs(); ++i) held_.emplace_back(variable_of(context, i));
    const int64_t expected[] = {numel, 2 * kCounts, numel, 1};
    for (size_t i = 0; i < held_.size(); ++i) {
      const int64_t elements = tensor(i)->NumElements();
      if (elements != expected[i])
        throw std::invalid_argument("state " + std::to_string(i) + " of a variable of " +
                                    std::to_string(numel) + " elements has " + std::to_string(elements) +
                                    "; allowed: " + std::to_string(expected[i]));
    }
  }

  bool has_velocity() const { return held_.size() > 2; }
  float* residual() { return tensor(0)->flat<float>().data(); }
  int64_t* counts() { return tensor(1)->flat<int64_t>().data(); }
  float* velocity() { return has_velocity() ? tensor(2)->flat<float>().data() : nullptr; }
  float* rate() { return tensor(3)->flat<float>().data(); }

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

  Tensor* tensor(size_t i) { return held_[i].variable->tensor(); }

  std::vector<Held> held_;
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
