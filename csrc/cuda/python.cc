// The Python module: addresses of device memory and a stream, as numbers, go to the kernels.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "add.h"
#include "builders.h"
#include "commit.h"
#include "propose.h"
#include "reduce.h"

namespace py = pybind11;

namespace dgc::cuda {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

Scalar scalar_of(const std::string& name) {
  if (name == "float32") return Scalar::float32;
  if (name == "float16") return Scalar::float16;
  if (name == "bfloat16") return Scalar::bfloat16;
  throw std::invalid_argument("dtype is " + name + "; allowed: float32, float16, bfloat16");
}

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_batch(py::module_* m) {
  py::class_<BatchBuilder>(*m, "Batch")
      .def(py::init<>())
      .def(
          "add",
          [](BatchBuilder& self, const Layout& layout, const Update& update, Address grad, const std::string& dtype,
             Address residual, Address velocity, Address weights, const std::string& weights_dtype, bool mask,
             bool zero_grad) {
            Arrays a;
            a.n = layout.n();
            a.grad = at<void>(grad);
            a.grad_type = scalar_of(dtype);
            a.residual = at<float>(residual);
            a.velocity = at<float>(velocity);
            a.weights = at<const void>(weights);
            a.weights_type = scalar_of(weights_dtype);
            return self.add(layout, update, a, mask, zero_grad);
          },
          py::arg("layout"), py::arg("update"), py::arg("grad"), py::arg("dtype"), py::arg("residual") = 0,
          py::arg("velocity") = 0, py::arg("weights") = 0, py::arg("weights_dtype") = "float32",
          py::arg("mask") = true, py::arg("zero_grad") = false)
      .def("__len__", &BatchBuilder::count)
      .def_property_readonly("payload_bytes", &BatchBuilder::payload_bytes)
      .def_property_readonly("kept_bytes", &BatchBuilder::kept_bytes)
      .def_property_readonly("scratch_bytes", &BatchBuilder::scratch_bytes)
      .def_property_readonly("table_bytes", &BatchBuilder::table_bytes)
      .def("payload_offset", &BatchBuilder::payload_offset, py::arg("number"))
      .def("payload_nbytes", &BatchBuilder::payload_nbytes, py::arg("number"))
      .def(
          "write",
          [](const BatchBuilder& self, Address table, Address payloads, Address kept, Address progress, Address scratch,
             Address host) { self.write(table, payloads, kept, progress, scratch, at<uint8_t>(host)); },
          py::arg("table"), py::arg("payloads"), py::arg("kept"), py::arg("progress"), py::arg("scratch"),
          py::arg("host"))
      .def(
          "propose",
          [](const BatchBuilder& self, Address table, Address scratch, Address stream) {
            propose(self.batch(table, scratch), at<void>(stream));
          },
          py::arg("table"), py::arg("scratch"), py::arg("stream"), Released())
      .def(
          "commit",
          [](const BatchBuilder& self, Address table, Address stream) {
            commit(self.batch(table, 0), at<void>(stream));
          },
          py::arg("table"), py::arg("stream"), Released())
      .def(
          "scatter_sent",
          [](const BatchBuilder& self, size_t number, Address table, Address out, Address stream) {
            scatter_sent(self.batch(table, 0), self.first_group(number), self.groups(number), at<float>(out),
                         at<void>(stream));
          },
          py::arg("number"), py::arg("table"), py::arg("out"), py::arg("stream"), Released());
}

void bind_sums(py::module_* m) {
  py::class_<SumsBuilder>(*m, "Sums")
      .def(py::init<>())
      .def("add", &SumsBuilder::add, py::arg("layout"), py::arg("payloads"), py::arg("count"), py::arg("out"),
           py::arg("scale"))
      .def_property_readonly("scratch_bytes", &SumsBuilder::scratch_bytes)
      .def_property_readonly("table_bytes", &SumsBuilder::table_bytes)
      .def(
          "write",
          [](const SumsBuilder& self, Address scratch, Address host) { self.write(scratch, at<uint8_t>(host)); },
          py::arg("scratch"), py::arg("host"))
      .def(
          "run",
          [](const SumsBuilder& self, Address table, Address malformed, Address stream) {
            add(self.sums(table, malformed), at<void>(stream));
          },
          py::arg("table"), py::arg("malformed"), py::arg("stream"), Released());
}

void bind_whole_tensors(py::module_* m) {
  py::class_<ReducedBuilder>(*m, "Reduced")
      .def(py::init<>())
      .def(
          "add",
          [](ReducedBuilder& self, size_t n, Address in, const std::string& dtype, Address out, Address velocity,
             const Update& update, float factor, float after) {
            self.add(n, in, scalar_of(dtype), out, velocity, update, factor, after);
          },
          py::arg("n"), py::arg("input"), py::arg("dtype"), py::arg("out"), py::arg("velocity"), py::arg("update"),
          py::arg("factor"), py::arg("after"))
      .def_property_readonly("table_bytes", &ReducedBuilder::table_bytes)
      .def("write", [](const ReducedBuilder& self, Address host) { self.write(at<uint8_t>(host)); }, py::arg("host"))
      .def(
          "run",
          [](const ReducedBuilder& self, Address table, Address stream) {
            finish_reduced(self.tensors(table), self.stripe_tensor(table), self.stripes(), at<void>(stream));
          },
          py::arg("table"), py::arg("stream"), Released());
  py::class_<SquaresBuilder>(*m, "Squares")
      .def(py::init<>())
      .def(
          "add",
          [](SquaresBuilder& self, size_t n, Address data, const std::string& dtype) {
            self.add(n, data, scalar_of(dtype));
          },
          py::arg("n"), py::arg("data"), py::arg("dtype"))
      .def_property_readonly("stripes", &SquaresBuilder::stripes)
      .def_property_readonly("table_bytes", &SquaresBuilder::table_bytes)
      .def("write", [](const SquaresBuilder& self, Address host) { self.write(at<uint8_t>(host)); }, py::arg("host"))
      .def(
          "run",
          [](const SquaresBuilder& self, Address table, Address sums, Address stream) {
            sum_squares(self.tensors(table), self.stripe_tensor(table), self.stripes(), at<double>(sums),
                        at<void>(stream));
          },
          py::arg("table"), py::arg("sums"), py::arg("stream"), Released());
}

}  // namespace
}  // namespace dgc::cuda

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of horovod_dgc: the passes of a step on device memory.";
  // Its Layout and Update are arguments here.
  py::module_::import("horovod_dgc._core");
  m.def("has_format", &dgc::cuda::has_format, py::arg("layout"));
  m.attr("progress_words") = dgc::cuda::kProgressWords;
  py::dict fields;
  for (const auto& field : dgc::cuda::kProgressFields) fields[field.name] = field.word;
  m.attr("progress_fields") = fields;
  dgc::cuda::bind_batch(&m);
  dgc::cuda::bind_sums(&m);
  dgc::cuda::bind_whole_tensors(&m);
}
