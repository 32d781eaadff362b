// Checks and conversions of Python arguments. Each failure names the argument, what it must be and what it is.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <cmath>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "plan.hpp"

namespace fastvae {

namespace py = pybind11;
using Shape = std::vector<py::ssize_t>;

// `Unavailable` reaches Python as BackendError.
inline void translate_unavailable(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const Unavailable& unavailable) {
    py::object type = py::module_::import("fastvae.errors").attr("BackendError");
    py::set_error(type, unavailable.what());
  }
}

inline bool finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing();
#else
  return _Py_IsFinalizing();
#endif
}

// Releases the GIL. A daemon thread that comes back after the interpreter has begun to end waits here for the process
// to go, where taking the GIL would unwind it through C++ and abort.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    while (finalizing()) std::this_thread::sleep_for(std::chrono::hours(1));
    PyEval_RestoreThread(state_);
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

// Whether this is the thread that runs signal handlers.
inline bool is_main_thread() {
  py::module_ threading = py::module_::import("threading");
  return threading.attr("current_thread")().is(threading.attr("main_thread")());
}

inline std::string text(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}

inline py::array as_array(const std::string& name, const py::object& value) {
  if (!py::isinstance<py::array>(value))
    throw py::type_error(name + " must be an ndarray, got " +
                         std::string(py::str(py::type::of(value).attr("__name__"))));
  return py::reinterpret_borrow<py::array>(value);
}

inline Shape shape_of(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

template <typename T>
py::array checked(const std::string& name, const py::object& value, const Shape& shape) {
  py::array a = as_array(name, value);
  if (!a.dtype().equal(py::dtype::of<T>()))
    throw py::type_error(name + " must be an ndarray of " + std::string(py::str(py::dtype::of<T>())) + ", got " +
                         std::string(py::str(a.dtype())));
  if (shape_of(a) != shape)
    throw py::value_error(name + " must have shape " + text(shape) + ", got " + text(shape_of(a)));
  if (!(a.flags() & py::array::c_style)) throw py::value_error(name + " must be C-contiguous");
  return a;
}

template <typename T>
const T* input(const std::string& name, const py::object& value, const Shape& shape) {
  return static_cast<const T*>(checked<T>(name, value, shape).data());
}

template <typename T>
T* output(const std::string& name, const py::object& value, const Shape& shape) {
  py::array a = checked<T>(name, value, shape);
  if (!a.writeable()) throw py::value_error(name + " must be writeable");
  return static_cast<T*>(a.mutable_data());
}

inline float* optional_output(const std::string& name, const py::object& value, const Shape& shape) {
  return value.is_none() ? nullptr : output<float>(name, value, shape);
}

// `hidden` is a tuple of the caller's making, so that it keeps its arrays alive while the GIL is released.
template <typename P, typename F>
std::vector<P> hidden_arrays(const py::tuple& hidden, py::ssize_t rows, const std::vector<int>& widths, F check) {
  if (hidden.size() != widths.size())
    throw py::value_error("hidden must hold " + std::to_string(widths.size()) + " arrays, got " +
                          std::to_string(hidden.size()));
  std::vector<P> pointers;
  for (size_t i = 0; i < widths.size(); ++i)
    pointers.push_back(check("hidden[" + std::to_string(i) + "]", py::object(hidden[i]), Shape{rows, widths[i]}));
  return pointers;
}
inline std::vector<float*> outputs(const py::tuple& hidden, py::ssize_t rows, const std::vector<int>& widths) {
  return hidden_arrays<float*>(hidden, rows, widths, output<float>);
}
inline std::vector<const float*> inputs(const py::tuple& hidden, py::ssize_t rows, const std::vector<int>& widths) {
  return hidden_arrays<const float*>(hidden, rows, widths, input<float>);
}

// Length of the first axis, which must be 1 to `limit` and a multiple of `multiple`.
inline py::ssize_t rows_of(const std::string& name, const py::object& value, int ndim, py::ssize_t limit,
                           py::ssize_t multiple) {
  py::array a = as_array(name, value);
  if (a.ndim() != ndim || a.shape(0) < 1 || a.shape(0) > limit || a.shape(0) % multiple)
    throw py::value_error(name + " must have " + std::to_string(ndim) + " axes and 1 to " + std::to_string(limit) +
                          " rows, a multiple of " + std::to_string(multiple) + "; got shape " + text(shape_of(a)));
  return a.shape(0);
}

inline std::pair<py::ssize_t, py::ssize_t> shape2(const std::string& name, const py::object& value) {
  py::array a = as_array(name, value);
  if (a.ndim() != 2) throw py::value_error(name + " must have 2 axes, got shape " + text(shape_of(a)));
  return {a.shape(0), a.shape(1)};
}

inline float read_scale(double scale) {
  if (!(scale > 0) || !std::isfinite(scale)) throw py::value_error("scale must be positive and finite");
  return static_cast<float>(scale);
}

// Position of `value` among `names`, which are in the order of the enumeration.
template <typename E>
E read_name(const std::string& what, const py::object& value, std::initializer_list<std::pair<const char*, E>> names) {
  std::string known;
  for (auto& [name, e] : names) {
    if (py::isinstance<py::str>(value) && value.cast<std::string>() == name) return e;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw py::value_error(what + " must be one of " + known + ", got " + py::repr(value).cast<std::string>());
}

inline Binarize read_binarize(const py::object& value) {
  return read_name<Binarize>("binarize", value,
                             {{"none", Binarize::none},
                              {"dynamic", Binarize::dynamic},
                              {"fixed", Binarize::fixed},
                              {"shared", Binarize::shared}});
}

inline Estimator read_estimator(const py::object& value) {
  return read_name<Estimator>("estimator", value,
                              {{"sgvb-b", Estimator::sgvb_b},
                               {"sgvb-a", Estimator::sgvb_a},
                               {"iwae", Estimator::iwae},
                               {"wake-sleep", Estimator::wake_sleep}});
}

inline Spec read_spec(const py::object& network) {
  Spec s;
  s.data_dim = network.attr("data_dim").cast<int>();
  s.latent_dim = network.attr("latent_dim").cast<int>();
  for (py::handle width : network.attr("encoder_hidden")) s.encoder_hidden.push_back(width.cast<int>());
  for (py::handle width : network.attr("decoder_hidden")) s.decoder_hidden.push_back(width.cast<int>());
  s.activation = read_name<Activation>("activation", py::object(network.attr("activation")),
                                       {{"tanh", Activation::tanh},
                                        {"relu", Activation::relu},
                                        {"softplus", Activation::softplus},
                                        {"sigmoid", Activation::sigmoid}});
  s.likelihood = read_name<Likelihood>("likelihood", py::object(network.attr("likelihood")),
                                       {{"bernoulli", Likelihood::bernoulli}, {"gaussian", Likelihood::gaussian}});
  s.sigmoid_mean = network.attr("mean").cast<std::string>() == "sigmoid";
  s.logvar_floor = network.attr("logvar_floor").cast<float>();
  return s;
}

inline OptimizerSpec read_optimizer(const py::object& optimizer) {
  OptimizerSpec o;
  o.rule = read_name<Rule>("optimizer", py::object(optimizer.attr("name")),
                           {{"adagrad", Rule::adagrad}, {"adam", Rule::adam}, {"sgd", Rule::sgd}});
  o.learning_rate = optimizer.attr("learning_rate").cast<double>();
  o.momentum = optimizer.attr("momentum").cast<double>();
  o.beta1 = optimizer.attr("beta1").cast<double>();
  o.beta2 = optimizer.attr("beta2").cast<double>();
  o.epsilon = optimizer.attr("epsilon").cast<double>();
  o.hold_steps = optimizer.attr("hold_steps").cast<int64_t>();
  return o;
}

// A dataset, and references to the arrays it points into: attributes of a CSR matrix may be replaced during the call.
struct HeldRows : Rows {
  py::array held[3];
};

template <typename T>
const void* csr_part(py::array& held, const py::object& data, const char* name, py::ssize_t length) {
  held = checked<T>("data." + std::string(name), data.attr(name), {length});
  return held.data();
}

// Row pointers that never decrease and stay within the stored values.
template <typename I>
void check_indptr(const Rows& r, py::ssize_t stored) {
  const I* indptr = static_cast<const I*>(r.indptr);
  bool good = indptr[0] >= 0 && indptr[r.n] <= stored;
  for (long i = 0; i < r.n; ++i) good = good && indptr[i] <= indptr[i + 1];
  if (!good) throw py::value_error("data.indptr must rise from 0 to the number of stored values");
}

// Columns of the rows about to be read: within the row, rising. The rest of the dataset is not looked at, so that the
// check costs little against the step that reads the same rows.
template <typename I>
void check_columns(const Rows& r, const int64_t* index, py::ssize_t count) {
  const I *indptr = static_cast<const I*>(r.indptr), *indices = static_cast<const I*>(r.indices);
  for (py::ssize_t m = 0; m < count; ++m) {
    int64_t last = -1;
    for (I i = indptr[index[m]]; i < indptr[index[m] + 1]; ++i) {
      if (indices[i] < 0 || indices[i] >= r.data_dim)
        throw py::value_error("data.indices must lie in [0, " + std::to_string(r.data_dim) + "), got " +
                              std::to_string(indices[i]));
      if (indices[i] <= last)
        throw py::value_error(
            "data.indices must rise within each row: call sum_duplicates() and sort_indices() on data");
      last = indices[i];
    }
  }
}

// Row numbers within the dataset, and, for CSR, the columns of those rows.
inline void check_indices(const std::string& name, const Rows& r, const int64_t* index, py::ssize_t count) {
  for (py::ssize_t i = 0; i < count; ++i)
    if (index[i] < 0 || index[i] >= r.n)
      throw py::value_error(name + " must lie in [0, " + std::to_string(r.n) + "), got " + std::to_string(index[i]));
  if (r.indptr) r.wide_indices ? check_columns<int64_t>(r, index, count) : check_columns<int32_t>(r, index, count);
}

inline HeldRows read_rows(const py::object& data, int data_dim) {
  HeldRows r = {};
  r.data_dim = data_dim;
  bool csr = py::hasattr(data, "indptr");
  py::array values = as_array("data", csr ? py::object(data.attr("data")) : data);
  Shape shape;
  if (csr)
    for (py::handle length : data.attr("shape")) shape.push_back(length.cast<py::ssize_t>());
  else
    shape = shape_of(values);
  if (shape.size() != 2 || shape[1] != data_dim || shape[0] < 1)
    throw py::value_error("data must have shape (N, " + std::to_string(data_dim) + "), got " + text(shape));
  r.n = static_cast<long>(shape[0]);
  if (values.dtype().equal(py::dtype::of<uint8_t>()))
    r.dtype = Dtype::u8;
  else if (values.dtype().equal(py::dtype::of<float>()))
    r.dtype = Dtype::f32;
  else if (values.dtype().equal(py::dtype::of<double>()))
    r.dtype = Dtype::f64;
  else
    throw py::type_error("data must be uint8, float32 or float64, got " + std::string(py::str(values.dtype())));
  if (!(values.flags() & py::array::c_style)) throw py::value_error("data must be C-contiguous");
  r.held[0] = values;
  r.values = values.data();
  if (!csr) return r;
  py::ssize_t stored = values.size();
  r.wide_indices = as_array("data.indices", data.attr("indices")).dtype().equal(py::dtype::of<int64_t>());
  if (r.wide_indices) {
    r.indptr = csr_part<int64_t>(r.held[1], data, "indptr", r.n + 1);
    r.indices = csr_part<int64_t>(r.held[2], data, "indices", stored);
    check_indptr<int64_t>(r, stored);
  } else {
    r.indptr = csr_part<int32_t>(r.held[1], data, "indptr", r.n + 1);
    r.indices = csr_part<int32_t>(r.held[2], data, "indices", stored);
    check_indptr<int32_t>(r, stored);
  }
  return r;
}

}  // namespace fastvae
