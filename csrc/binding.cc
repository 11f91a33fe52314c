// Python binding: checks every argument, then hands plain pointers to the core with the GIL released.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "decode.h"
#include "norms.h"
#include "proposal.h"

namespace py = pybind11;

namespace {

using dgc::Arrays;
using dgc::IndexCoder;
using dgc::Layout;
using dgc::Options;
using dgc::Proposal;
using dgc::Randomness;
using dgc::Scalar;
using dgc::Update;
using dgc::ValueCoder;

[[noreturn]] void refuse(const std::string& name, const std::string& is, const std::string& allowed) {
  throw py::value_error(name + " is " + is + "; allowed: " + allowed);
}

std::string describe(const py::handle& object) {
  if (!py::isinstance<py::array>(object)) return py::str(py::type::handle_of(object));
  const auto array = py::reinterpret_borrow<py::array>(object);
  return "an array of dtype " + std::string(py::str(array.dtype())) + " and shape " +
         std::string(py::str(object.attr("shape")));
}

bool is_native(const py::dtype& dtype, int number) {
  return dtype.num() == number && (dtype.byteorder() == '=' || dtype.byteorder() == '|');
}

constexpr int kFloat32 = py::detail::npy_api::NPY_FLOAT_;
constexpr int kUint32 = py::detail::npy_api::NPY_UINT32_;
constexpr int kUint16 = py::detail::npy_api::NPY_USHORT_;
constexpr int kUint8 = py::detail::npy_api::NPY_UBYTE_;
constexpr int kFloat16 = 23;  // NPY_HALF, which pybind11 does not list

enum class Access { read, write };

// A C-contiguous, native-endian array; its shape is for the caller to check.
py::array checked_array(const std::string& name, const py::object& object, Access access) {
  if (!py::isinstance<py::array>(object)) refuse(name, describe(object), "a NumPy array");
  py::array array = py::reinterpret_borrow<py::array>(object);
  if (!(array.flags() & py::array::c_style))
    refuse(name, describe(object) + ", not C-contiguous", "a C-contiguous array");
  if (access == Access::write && !array.writeable())
    refuse(name, describe(object) + ", read-only", "a writable array");
  return array;
}

void check_shape(const std::string& name, const py::array& array, size_t size) {
  if (array.ndim() == 1 && static_cast<size_t>(array.size()) == size) return;
  refuse(name, describe(array), "shape (" + std::to_string(size) + ",)");
}

template <class T>
T* data_of(const std::string& name, const py::object& object, int number, const char* dtype, size_t size,
           Access access) {
  const py::array array = checked_array(name, object, access);
  if (!is_native(array.dtype(), number)) refuse(name, describe(object), std::string("dtype ") + dtype);
  check_shape(name, array, size);
  return static_cast<T*>(const_cast<void*>(array.data()));
}

float* floats(const std::string& name, const py::object& object, size_t size, Access access) {
  return data_of<float>(name, object, kFloat32, "float32", size, access);
}

struct Scalars {
  void* data;
  Scalar type;
  size_t size;
};

Scalars scalars(const std::string& name, const py::object& object, Access access) {
  const py::array array = checked_array(name, object, access);
  if (array.ndim() != 1) refuse(name, describe(object), "one dimension");
  const py::dtype dtype = array.dtype();
  Scalar type = Scalar::float32;
  if (is_native(dtype, kFloat16)) {
    type = Scalar::float16;
  } else if (is_native(dtype, kUint16)) {
    type = Scalar::bfloat16;
  } else if (!is_native(dtype, kFloat32)) {
    refuse(name, describe(object), "dtype float32, float16, or uint16 holding bfloat16 bits");
  }
  return {const_cast<void*>(array.data()), type, static_cast<size_t>(array.size())};
}

Scalars scalars(const std::string& name, const py::object& object, size_t size, Access access) {
  const Scalars s = scalars(name, object, access);
  if (s.size != size) refuse(name, describe(object), "shape (" + std::to_string(size) + ",)");
  return s;
}

struct Payloads {
  const uint8_t* data;
  size_t count;
};

Payloads payloads_of(const Layout& layout, const py::object& object) {
  const py::array array = checked_array("payloads", object, Access::read);
  if (!is_native(array.dtype(), kUint8)) refuse("payloads", describe(object), "dtype uint8");
  const size_t nbytes = layout.nbytes();
  const size_t size = static_cast<size_t>(array.size());
  const bool fits = array.ndim() == 1   ? (nbytes == 0 ? size == 0 : size % nbytes == 0)
                    : array.ndim() == 2 ? static_cast<size_t>(array.shape(1)) == nbytes
                                        : false;
  if (!fits) {
    const std::string length = std::to_string(nbytes);
    refuse("payloads", describe(object), "shape (N, " + length + ") or (N * " + length + ",)");
  }
  return {static_cast<const uint8_t*>(array.data()), nbytes == 0 ? 0 : size / nbytes};
}

int checked_threads(int threads) {
  if (threads < 1) refuse("threads", std::to_string(threads), "1 or more");
  return threads;
}

double checked_sample_ratio(double ratio) {
  if (!(ratio > 0.0 && ratio <= 1.0)) refuse("sample_ratio", std::to_string(ratio), "above 0, at most 1");
  return ratio;
}

// Refuses arrays that share memory: a pass that writes one would change another under its feet.
void check_disjoint(const Arrays& a) {
  struct Extent {
    const char* name;
    uintptr_t begin;
    uintptr_t end;
  };
  std::vector<Extent> extents;
  const auto add = [&](const char* name, const void* data, Scalar type) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    if (data) extents.push_back({name, begin, begin + a.n * dgc::scalar_size(type)});
  };
  add("grad", a.grad, a.grad_type);
  add("residual", a.residual, Scalar::float32);
  add("velocity", a.velocity, Scalar::float32);
  add("weights", a.weights, a.weights_type);
  for (size_t i = 0; i < extents.size(); ++i) {
    for (size_t j = i + 1; j < extents.size(); ++j) {
      if (extents[i].begin < extents[j].end && extents[j].begin < extents[i].end) {
        refuse(extents[j].name, std::string("memory of ") + extents[i].name, "memory of its own");
      }
    }
  }
}

Arrays arrays_of(size_t n, const Update& update, const py::object& grad, const py::object& residual,
                 const py::object& velocity, const py::object& weights, Access state, bool zero_grad) {
  Arrays a;
  a.n = n;
  const Scalars g = scalars("grad", grad, n, zero_grad ? Access::write : Access::read);
  a.grad = g.data;
  a.grad_type = g.type;
  a.residual = floats("residual", residual, n, state);
  if (!velocity.is_none()) a.velocity = floats("velocity", velocity, n, state);
  if (weights.is_none() != (update.weight_decay == 0.0)) {
    refuse("weights", weights.is_none() ? "None" : "given",
           "None exactly where weight_decay is 0 (it is " + std::to_string(update.weight_decay) + ")");
  }
  if (!weights.is_none()) {
    const Scalars w = scalars("weights", weights, n, Access::read);
    a.weights = w.data;
    a.weights_type = w.type;
  }
  check_disjoint(a);
  return a;
}

template <class T>
py::array_t<T> view(const std::vector<T>& values, const py::object& owner) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data(), owner);
}

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

py::tuple pack(const Layout& layout, const py::object& indices, const py::object& values) {
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
    layout.pack(i, v, out, s);
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
  const Payloads p = payloads_of(layout, payloads);
  float* o = floats("out", out, layout.n(), Access::write);
  checked_threads(threads);
  py::gil_scoped_release release;
  dgc::decode_add(layout, p.data, p.count, o, static_cast<float>(scale), threads);
}

Proposal propose(const Layout& layout, const Update& update, const py::object& grad,
                 const py::object& residual, const py::object& velocity, const py::object& weights,
                 double sample_ratio, int threads) {
  const Arrays a = arrays_of(layout.n(), update, grad, residual, velocity, weights, Access::read, false);
  Options options;
  options.sample_ratio = checked_sample_ratio(sample_ratio);
  options.threads = checked_threads(threads);
  py::gil_scoped_release release;
  return dgc::propose(layout, update, a, options);
}

void commit(const Proposal& proposal, const Update& update, const py::object& grad,
            const py::object& residual, const py::object& velocity, const py::object& weights,
            bool mask_velocity, bool zero_grad, int threads) {
  if (!proposal.finite) refuse("proposal", "not finite", "a finite one; skip the step");
  const Arrays a =
      arrays_of(proposal.layout.n(), update, grad, residual, velocity, weights, Access::write, zero_grad);
  Options options;
  options.threads = checked_threads(threads);
  options.mask_velocity = mask_velocity;
  options.zero_grad = zero_grad;
  py::gil_scoped_release release;
  dgc::commit(proposal, update, a, options);
}

Proposal encode(const Layout& layout, const Update& update, const py::object& grad,
                const py::object& residual, const py::object& velocity, const py::object& weights,
                bool mask_velocity, bool zero_grad, double sample_ratio, int threads, bool assume_finite) {
  const Arrays a = arrays_of(layout.n(), update, grad, residual, velocity, weights, Access::write, zero_grad);
  Options options;
  options.sample_ratio = checked_sample_ratio(sample_ratio);
  options.threads = checked_threads(threads);
  options.mask_velocity = mask_velocity;
  options.zero_grad = zero_grad;
  options.assume_finite = assume_finite;
  py::gil_scoped_release release;
  return dgc::encode(layout, update, a, options);
}

std::string layout_repr(const Layout& layout) {
  const auto name = [](const py::object& coder) { return std::string(py::str(coder.attr("name"))); };
  return "Layout(n=" + std::to_string(layout.n()) + ", k=" + std::to_string(layout.k()) +
         ", indices=IndexCoder." + name(py::cast(layout.indices())) + ", values=ValueCoder('" +
         layout.values().name() + "'), nbytes=" + std::to_string(layout.nbytes()) + ")";
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of horovod_dgc: selection, coding and the streaming passes, on NumPy arrays.";

  py::native_enum<IndexCoder>(m, "IndexCoder", "enum.Enum", "How the coordinates of a payload are coded.")
      .value("elias_fano", IndexCoder::elias_fano)
      .value("runlength16", IndexCoder::runlength16)
      .value("int32", IndexCoder::int32)
      .finalize();
  py::class_<Randomness>(m, "Randomness")
      .def(py::init<uint64_t, uint64_t, uint64_t, uint64_t>(), py::arg("seed"), py::arg("tensor"),
           py::arg("step"), py::arg("rank"));
  py::class_<ValueCoder>(m, "ValueCoder")
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

  py::class_<Layout>(m, "Layout")
      .def(py::init<size_t, size_t, IndexCoder, const ValueCoder&>(), py::arg("n"), py::arg("k"), py::arg("indices"),
           py::arg("values"))
      .def_property_readonly("n", &Layout::n)
      .def_property_readonly("k", &Layout::k)
      .def_property_readonly("indices", &Layout::indices)
      .def_property_readonly("values", &Layout::values)
      .def_property_readonly("nbytes", &Layout::nbytes)
      .def("pack", &pack, py::arg("indices"), py::arg("values"))
      .def("unpack", &unpack, py::arg("payload"))
      .def(
          "validate",
          [](const Layout& layout, const py::object& payloads) {
            const Payloads p = payloads_of(layout, payloads);
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

  py::class_<Update>(m, "Update")
      .def(py::init<double, double, double, double, bool>(), py::arg("unscale") = 1.0,
           py::arg("weight_decay") = 0.0, py::arg("momentum") = 0.0, py::arg("dampening") = 0.0,
           py::arg("nesterov") = false)
      .def_readonly("unscale", &Update::unscale)
      .def_readonly("weight_decay", &Update::weight_decay)
      .def_readonly("momentum", &Update::momentum)
      .def_readonly("dampening", &Update::dampening)
      .def_readonly("nesterov", &Update::nesterov);

  py::class_<Proposal>(m, "Proposal")
      .def_readonly("layout", &Proposal::layout)
      .def_readonly("finite", &Proposal::finite)
      .def_property_readonly(
          "payload", [](const py::object& self) { return view(self.cast<const Proposal&>().payload, self); })
      .def_property_readonly("indices",
                             [](const py::object& self) -> py::array {
                               const Proposal& p = self.cast<const Proposal&>();
                               if (!p.layout.dense()) return view(p.indices, self);
                               py::array_t<uint32_t> all(static_cast<py::ssize_t>(p.layout.n()));
                               uint32_t* i = all.mutable_data();
                               for (size_t j = 0; j < p.layout.n(); ++j) i[j] = static_cast<uint32_t>(j);
                               return all;
                             })
      .def_property_readonly(
          "sent", [](const py::object& self) { return view(self.cast<const Proposal&>().sent, self); })
      .def("commit", &commit, py::arg("update"), py::arg("grad"), py::arg("residual"),
           py::arg("velocity") = py::none(), py::arg("weights") = py::none(), py::kw_only(),
           py::arg("mask_velocity") = true, py::arg("zero_grad") = false, py::arg("threads") = 1)
      .def(
          "masked",
          [](const Proposal& proposal, const py::object& out) {
            float* o = floats("out", out, proposal.layout.n(), Access::write);
            py::gil_scoped_release release;
            proposal.masked(o);
          },
          py::arg("out"));

  m.def("propose", &propose, py::arg("layout"), py::arg("update"), py::arg("grad"), py::arg("residual"),
        py::arg("velocity") = py::none(), py::arg("weights") = py::none(), py::kw_only(),
        py::arg("sample_ratio") = 0.01, py::arg("threads") = 1);
  m.def("encode", &encode, py::arg("layout"), py::arg("update"), py::arg("grad"), py::arg("residual"),
        py::arg("velocity") = py::none(), py::arg("weights") = py::none(), py::kw_only(),
        py::arg("mask_velocity") = true, py::arg("zero_grad") = false, py::arg("sample_ratio") = 0.01,
        py::arg("threads") = 1, py::arg("assume_finite") = false);
  m.def(
      "sum_squares",
      [](const py::object& x, int threads) {
        const Scalars s = scalars("x", x, Access::read);
        checked_threads(threads);
        py::gil_scoped_release release;
        return dgc::sum_squares(s.data, s.type, s.size, threads);
      },
      py::arg("x"), py::arg("threads") = 1);
  m.def(
      "all_finite",
      [](const py::object& x) {
        const Scalars s = scalars("x", x, Access::read);
        py::gil_scoped_release release;
        return dgc::all_finite(s.data, s.type, s.size);
      },
      py::arg("x"));
  m.def(
      "apply_momentum",
      [](const py::object& aggregated, const py::object& velocity, const Update& update) {
        const py::array array = checked_array("aggregated", aggregated, Access::write);
        const size_t n = static_cast<size_t>(array.size());
        float* a = floats("aggregated", aggregated, n, Access::write);
        float* v = floats("velocity", velocity, n, Access::write);
        py::gil_scoped_release release;
        dgc::apply_momentum(a, v, n, update);
      },
      py::arg("aggregated"), py::arg("velocity"), py::arg("update"));
}
