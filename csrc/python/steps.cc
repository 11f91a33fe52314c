// Codecs, and the steps that are made with them.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "arguments.h"
#include "coordinates.h"
#include "decode.h"
#include "kinds.h"
#include "norms.h"
#include "proposal.h"
#include "quantile.h"

namespace dgc::python {
namespace {

// A codec with the words that it was made from.
struct Described {
  explicit Described(const std::string& text) : description(text), codec(make_codec(text)) {}

  // The largest coordinates in this layout.
  explicit Described(const Layout& layout)
      : description(py::repr(py::cast(layout))), codec(largest(layout)) {}

  std::string description;
  std::shared_ptr<const Codec> codec;
};

// What varies from step to step and is none of the arrays. `opened` and `squares` may be None.
struct Circumstances {
  Circumstances(const Codec& codec, const Randomness& randomness, const py::object& opened_,
                const py::object& memory_, const py::object& squares, int threads, Access access) {
    context.randomness = randomness;
    context.threads = checked_threads(threads);
    const size_t count = codec.opening().returned();
    if (count > 0) {
      if (opened_.is_none()) refuse("opened", "None", "what came back from the opening round");
      const float* data = floats("opened", opened_, count, Access::read);
      opened.assign(data, data + count);
      context.opened = opened.data();
    }
    require_memory(codec, memory_, access);
    if (!squares.is_none()) context.squares = floats("squares", squares, codec.n(), Access::read);
  }

  // For the opening round itself, which has nothing opened.
  Circumstances(const Codec& codec, const Randomness& randomness, const py::object& memory_, int threads) {
    context.randomness = randomness;
    context.threads = checked_threads(threads);
    require_memory(codec, memory_, Access::read);
  }

  Context context;
  float* memory = nullptr;
  std::vector<float> opened;

 private:
  void require_memory(const Codec& codec, const py::object& object, Access access) {
    if (codec.memory() == 0) {
      if (!object.is_none()) refuse("memory", describe(object), "None: this codec keeps none");
      return;
    }
    memory = floats("memory", object, codec.memory(), access);
    context.memory = memory;
  }
};

// A proposal with what committing it needs.
struct Made {
  std::shared_ptr<const Codec> codec;
  Randomness randomness;
  Proposal proposal;
};

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
  if (!residual.is_none()) a.residual = floats("residual", residual, n, state);
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

Made propose(const Described& described, const Update& update, const py::object& grad,
             const py::object& residual, const py::object& velocity, const py::object& weights,
             const Randomness& randomness, const py::object& opened, const py::object& memory,
             const py::object& squares, double sample_ratio, int threads) {
  const Codec& codec = *described.codec;
  const Arrays a = arrays_of(codec.n(), update, grad, residual, velocity, weights, Access::read, false);
  const Circumstances c(codec, randomness, opened, memory, squares, threads, Access::read);
  Options options;
  options.sample_ratio = checked_sample_ratio(sample_ratio);
  options.threads = threads;
  py::gil_scoped_release release;
  return {described.codec, randomness, dgc::propose(codec, update, a, options, c.context)};
}

py::tuple open(const Described& described, const Update& update, const py::object& grad,
               const py::object& residual, const py::object& velocity, const py::object& weights,
               const Randomness& randomness, const py::object& memory, int threads) {
  const Codec& codec = *described.codec;
  const Arrays a = arrays_of(codec.n(), update, grad, residual, velocity, weights, Access::read, false);
  const Circumstances c(codec, randomness, memory, threads);
  Options options;
  options.threads = threads;
  py::array_t<float> out(static_cast<py::ssize_t>(codec.opening().count));
  float* o = out.mutable_data();
  bool finite = false;
  {
    py::gil_scoped_release release;
    finite = dgc::open(codec, update, a, options, c.context, o);
  }
  return py::make_tuple(finite, std::move(out));
}

void commit(const Made& made, const Update& update, const py::object& grad, const py::object& residual,
            const py::object& velocity, const py::object& weights, const py::object& memory,
            const py::object& squares, bool mask_velocity, bool zero_grad, int threads) {
  if (!made.proposal.finite) refuse("proposal", "not finite", "a finite one; skip the step");
  const Codec& codec = *made.codec;
  const Arrays a = arrays_of(codec.n(), update, grad, residual, velocity, weights, Access::write, zero_grad);
  Options options;
  options.threads = checked_threads(threads);
  options.mask_velocity = mask_velocity;
  options.zero_grad = zero_grad;
  Context context;
  context.randomness = made.randomness;
  if (!squares.is_none()) context.squares = floats("squares", squares, codec.n(), Access::read);
  float* kept = codec.memory() ? floats("memory", memory, codec.memory(), Access::write) : nullptr;
  context.memory = kept;
  py::gil_scoped_release release;
  dgc::commit(codec, made.proposal, update, a, options, context, kept);
}

Made encode(const Described& described, const Update& update, const py::object& grad,
            const py::object& residual, const py::object& velocity, const py::object& weights,
            const Randomness& randomness, const py::object& opened, const py::object& memory,
            const py::object& squares, bool mask_velocity, bool zero_grad, double sample_ratio, int threads) {
  const Codec& codec = *described.codec;
  const Arrays a = arrays_of(codec.n(), update, grad, residual, velocity, weights, Access::write, zero_grad);
  const Circumstances c(codec, randomness, opened, memory, squares, threads, Access::write);
  Options options;
  options.sample_ratio = checked_sample_ratio(sample_ratio);
  options.threads = threads;
  options.mask_velocity = mask_velocity;
  options.zero_grad = zero_grad;
  py::gil_scoped_release release;
  return {described.codec, randomness, dgc::encode(codec, update, a, options, c.context, c.memory)};
}

void add(const Described& described, const py::object& payloads, const py::object& out, double scale,
         int threads, const Randomness& randomness, const py::object& opened) {
  const Codec& codec = *described.codec;
  const Payloads p = payloads_of(codec.nbytes(), payloads);
  float* o = floats("out", out, codec.n(), Access::write);
  Context context;
  context.randomness = randomness;
  context.threads = checked_threads(threads);
  if (codec.opening().agreed() > 0)
    context.opened = floats("opened", opened, codec.opening().agreed(), Access::read);
  py::gil_scoped_release release;
  validate(codec, p.data, p.count, threads);
  codec.add(p.data, p.count, o, static_cast<float>(scale), context);
}

void vote(const Described& described, const py::object& payloads, const py::object& out, double scale,
          int threads) {
  const Codec& codec = *described.codec;
  if (!codec.votes()) refuse("codec", described.description, "one whose payloads are votes");
  const Payloads p = payloads_of(codec.nbytes(), payloads);
  float* o = floats("out", out, codec.n(), Access::write);
  Context context;
  context.threads = checked_threads(threads);
  py::gil_scoped_release release;
  validate(codec, p.data, p.count, threads);
  codec.vote(p.data, p.count, o, static_cast<float>(scale), context);
}

void absorb(const Described& described, const py::object& payloads, const py::object& memory) {
  const Codec& codec = *described.codec;
  const Payloads p = payloads_of(codec.nbytes(), payloads);
  float* kept = floats("memory", memory, codec.memory(), Access::write);
  py::gil_scoped_release release;
  codec.absorb(p.data, p.count, kept);
}

// (payload, begin, returned): each array on its own memory.
py::tuple reduce(const Described& described, size_t part, const py::object& received,
                 const Randomness& randomness) {
  const Codec& codec = *described.codec;
  if (part >= codec.parts())
    refuse("part", std::to_string(part),
           "below the codec's number of parts, " + std::to_string(codec.parts()));
  const size_t nbytes = codec.nbytes() / codec.parts();
  const size_t begin = codec.begin(part);
  const Payloads p = payloads_of(nbytes, received);
  py::array_t<uint8_t> payload(static_cast<py::ssize_t>(nbytes));
  py::array_t<float> returned(static_cast<py::ssize_t>(codec.begin(part + 1) - begin));
  uint8_t* const out = payload.mutable_data();
  float* const r = returned.mutable_data();
  Context context;
  context.randomness = randomness;
  {
    py::gil_scoped_release release;
    codec.reduce(part, p.data, p.count, context, out, r);
  }
  return py::make_tuple(std::move(payload), begin, std::move(returned));
}

bool poisoned(const Described& described, const py::object& payloads) {
  const Payloads p = payloads_of(described.codec->nbytes(), payloads);
  return any_poisoned(*described.codec, p.data, p.count);
}

float opened_by_quantile(const std::vector<const Described*>& codecs,
                         const std::vector<py::object>& openings) {
  if (codecs.size() != openings.size())
    refuse("openings", std::to_string(openings.size()),
           "as many as codecs, " + std::to_string(codecs.size()));
  std::vector<const Codec*> bare;
  std::vector<const float*> data;
  for (size_t i = 0; i < codecs.size(); ++i) {
    const Opening opening = codecs[i]->codec->opening();
    if (opening.reduction != Reduction::quantile)
      refuse("codecs", codecs[i]->description, "codecs whose opening round is a quantile");
    bare.push_back(codecs[i]->codec.get());
    data.push_back(floats("openings", openings[i], opening.count, Access::read));
  }
  return dgc::opened_by_quantile(bare, data);
}

py::array indices_of(const py::object& self) {
  const Proposal& p = self.cast<const Made&>().proposal;
  if (!p.dense) return view(p.indices, self);
  py::array_t<uint32_t> all(static_cast<py::ssize_t>(p.n));
  uint32_t* i = all.mutable_data();
  for (size_t j = 0; j < p.n; ++j) i[j] = static_cast<uint32_t>(j);
  return all;
}

}  // namespace

void bind_steps(py::module_* m) {
  py::class_<Update>(*m, "Update")
      .def(py::init<double, double, double, double, bool>(), py::arg("unscale") = 1.0,
           py::arg("weight_decay") = 0.0, py::arg("momentum") = 0.0, py::arg("dampening") = 0.0,
           py::arg("nesterov") = false)
      .def_readonly("unscale", &Update::unscale)
      .def_readonly("weight_decay", &Update::weight_decay)
      .def_readonly("momentum", &Update::momentum)
      .def_readonly("dampening", &Update::dampening)
      .def_readonly("nesterov", &Update::nesterov);

  py::class_<Described>(*m, "Codec")
      .def(py::init<const std::string&>(), py::arg("description"))
      .def(py::init<const Layout&>(), py::arg("layout"))
      .def_property_readonly("n", [](const Described& d) { return d.codec->n(); })
      .def_property_readonly("nbytes", [](const Described& d) { return d.codec->nbytes(); })
      .def_property_readonly("sent", [](const Described& d) { return d.codec->sent(); })
      .def_property_readonly("memory", [](const Described& d) { return d.codec->memory(); })
      .def_property_readonly("votes", [](const Described& d) { return d.codec->votes(); })
      .def_property_readonly("wants_squares", [](const Described& d) { return d.codec->wants_squares(); })
      .def_property_readonly("summable",
                             [](const Described& d) -> py::object {
                               const std::string name = d.codec->summable();
                               return name.empty() ? py::object(py::none()) : py::object(py::str(name));
                             })
      .def_property_readonly("opening",
                             [](const Described& d) {
                               const Opening opening = d.codec->opening();
                               const char* const names[] = {"sum", "maximum", "quantile"};
                               return py::make_tuple(opening.count,
                                                     names[static_cast<int>(opening.reduction)]);
                             })
      .def_property_readonly("layout",
                             [](const Described& d) -> py::object {
                               const Layout* layout = d.codec->fused();
                               return layout ? py::cast(*layout) : py::object(py::none());
                             })
      .def_property_readonly("description", [](const Described& d) { return d.description; })
      .def(
          "validate",
          [](const Described& d, const py::object& payloads) {
            const Payloads p = payloads_of(d.codec->nbytes(), payloads);
            py::gil_scoped_release release;
            validate(*d.codec, p.data, p.count, 1);
          },
          py::arg("payloads"))
      .def("decode_add", &add, py::arg("payloads"), py::arg("out"), py::arg("scale") = 1.0,
           py::arg("threads") = 1, py::kw_only(), py::arg("randomness") = Randomness(),
           py::arg("opened") = py::none())
      .def("decode_votes", &vote, py::arg("payloads"), py::arg("out"), py::arg("scale") = 1.0,
           py::arg("threads") = 1)
      .def_property_readonly("parts", [](const Described& d) { return d.codec->parts(); })
      .def("reduce", &reduce, py::arg("part"), py::arg("received"), py::arg("randomness") = Randomness())
      .def("absorb", &absorb, py::arg("payloads"), py::arg("memory"))
      .def("poison",
           [](const Described& d) {
             const std::vector<uint8_t> payload = d.codec->poison();
             return py::array_t<uint8_t>(static_cast<py::ssize_t>(payload.size()), payload.data());
           })
      .def("poisoned", &poisoned, py::arg("payloads"))
      .def("__repr__", [](const Described& d) { return "Codec('" + d.description + "')"; });
  py::implicitly_convertible<Layout, Described>();

  py::class_<Made>(*m, "Proposal")
      .def_property_readonly("finite", [](const Made& made) { return made.proposal.finite; })
      .def_property_readonly("overflow", [](const Made& made) { return made.proposal.overflow; })
      .def_property_readonly("nonzero",
                             [](const Made& made) {
                               const Floats sent = made.proposal.values();
                               return std::count_if(sent.begin(), sent.end(), [](float x) { return x != 0.0f; });
                             })
      .def_property_readonly(
          "payload",
          [](const py::object& self) { return view(self.cast<const Made&>().proposal.payload, self); })
      .def_property_readonly("indices", &indices_of)
      .def_property_readonly("sent",
                             [](const py::object& self) -> py::array {
                               const Proposal& p = self.cast<const Made&>().proposal;
                               if (!p.coding) return view(p.sent, self);
                               py::array_t<float> all(static_cast<py::ssize_t>(p.n));
                               p.masked(all.mutable_data());
                               return std::move(all);
                             })
      .def("commit", &commit, py::arg("update"), py::arg("grad"), py::arg("residual"),
           py::arg("velocity") = py::none(), py::arg("weights") = py::none(), py::kw_only(),
           py::arg("memory") = py::none(), py::arg("squares") = py::none(), py::arg("mask_velocity") = true,
           py::arg("zero_grad") = false, py::arg("threads") = 1)
      .def(
          "masked",
          [](const Made& made, const py::object& out) {
            float* o = floats("out", out, made.proposal.n, Access::write);
            py::gil_scoped_release release;
            made.proposal.masked(o);
          },
          py::arg("out"));

  const auto none = py::none();
  m->def("open", &open, py::arg("codec"), py::arg("update"), py::arg("grad"), py::arg("residual") = none,
         py::arg("velocity") = none, py::arg("weights") = none, py::kw_only(),
         py::arg("randomness") = Randomness(), py::arg("memory") = none, py::arg("threads") = 1);
  m->def("propose", &propose, py::arg("codec"), py::arg("update"), py::arg("grad"),
         py::arg("residual") = none, py::arg("velocity") = none, py::arg("weights") = none, py::kw_only(),
         py::arg("randomness") = Randomness(), py::arg("opened") = none, py::arg("memory") = none,
         py::arg("squares") = none, py::arg("sample_ratio") = 0.01, py::arg("threads") = 1);
  m->def("encode", &encode, py::arg("codec"), py::arg("update"), py::arg("grad"), py::arg("residual") = none,
         py::arg("velocity") = none, py::arg("weights") = none, py::kw_only(),
         py::arg("randomness") = Randomness(), py::arg("opened") = none, py::arg("memory") = none,
         py::arg("squares") = none, py::arg("mask_velocity") = true, py::arg("zero_grad") = false,
         py::arg("sample_ratio") = 0.01, py::arg("threads") = 1);
  m->def("opened_by_quantile", &opened_by_quantile, py::arg("codecs"), py::arg("openings"));
  m->def(
      "sum_squares",
      [](const py::object& x, int threads) {
        const Scalars s = scalars("x", x, Access::read);
        checked_threads(threads);
        py::gil_scoped_release release;
        return dgc::sum_squares(s.data, s.type, s.size, threads);
      },
      py::arg("x"), py::arg("threads") = 1);
  m->def(
      "sum_poisoned",
      [](const py::object& total) {
        const Scalars s = scalars("sum", total, Access::read);
        py::gil_scoped_release release;
        return any_poisoned(s.data, s.type, s.size);
      },
      py::arg("sum"));
  m->def(
      "vote",
      [](const py::object& sums) {
        const py::array array = checked_array("sums", sums, Access::write);
        const size_t n = static_cast<size_t>(array.size());
        float* s = floats("sums", sums, n, Access::write);
        py::gil_scoped_release release;
        dgc::vote(s, n);
      },
      py::arg("sums"));
  m->def(
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

}  // namespace dgc::python
