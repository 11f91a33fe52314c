// How Python's arguments are checked: every error names the argument, what it is, and what is allowed.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"

namespace dgc::python {

namespace py = pybind11;

[[noreturn]] inline void refuse(const std::string& name, const std::string& is, const std::string& allowed) {
  throw py::value_error(name + " is " + is + "; allowed: " + allowed);
}

inline std::string describe(const py::handle& object) {
  if (!py::isinstance<py::array>(object)) return py::str(py::type::handle_of(object));
  const auto array = py::reinterpret_borrow<py::array>(object);
  return "an array of dtype " + std::string(py::str(array.dtype())) + " and shape " +
         std::string(py::str(object.attr("shape")));
}

inline bool is_native(const py::dtype& dtype, int number) {
  return dtype.num() == number && (dtype.byteorder() == '=' || dtype.byteorder() == '|');
}

constexpr int kFloat32 = py::detail::npy_api::NPY_FLOAT_;
constexpr int kUint32 = py::detail::npy_api::NPY_UINT32_;
constexpr int kUint16 = py::detail::npy_api::NPY_USHORT_;
constexpr int kUint8 = py::detail::npy_api::NPY_UBYTE_;
constexpr int kFloat16 = 23;  // NPY_HALF, which pybind11 does not list

enum class Access { read, write };

// A C-contiguous, native-endian array; its shape is for the caller to check.
inline py::array checked_array(const std::string& name, const py::object& object, Access access) {
  if (!py::isinstance<py::array>(object)) refuse(name, describe(object), "a NumPy array");
  py::array array = py::reinterpret_borrow<py::array>(object);
  if (!(array.flags() & py::array::c_style))
    refuse(name, describe(object) + ", not C-contiguous", "a C-contiguous array");
  if (access == Access::write && !array.writeable())
    refuse(name, describe(object) + ", read-only", "a writable array");
  return array;
}

inline void check_shape(const std::string& name, const py::array& array, size_t size) {
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

inline float* floats(const std::string& name, const py::object& object, size_t size, Access access) {
  return data_of<float>(name, object, kFloat32, "float32", size, access);
}

struct Scalars {
  void* data;
  Scalar type;
  size_t size;
};

inline Scalars scalars(const std::string& name, const py::object& object, Access access) {
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

inline Scalars scalars(const std::string& name, const py::object& object, size_t size, Access access) {
  const Scalars s = scalars(name, object, access);
  if (s.size != size) refuse(name, describe(object), "shape (" + std::to_string(size) + ",)");
  return s;
}

inline int checked_threads(int threads) {
  if (threads < 1) refuse("threads", std::to_string(threads), "1 or more");
  return threads;
}

inline double checked_sample_ratio(double ratio) {
  if (!(ratio > 0.0 && ratio <= 1.0)) refuse("sample_ratio", std::to_string(ratio), "above 0, at most 1");
  return ratio;
}

struct Payloads {
  const uint8_t* data;
  size_t count;
};

inline Payloads payloads_of(size_t nbytes, const py::object& object) {
  const py::array array = checked_array("payloads", object, Access::read);
  if (!is_native(array.dtype(), kUint8)) refuse("payloads", describe(object), "dtype uint8");
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

template <class T>
py::array_t<T> view(const std::vector<T>& values, const py::object& owner) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data(), owner);
}

void bind_coding(py::module_* m);
void bind_steps(py::module_* m);

}  // namespace dgc::python
