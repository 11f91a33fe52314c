// The Python module: every argument is checked, then plain pointers go to the core with the GIL released.
#include "arguments.h"
#include "kernels.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of horovod_dgc: selection, coding and the streaming passes, on NumPy arrays.";
  dgc::python::bind_coding(&m);
  dgc::python::bind_steps(&m);
  m.def("instruction_set", [] { return dgc::kernels().name; });
}
