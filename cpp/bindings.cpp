// The contract of kernels/__init__.py for Python: every argument is checked here, then the GIL is released.
#include <pybind11/pybind11.h>

#include <string>

#include "arguments.hpp"
#include "order.hpp"
#include "plan.hpp"

namespace py = pybind11;
using namespace pybind11::literals;

namespace fastvae {
namespace {

// `Plan` with the checks; `self.network` and the sizes are kept for Python.
class BoundPlan {
 public:
  BoundPlan(py::object network, Spec spec, int rows, int draws, bool bf16, int n_threads)
      : network(network), plan_(std::move(spec), rows, draws, bf16, n_threads) {}

  py::object network;
  int rows() const { return plan_.rows; }
  int draws() const { return plan_.draws; }
  const char* precision() const { return plan_.bf16 ? "bf16" : "fp32"; }
  int n_threads() const { return plan_.threads; }
  py::dict phase_seconds() const {
    py::dict seconds;
    for (const auto& phase : plan_.phases())
      if (phase.seconds > 0) seconds[py::str(phase.name)] = phase.seconds;
    return seconds;
  }

  void gather(py::object data, py::object index, double scale, py::object binarize, uint64_t seed, uint64_t step,
              py::object x) {
    Gather g = {};
    py::ssize_t m = rows_of("index", index, 1, plan_.rows, 1);
    g.index = input<int64_t>("index", index, {m});
    g.x = output<float>("x", x, {m, d()});
    g.x_ld = d();
    HeldRows rows = read_rows(data, plan_.spec.data_dim);
    g.data = rows;
    g.scale = read_scale(scale);
    g.binarize = read_binarize(binarize);
    g.seed = seed;
    g.step = step;
    check_indices("index", g.data, g.index, m);
    ReleasedGil released;
    plan_.gather(g, static_cast<int>(m));
  }

  void encoder_forward(py::object params, py::object x, py::sequence hidden, py::object mu, py::object logvar) {
    py::ssize_t m = rows_of("x", x, 2, plan_.rows, 1);
    auto p = input<float>("params", params, {size()});
    auto px = input<float>("x", x, {m, d()});
    py::tuple held(hidden);
    auto h = outputs(held, m, plan_.spec.encoder_hidden);
    auto pmu = output<float>("mu", mu, {m, j()});
    auto plogvar = output<float>("logvar", logvar, {m, j()});
    ReleasedGil released;
    plan_.encoder_forward(p, px, static_cast<int>(m), h, pmu, plogvar);
  }

  void latent_forward(py::object mu, py::object logvar, py::object eps, py::object z, py::object kl) {
    Latent g = read_latent(mu, logvar, eps);
    g.z = output<float>("z", z, {g.draws, g.rows, j()});
    g.z_ld = j();
    g.kl = output<float>("kl", kl, {g.rows});
    ReleasedGil released;
    plan_.latent_forward(g);
  }

  void latent_forward_sampled(py::object mu, py::object logvar, py::object eps, py::object z, py::object kl) {
    Latent g = read_latent(mu, logvar, eps);
    g.z = output<float>("z", z, {g.draws, g.rows, j()});
    g.z_ld = j();
    g.kl = output<float>("kl", kl, {g.draws, g.rows});
    ReleasedGil released;
    plan_.latent_forward_sampled(g);
  }

  void decoder_forward(py::object params, py::object z, py::sequence hidden, py::object out) {
    py::ssize_t r = rows_of("z", z, 2, all_rows(), 1);
    auto p = input<float>("params", params, {size()});
    auto pz = input<float>("z", z, {r, j()});
    py::tuple held(hidden);
    auto h = outputs(held, r, plan_.spec.decoder_hidden);
    auto pout = output<float>("out", out, {r, out_dim()});
    ReleasedGil released;
    plan_.decoder_forward(p, pz, static_cast<int>(r), h, pout);
  }

  void likelihood(py::object x, py::object out, double scale, py::object log_px, py::object dout) {
    py::ssize_t m = rows_of("x", x, 2, plan_.rows, 1);
    py::ssize_t r = rows_of("out", out, 2, all_rows(), m);
    auto px = input<float>("x", x, {m, d()});
    auto pout = input<float>("out", out, {r, out_dim()});
    auto plog_px = output<float>("log_px", log_px, {r});
    auto pdout = optional_output("dout", dout, {r, out_dim()});
    ReleasedGil released;
    plan_.likelihood(px, static_cast<int>(m), pout, static_cast<int>(r), static_cast<float>(scale), plog_px, pdout);
  }

  void likelihood_mean(py::object out, py::object mean) {
    py::ssize_t r = rows_of("out", out, 2, all_rows(), 1);
    auto pout = input<float>("out", out, {r, out_dim()});
    auto pmean = output<float>("mean", mean, {r, d()});
    ReleasedGil released;
    plan_.likelihood_mean(pout, static_cast<int>(r), pmean);
  }

  void likelihood_sample(py::object out, uint64_t seed, uint64_t step, py::object x) {
    py::ssize_t r = rows_of("out", out, 2, all_rows(), 1);
    auto pout = input<float>("out", out, {r, out_dim()});
    auto px = output<float>("x", x, {r, d()});
    ReleasedGil released;
    plan_.likelihood_sample(pout, static_cast<int>(r), seed, step, px);
  }

  void decoder_backward(py::object params, py::object z, py::sequence hidden, py::object dout, py::object dz,
                        py::object grad) {
    py::ssize_t r = rows_of("z", z, 2, all_rows(), 1);
    auto p = input<float>("params", params, {size()});
    auto pz = input<float>("z", z, {r, j()});
    py::tuple held(hidden);
    auto h = inputs(held, r, plan_.spec.decoder_hidden);
    auto pdout = input<float>("dout", dout, {r, out_dim()});
    auto pdz = optional_output("dz", dz, {r, j()});
    auto pgrad = optional_output("grad", grad, {size()});
    ReleasedGil released;
    plan_.decoder_backward(p, pz, static_cast<int>(r), h, pdout, pdz, pgrad);
  }

  void latent_backward(py::object mu, py::object logvar, py::object eps, py::object dz, double kl_scale, py::object dmu,
                       py::object dlogvar) {
    Latent g = read_latent_backward(mu, logvar, eps, dz, dmu, dlogvar);
    g.kl_scale = static_cast<float>(kl_scale);
    ReleasedGil released;
    plan_.latent_backward(g);
  }

  void latent_backward_sampled(py::object mu, py::object logvar, py::object eps, py::object dz, py::object weight,
                               py::object dmu, py::object dlogvar) {
    Latent g = read_latent_backward(mu, logvar, eps, dz, dmu, dlogvar);
    g.weight = input<float>("weight", weight, {g.draws, g.rows});
    ReleasedGil released;
    plan_.latent_backward_sampled(g);
  }

  void encoder_backward(py::object params, py::object x, py::sequence hidden, py::object dmu, py::object dlogvar,
                        py::object grad) {
    py::ssize_t m = rows_of("x", x, 2, plan_.rows, 1);
    auto p = input<float>("params", params, {size()});
    auto px = input<float>("x", x, {m, d()});
    py::tuple held(hidden);
    auto h = inputs(held, m, plan_.spec.encoder_hidden);
    auto pdmu = input<float>("dmu", dmu, {m, j()});
    auto pdlogvar = input<float>("dlogvar", dlogvar, {m, j()});
    auto pgrad = output<float>("grad", grad, {size()});
    ReleasedGil released;
    plan_.encoder_backward(p, px, static_cast<int>(m), h, pdmu, pdlogvar, pgrad);
  }

  void log_joint(py::object params, py::object x, py::object z, py::object log_pxz, py::object dz) {
    py::ssize_t m = rows_of("x", x, 2, plan_.rows, 1);
    py::ssize_t r = rows_of("z", z, 2, all_rows(), m);
    auto p = input<float>("params", params, {size()});
    auto px = input<float>("x", x, {m, d()});
    auto pz = input<float>("z", z, {r, j()});
    auto plog_pxz = output<float>("log_pxz", log_pxz, {r});
    auto pdz = optional_output("dz", dz, {r, j()});
    ReleasedGil released;
    plan_.log_joint(p, px, static_cast<int>(m), pz, static_cast<int>(r), plog_pxz, pdz);
  }

  void update(py::object optimizer, py::object params, py::object grad, py::object state, int64_t step, double decay) {
    OptimizerSpec o = read_optimizer(optimizer);
    auto p = output<float>("params", params, {size()});
    auto g = input<float>("grad", grad, {size()});
    auto s = output<float>("state", state, {o.slots(), size()});
    ReleasedGil released;
    plan_.update(o.at(step, decay), p, g, s);
  }

  void train_steps(py::object params, py::object state, py::object optimizer, py::object data, py::object order,
                   double scale, py::object binarize, uint64_t seed, int64_t step, py::object estimator,
                   double kl_weight, int64_t kl_warmup, double decay, py::object stats, py::object done) {
    TrainArguments t = {};
    t.done = output<int64_t>("done", done, {1});
    *t.done = 0;
    t.optimizer = read_optimizer(optimizer);
    t.params = output<float>("params", params, {size()});
    t.state = output<float>("state", state, {t.optimizer.slots(), size()});
    HeldRows rows = read_rows(data, plan_.spec.data_dim);
    t.data = rows;
    auto [steps, m] = shape2("order", order);
    if (m < 1 || m > plan_.rows)
      throw py::value_error("order must have 1 to " + std::to_string(plan_.rows) + " columns, got " +
                            std::to_string(m));
    t.order = input<int64_t>("order", order, {steps, m});
    t.steps = steps;
    t.rows = static_cast<int>(m);
    t.scale = read_scale(scale);
    t.binarize = read_binarize(binarize);
    t.seed = seed;
    t.step = step;
    t.estimator = read_estimator(estimator);
    t.kl_weight = kl_weight;
    t.kl_warmup = kl_warmup;
    t.decay = decay;
    t.stats = output<double>("stats", stats, {steps, 2});
    check_indices("order", t.data, t.order, steps * m);
    if (step < 0) throw py::value_error("step must not be negative, got " + std::to_string(step));
    if (kl_warmup < 0) throw py::value_error("kl_warmup must not be negative, got " + std::to_string(kl_warmup));
    for (auto [name, value] : {std::pair{"kl_weight", kl_weight}, {"decay", decay}})
      if (!std::isfinite(value))
        throw py::value_error(std::string(name) + " must be finite, got " + std::to_string(value));
    if (!t.weighs_kl() && (kl_weight != 1 || kl_warmup != 0))
      throw py::value_error("kl_weight and kl_warmup must be 1 and 0 with estimator '" + estimator.cast<std::string>() +
                            "', which has no KL divergence to weigh, got " + std::to_string(kl_weight) + " and " +
                            std::to_string(kl_warmup));
    bool main = is_main_thread();
    {
      ReleasedGil released;
      plan_.train_steps(t, [main] {
        if (!main) return false;
        py::gil_scoped_acquire acquire;
        return PyErr_CheckSignals() != 0;
      });
    }
    if (PyErr_Occurred()) throw py::error_already_set();
  }

 private:
  py::ssize_t d() const { return plan_.spec.data_dim; }
  py::ssize_t j() const { return plan_.spec.latent_dim; }
  py::ssize_t out_dim() const { return static_cast<py::ssize_t>(plan_.spec.heads()) * plan_.spec.data_dim; }
  py::ssize_t size() const { return static_cast<py::ssize_t>(plan_.parameter_count()); }
  py::ssize_t all_rows() const { return static_cast<py::ssize_t>(plan_.rows) * plan_.draws; }

  Latent read_latent(const py::object& mu, const py::object& logvar, const py::object& eps) const {
    Latent g = {};
    g.rows = static_cast<int>(rows_of("mu", mu, 2, plan_.rows, 1));
    g.draws = static_cast<int>(rows_of("eps", eps, 3, plan_.draws, 1));
    g.latent_dim = plan_.spec.latent_dim;
    g.mu = input<float>("mu", mu, {g.rows, j()});
    g.logvar = input<float>("logvar", logvar, {g.rows, j()});
    g.head_ld = j();
    g.eps = input<float>("eps", eps, {g.draws, g.rows, j()});
    return g;
  }

  Latent read_latent_backward(const py::object& mu, const py::object& logvar, const py::object& eps,
                              const py::object& dz, const py::object& dmu, const py::object& dlogvar) const {
    Latent g = read_latent(mu, logvar, eps);
    g.dz = input<float>("dz", dz, {g.draws, g.rows, j()});
    g.dz_ld = g.dhead_ld = j();
    g.dmu = output<float>("dmu", dmu, {g.rows, j()});
    g.dlogvar = output<float>("dlogvar", dlogvar, {g.rows, j()});
    return g;
  }

  Plan plan_;
};

std::unique_ptr<BoundPlan> plan(py::object network, int rows, int draws, const std::string& precision, int n_threads) {
  if (precision != "fp32" && precision != "bf16")
    throw Unavailable("backend 'cpp' has the precisions fp32 and bf16, not '" + precision + "'");
  for (auto [name, value] : {std::pair{"rows", rows}, {"draws", draws}, {"n_threads", n_threads}})
    if (value < 1) throw py::value_error(std::string(name) + " must be at least 1, got " + std::to_string(value));
  if (n_threads > 1024) throw py::value_error("n_threads must be at most 1024, got " + std::to_string(n_threads));
  Spec spec = read_spec(network);
  double widest = std::max(spec.heads() * double(spec.data_dim), 2.0 * spec.latent_dim);
  if (double(rows) * draws * widest >= 2147483648.0)
    throw py::value_error("rows * draws * widest layer must stay below 2^31: use fewer rows or draws at a time");
  return std::make_unique<BoundPlan>(network, std::move(spec), rows, draws, precision == "bf16", n_threads);
}

void philox(py::object counter, py::object key, py::object out) {
  auto [n, four] = shape2("counter", counter);
  auto c = input<uint32_t>("counter", counter, {n, 4});
  auto k = input<uint32_t>("key", key, {2});
  auto o = output<uint32_t>("out", out, {n, 4});
  const Kernels& kernels = select_kernels();
  for (py::ssize_t i = 0; i < n; ++i) kernels.philox(k, c + 4 * i, o + 4 * i);
}

void normal(uint64_t seed, uint64_t step, uint32_t stream, py::object out) {
  auto array = py::cast<py::array>(out);
  std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
  float* p = output<float>("out", out, shape);
  if (array.size() > (py::ssize_t{1} << 34)) throw py::value_error("out must hold at most 2^34 numbers");
  const Kernels& kernels = select_kernels();
  long size = static_cast<long>(array.size());
  ReleasedGil released;
  kernels.normal(seed, step, stream, p, 0, size);
}

// Length of an array of one axis.
py::ssize_t length(const std::string& name, const py::object& value) {
  py::array a = as_array(name, value);
  if (a.ndim() != 1) throw py::value_error(name + " must have 1 axis, got shape " + text(shape_of(a)));
  return a.shape(0);
}

void epoch_order(uint64_t seed, uint64_t epoch, py::object out) {
  py::ssize_t n = length("out", out);
  auto order = output<int64_t>("out", out, {n});
  if (n > (py::ssize_t{1} << 33)) throw py::value_error("out must hold at most 2^33 rows");
  const Kernels& kernels = select_kernels();
  ReleasedGil released;
  std::unique_ptr<uint64_t[]> keys(new uint64_t[n]);
  kernels.order_keys(seed, epoch, keys.get(), static_cast<long>(n));
  stable_order(keys.get(), n, order);
}

// The sort alone, of keys that are given: tests ask for equal ones, which random keys are not.
void bound_stable_order(py::object keys, py::object out) {
  py::ssize_t n = length("keys", keys);
  auto k = input<uint64_t>("keys", keys, {n});
  auto order = output<int64_t>("out", out, {n});
  ReleasedGil released;
  stable_order(k, n, order);
}

py::list isa_levels() {
  Levels levels = available_levels();
  py::list names;
  for (int i = 0; i < levels.count; ++i) names.append(levels.table[i]->level);
  return names;
}

// Of the level in use; where the environment names one that is not there, isa_level and plan say so.
py::tuple precisions() {
  try {
    if (select_kernels().to_pairs) return py::make_tuple("fp32", "bf16");
  } catch (const Unavailable&) {
  }
  return py::make_tuple("fp32");
}

std::string isa_level() { return select_kernels().level; }

}  // namespace
}  // namespace fastvae

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  using namespace fastvae;
  m.doc() = "The C++ engine of fastvae, behind the contract of fastvae.kernels.";
  py::register_local_exception_translator(&translate_unavailable);
  m.attr("NAME") = "cpp";
  m.attr("PRECISIONS") = precisions();
  m.def("plan", &plan, "network"_a, py::kw_only(), "rows"_a, "draws"_a, "precision"_a, "n_threads"_a);
  m.def("philox", &philox, py::kw_only(), "counter"_a, "key"_a, "out"_a);
  m.def("normal", &normal, py::kw_only(), "seed"_a, "step"_a, "stream"_a, "out"_a);
  m.def("epoch_order", &epoch_order, py::kw_only(), "seed"_a, "epoch"_a, "out"_a);
  m.def("stable_order", &bound_stable_order, py::kw_only(), "keys"_a, "out"_a, "Stable argsort of random 64-bit keys.");
  m.def("isa_level", &isa_level, "Instruction-set level in use: the widest, or the one FASTVAE_SIMD_LEVEL names.");
  m.def("isa_levels", &isa_levels, "Instruction-set levels this machine can run, narrowest first.");

  py::class_<BoundPlan>(m, "Plan")
      .def_readonly("network", &BoundPlan::network)
      .def_property_readonly("rows", &BoundPlan::rows)
      .def_property_readonly("draws", &BoundPlan::draws)
      .def_property_readonly("n_threads", &BoundPlan::n_threads)
      .def_property_readonly(
          "phase_seconds", &BoundPlan::phase_seconds,
          "Seconds of each phase that the training steps so far went through, on the calling thread.")
      .def_property_readonly("precision", &BoundPlan::precision)
      .def("gather", &BoundPlan::gather, py::kw_only(), "data"_a, "index"_a, "scale"_a, "binarize"_a, "seed"_a,
           "step"_a, "x"_a)
      .def("encoder_forward", &BoundPlan::encoder_forward, py::kw_only(), "params"_a, "x"_a, "hidden"_a, "mu"_a,
           "logvar"_a)
      .def("latent_forward", &BoundPlan::latent_forward, py::kw_only(), "mu"_a, "logvar"_a, "eps"_a, "z"_a, "kl"_a)
      .def("latent_forward_sampled", &BoundPlan::latent_forward_sampled, py::kw_only(), "mu"_a, "logvar"_a, "eps"_a,
           "z"_a, "kl"_a)
      .def("decoder_forward", &BoundPlan::decoder_forward, py::kw_only(), "params"_a, "z"_a, "hidden"_a, "out"_a)
      .def("likelihood", &BoundPlan::likelihood, py::kw_only(), "x"_a, "out"_a, "scale"_a, "log_px"_a, "dout"_a)
      .def("likelihood_mean", &BoundPlan::likelihood_mean, py::kw_only(), "out"_a, "mean"_a)
      .def("likelihood_sample", &BoundPlan::likelihood_sample, py::kw_only(), "out"_a, "seed"_a, "step"_a, "x"_a)
      .def("decoder_backward", &BoundPlan::decoder_backward, py::kw_only(), "params"_a, "z"_a, "hidden"_a, "dout"_a,
           "dz"_a, "grad"_a)
      .def("latent_backward", &BoundPlan::latent_backward, py::kw_only(), "mu"_a, "logvar"_a, "eps"_a, "dz"_a,
           "kl_scale"_a, "dmu"_a, "dlogvar"_a)
      .def("latent_backward_sampled", &BoundPlan::latent_backward_sampled, py::kw_only(), "mu"_a, "logvar"_a, "eps"_a,
           "dz"_a, "weight"_a, "dmu"_a, "dlogvar"_a)
      .def("encoder_backward", &BoundPlan::encoder_backward, py::kw_only(), "params"_a, "x"_a, "hidden"_a, "dmu"_a,
           "dlogvar"_a, "grad"_a)
      .def("log_joint", &BoundPlan::log_joint, py::kw_only(), "params"_a, "x"_a, "z"_a, "log_pxz"_a, "dz"_a)
      .def("update", &BoundPlan::update, py::kw_only(), "optimizer"_a, "params"_a, "grad"_a, "state"_a, "step"_a,
           "decay"_a)
      .def("train_steps", &BoundPlan::train_steps, py::kw_only(), "params"_a, "state"_a, "optimizer"_a, "data"_a,
           "order"_a, "scale"_a, "binarize"_a, "seed"_a, "step"_a, "estimator"_a, "kl_weight"_a, "kl_warmup"_a,
           "decay"_a, "stats"_a, "done"_a);
}
