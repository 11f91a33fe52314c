// Noticing that somebody has given variables other values.
#include <mutex>
#include <vector>

#include "operations.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace dgc {
namespace {

using tensorflow::DEVICE_CPU;

REGISTER_OP("HorovodDgcReplaced")
    .Attr("K: int >= 1")
    .Input("variables: K * resource")
    .Output("replaced: bool")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Whether one of these variables has been assigned since this operation ran last, judging by where its value lies; true
the first time. What is added to a variable in place is not noticed. Costs nothing per element.
)doc");

class ReplacedOp : public Operation {
 public:
  using Operation::Operation;

 protected:
  void run(OpKernelContext* context) override {
    const std::lock_guard lock(mutex_);
    bool replaced = seen_.empty();
    seen_.resize(static_cast<size_t>(context->num_inputs()));
    for (int i = 0; i < context->num_inputs(); ++i) {
      const auto variable = variable_of(context, i);
      const std::lock_guard value_lock(*variable->mu());
      Tensor& seen = seen_[static_cast<size_t>(i)];
      if (variable->tensor()->SharesBufferWith(seen)) continue;
      // Held on to, so that nothing else can come to lie at the same place.
      seen = *variable->tensor();
      replaced = true;
    }
    output(context, 0, {})->scalar<bool>()() = replaced;
  }

 private:
  std::mutex mutex_;
  std::vector<Tensor> seen_;
};
REGISTER_KERNEL_BUILDER(Name("HorovodDgcReplaced").Device(DEVICE_CPU), ReplacedOp);

}  // namespace
}  // namespace dgc
