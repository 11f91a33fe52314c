// Coders and layouts.
#include <pybind11/native_enum.h>

#include <utility>

#include "arguments.h"
#include "decode.h"
#include "layout.h"

namespace dgc::python {
namespace {

// (bytes, sent): each on its own memory, the values are left as they are.
py::tuple encode_values(const ValueCoder& coder, const py::object& values, const Randomness& randomness,
                        int threads) {
  const py::array array = checked_array("values", values, Access::read);
  const size_t k = static_cast<size_t>(array.size());
  const float* v = floats("values", values, k, Access::read);
  checked_threads(threads);
  py::array_t<uint8_t> bytes(static_cast<py::ssize_t>(dgc::value_bytes(coder, k)));
  py::array_t<float> sent(static_cast<py::ssize_t>(k));
  uint8_t* out = bytes.mutable_data();
  float* s = sent.mutable_data();
  {
    py::gil_scoped_release release;
    dgc::encode_values(coder, v, k, out, s, randomness.own, threads);
  }
  return py::make_tuple(std::move(bytes), std::move(sent));
}

py::array_t<float> decode_values(const ValueCoder& coder, const py::object& bytes, size_t k) {
  const uint8_t* b =
      data_of<uint8_t>("bytes", bytes, kUint8, "uint8", dgc::value_bytes(coder, k), Access::read);
  const std::string wrong = dgc::check_values(coder, k, b);
  if (!wrong.empty()) throw py::value_error("bytes: " + wrong);
  py::array_t<float> values(static_cast<py::ssize_t>(k));
  float* v = values.mutable_data();
  {
    py::gil_scoped_release release;
    dgc::decode_values(coder, k, b, 0, k, v);
  }
  return values;
}

py::tuple pack(const Layout& layout, const py::object& indices, const py::object& values,
               const Randomness& randomness) {
  const size_t k = layout.k();
  const uint32_t* i = data_of<uint32_t>("indices", indices, kUint32, "uint32", k, Access::read);
  const float* v = floats("values", values, k, Access::read);
  for (size_t j = 0; j < k; ++j) {
    if (i[j] >= layout.n() || (j > 0 && i[j] <= i[j - 1])) {
      refuse("indices[" + std::to_string(j) + "]", std::to_string(i[j]),
             "strictly increasing, below n = " + std::to_string(layout.n()));
    }
  }
  py::array_t<uint8_t> payload(static_cast<py::ssize_t>(layout.nbytes()));
  py::array_t<float> sent(static_cast<py::ssize_t>(k));
  uint8_t* out = payload.mutable_data();
  float* s = sent.mutable_data();
  {
    py::gil_scoped_release release;
    layout.pack(i, v, out, s, randomness.own);
  }
  return py::make_tuple(std::move(payload), std::move(sent));
}

py::tuple unpack(const Layout& layout, const py::object& payload) {
  const uint8_t* bytes = data_of<uint8_t>("payload", payload, kUint8, "uint8", layout.nbytes(), Access::read);
  py::array_t<uint32_t> indices(static_cast<py::ssize_t>(layout.k()));
  py::array_t<float> values(static_cast<py::ssize_t>(layout.k()));
  uint32_t* i = indices.mutable_data();
  float* v = values.mutable_data();
  {
    py::gil_scoped_release release;
    dgc::validate(layout, bytes, 1, 1);
    layout.unpack(bytes, i, v);
  }
  return py::make_tuple(std::move(indices), std::move(values));
}

void decode_add(const Layout& layout, const py::object& payloads, const py::object& out, double scale,
                int threads) {
  const Payloads p = payloads_of(layout.nbytes(), payloads);
  float* o = floats("out", out, layout.n(), Access::write);
  checked_threads(threads);
  py::gil_scoped_release release;
  dgc::decode_add(layout, p.data, p.count, o, static_cast<float>(scale), threads);
}

std::string layout_repr(const Layout& layout) {
  const auto name = [](const py::object& coder) { return std::string(py::str(coder.attr("name"))); };
  return "Layout(n=" + std::to_string(layout.n()) + ", k=" + std::to_string(layout.k()) +
         ", indices=IndexCoder." + name(py::cast(layout.indices())) + ", values=ValueCoder('" +
         layout.values().name() + "'), nbytes=" + std::to_string(layout.nbytes()) + ")";
}

}  // namespace

void bind_coding(py::module_* m) {
  py::native_enum<IndexCoder>(*m, "IndexCoder", "enum.Enum", "How the coordinates of a payload are coded.")
      .value("elias_fano", IndexCoder::elias_fano)
      .value("runlength16", IndexCoder::runlength16)
      .value("int32", IndexCoder::int32)
      .finalize();
  py::class_<Randomness>(*m, "Randomness")
      .def(py::init<uint64_t, uint64_t, uint64_t, uint64_t>(), py::arg("seed"), py::arg("tensor"),
           py::arg("step"), py::arg("rank"));
  py::class_<ValueCoder>(*m, "ValueCoder")
      .def(py::init<const std::string&>(), py::arg("name"))
      .def_property_readonly("name", &ValueCoder::name)
      .def("nbytes", [](const ValueCoder& coder, size_t k) { return dgc::value_bytes(coder, k); }, py::arg("k"))
      .def("encode", &encode_values, py::arg("values"), py::arg("randomness") = Randomness(),
           py::arg("threads") = 1)
      .def("decode", &decode_values, py::arg("bytes"), py::arg("k"))
      .def("__eq__",
           [](const ValueCoder& coder, const py::object& other) {
             return py::isinstance<ValueCoder>(other) && coder == other.cast<const ValueCoder&>();
           })
      .def("__hash__", [](const ValueCoder& coder) { return py::hash(py::str(coder.name())); })
      .def("__repr__", [](const ValueCoder& coder) { return "ValueCoder('" + coder.name() + "')"; });

  py::class_<Layout>(*m, "Layout")
      .def(py::init<size_t, size_t, IndexCoder, const ValueCoder&>(), py::arg("n"), py::arg("k"), py::arg("indices"),
           py::arg("values"))
      .def_property_readonly("n", &Layout::n)
      .def_property_readonly("k", &Layout::k)
      .def_property_readonly("indices", &Layout::indices)
      .def_property_readonly("values", &Layout::values)
      .def_property_readonly("nbytes", &Layout::nbytes)
      .def("pack", &pack, py::arg("indices"), py::arg("values"), py::arg("randomness") = Randomness())
      .def("unpack", &unpack, py::arg("payload"))
      .def(
          "validate",
          [](const Layout& layout, const py::object& payloads) {
            const Payloads p = payloads_of(layout.nbytes(), payloads);
            py::gil_scoped_release release;
            dgc::validate(layout, p.data, p.count, 1);
          },
          py::arg("payloads"))
      .def("decode_add", &decode_add, py::arg("payloads"), py::arg("out"), py::arg("scale") = 1.0,
           py::arg("threads") = 1)
      .def("poison",
           [](const Layout& layout) {
             const std::vector<uint8_t> payload = layout.poison();
             return py::array_t<uint8_t>(static_cast<py::ssize_t>(payload.size()), payload.data());
           })
      .def("__eq__",
           [](const Layout& layout, const py::object& other) {
             return py::isinstance<Layout>(other) && layout == other.cast<const Layout&>();
           })
      .def("__hash__",
           [](const Layout& layout) {
             return py::hash(py::make_tuple(layout.n(), layout.k(), layout.indices(), layout.values().name()));
           })
      .def("__repr__", &layout_repr);
}

}  // namespace dgc::python
