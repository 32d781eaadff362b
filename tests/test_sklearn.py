"""The estimator among scikit-learn's: its own checks, what selects and chains estimators, and every kind of data."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cuda_host
import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from fastvae import VAE, backends
from fastvae.callbacks import Callback
from fastvae.data import as_dataset
from fastvae.errors import DataError
from fastvae.kernels import Array, Engine

SMALL: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (4,), "batch_size": 10, "n_epochs": 2, "random_state": 0}
GAUSSIAN: dict[str, Any] = SMALL | {"likelihood": "gaussian", "mean": "identity"}
# NumPy's BLAS sums a row by itself in another order, which in float32 may be more than the 1e-7 that a check allows.
CHECKED = {name: GAUSSIAN | {"backend": name} for name in backends.NAMES}
CHECKED["reference"] |= {"precision": "fp64"}
COLUMNS = ["a", "b", "c", "d", "e"]


def make_rows(n_rows: int = 40, dtype: Any = np.float32) -> Array:
    """Values in [0, 1]."""
    return np.random.default_rng(0).random((n_rows, 5)).astype(dtype)


def make_vae(engine: Engine | None = None, **changes: Any) -> VAE:
    backend = {} if engine is None else {"backend": engine.NAME}
    return VAE(**SMALL | backend | changes)


# --- scikit-learn's checks -------------------------------------------------------------------------------------------


def check_if_available(estimator: VAE, check: Callable[[VAE], None]) -> None:
    reason = backends.unavailable(estimator.backend)
    if reason and estimator.backend not in os.environ.get("FASTVAE_REQUIRE", "").split(","):
        pytest.skip(reason)
    check(estimator)


@parametrize_with_checks([VAE(**settings) for name, settings in CHECKED.items() if name != "cuda"])
def test_checks(estimator: VAE, check: Callable[[VAE], None]) -> None:
    check_if_available(estimator, check)


@pytest.mark.gpu
@parametrize_with_checks([VAE(**CHECKED["cuda"])])
def test_checks_on_a_device(estimator: VAE, check: Callable[[VAE], None]) -> None:
    check_if_available(estimator, check)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_checks_of_data_in_the_unit_interval(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the checks shift their data to be positive for estimators that ask for it, scale them to [0, 1] too."""
    enforce = estimator_checks._enforce_estimator_tags_X

    def enforce_unit_interval(estimator: Any, X: Any, **options: Any) -> Any:
        X = enforce(estimator, X, **options)
        return X / max(X.max(), 1)

    monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_X", enforce_unit_interval)
    results = check_estimator(make_vae(likelihood=likelihood), on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}
    assert len(results) > 40


def test_no_check_is_left_out_for_want_of_the_array_api() -> None:
    """Whose support SciPy decides on when it is imported."""
    script = f"""
from sklearn.utils.estimator_checks import check_estimator
from fastvae import VAE, backends
for settings in {[*CHECKED.values()]!r}:
    if backends.unavailable(settings["backend"]) is None:
        print({{each["status"] for each in check_estimator(VAE(**settings), on_skip=None)}})
"""
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (set(done.stdout.splitlines()), done.returncode) == ({"{'passed'}"}, 0), done.stderr


@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names")  # as for scikit-learn's own estimators
@pytest.mark.parametrize(
    "name",
    [
        "check_dataframe_column_names_consistency",
        "check_get_feature_names_out_error",
        "check_set_output_transform",
        "check_set_output_transform_pandas",
        "check_set_output_transform_polars",
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
    ],
)
def test_checks_that_scikit_learn_makes_of_its_own(name: str) -> None:
    getattr(estimator_checks, name)("VAE", VAE(**GAUSSIAN))


# --- selection and chains --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_and_cross_validation(n_jobs: int) -> None:
    rows = 10 * make_rows()
    pipeline = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", make_vae())])
    grid = {"vae__latent_dim": [1, 3], "vae__hidden_dims": [(4,), (8, 4)]}

    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs, error_score="raise").fit(rows)
    scores = cross_val_score(pipeline, rows, cv=3, n_jobs=n_jobs, error_score="raise")

    best = search.best_estimator_
    assert best.transform(rows).shape == (40, search.best_params_["vae__latent_dim"])
    ref = clone(pipeline).set_params(**search.best_params_).fit(rows)
    np.testing.assert_array_equal(best.transform(rows), ref.transform(rows))
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    train, test = rows[14:], rows[:14]
    assert scores[0] == clone(pipeline).fit(train).score(test)


def test_the_workers_of_joblib_share_the_processors() -> None:
    counts = joblib.Parallel(n_jobs=2)(joblib.delayed(backends.default_threads)() for _ in range(2))
    assert counts == [max(1, joblib.cpu_count() // 2)] * 2


def test_clones_share_nothing() -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    before = model.params_.copy()

    twin = clone(model)
    assert not hasattr(twin, "params_")
    assert twin.get_params() == model.get_params()
    twin.set_params(random_state=9).fit(rows)
    np.testing.assert_array_equal(model.params_, before)


def test_pickles_hold_the_state_and_no_workspace(engine: Engine, tmp_path: Any) -> None:
    rows = make_rows()
    model = make_vae(engine, batch_size=20, callbacks=[Callback()]).fit(rows)
    ref = model.transform(rows), model.score_samples(rows)

    held = io.BytesIO()
    joblib.dump(model, tmp_path / "model")
    pickle.dump(model, held)

    state = 4 * (model.params_.size + model.state_.slots.size)
    assert held.tell() < state + 6000
    for twin in (pickle.loads(held.getvalue()), joblib.load(tmp_path / "model", mmap_mode="r")):
        np.testing.assert_array_equal(twin.transform(rows), ref[0])
        np.testing.assert_array_equal(twin.score_samples(rows), ref[1])
        np.testing.assert_array_equal(twin.fit(rows).params_, model.params_)


def test_eval_set_is_routed(engine: Engine) -> None:
    rows, held_out = 10 * make_rows(), 10 * make_rows(60)[40:]

    with sklearn.config_context(enable_metadata_routing=True):
        vae = make_vae(engine).set_fit_request(eval_set=True)
        pipeline = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", vae)], transform_input=["eval_set"])
        pipeline.fit(rows, eval_set=held_out)
        with pytest.raises(TypeError, match=r"unexpected argument.*eval_set"):
            make_pipeline(MinMaxScaler(), make_vae().set_fit_request(eval_set=False)).fit(rows, eval_set=held_out)

    scaled, model = pipeline[0].transform(held_out), pipeline[-1]
    assert len(model.history_["elbo_test"]) == 2
    assert model.history_["elbo_test"][-1] == model.evaluate(scaled, n_draws=1).summary()["elbo"]
    plain = clone(pipeline).set_params(transform_input=None).fit(rows, vae__eval_set=scaled)
    assert plain[-1].history_["elbo_test"] == model.history_["elbo_test"]


def test_set_output_frames_what_transform_gives_and_nothing_else() -> None:
    frame = pd.DataFrame(make_rows(), columns=COLUMNS, index=range(100, 140))
    model = make_vae().fit(frame)
    codes, means = model.transform(frame), model.reconstruct(frame)

    framed = model.set_output(transform="pandas").transform(frame)
    assert framed.columns.tolist() == model.get_feature_names_out().tolist() == ["vae0", "vae1"]
    assert framed.index.tolist() == frame.index.tolist()
    np.testing.assert_array_equal(framed, codes)
    np.testing.assert_array_equal(model.reconstruct(frame), means)
    np.testing.assert_array_equal(model.inverse_transform(framed), means)
    assert model.traverse(frame[:1], n_steps=3).shape == (2, 3, 5)

    pl = pytest.importorskip("polars")
    framed = model.set_output(transform="polars").transform(pl.from_pandas(frame))
    assert isinstance(framed, pl.DataFrame)
    assert framed.columns == ["vae0", "vae1"]
    np.testing.assert_array_equal(framed.to_numpy(), codes)


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_a_row_does_not_depend_on_its_neighbours(compiled: str, storage: str) -> None:
    draw = np.random.default_rng(1)
    rows = draw.random((300, 64), np.float32) * (draw.random((300, 64)) < np.linspace(0, 1, 300)[:, np.newaxis])
    data = scipy.sparse.csr_array(rows) if storage == "sparse" else rows
    model = make_vae(backend=compiled, hidden_dims=(33,)).fit(data)

    def results(data: Any) -> tuple[Array, ...]:
        return model.transform(data), model.score_samples(data), model.log_likelihood(data, n_draws=8).log_likelihood

    ref = results(data)
    for index in ([7], [299, 0], [*range(40, 300, 3)], draw.permutation(300)):
        for comp, whole in zip(results(data[index]), ref, strict=True):
            np.testing.assert_array_equal(comp, whole[index])


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda rows: rows.astype(">f4"),
        lambda rows: rows.tolist(),
        lambda rows: rows.astype(object),
        lambda rows: pd.DataFrame(rows, columns=COLUMNS),
        lambda rows: pytest.importorskip("polars").DataFrame(rows, schema=COLUMNS),
        lambda rows: pytest.importorskip("torch").from_numpy(rows),
    ],
    ids=["fortran", "big-endian", "list", "object", "pandas", "polars", "torch"],
)
def test_every_kind_of_dense_data_trains_alike(convert: Any) -> None:
    data = convert(make_rows())
    rows = make_rows().astype(as_dataset(data).rows.dtype)  # for draws depend on the bytes of a row
    ref = make_vae().fit(rows, eval_set=rows)

    model = make_vae().fit(data, eval_set=data)

    np.testing.assert_array_equal(model.params_, ref.params_)
    np.testing.assert_array_equal(model.transform(data), ref.transform(rows))
    np.testing.assert_array_equal(model.score_samples(data), ref.score_samples(rows))
    weights = [each.log_likelihood(held, n_draws=8).log_likelihood for each, held in ((model, data), (ref, rows))]
    np.testing.assert_array_equal(*weights)
    np.testing.assert_array_equal(model.denoise(data, clean=data).rows, ref.denoise(rows).rows)
    holes = rows < 0.2
    options: dict[str, Any] = {"n_iterations": 4, "n_burn_in": 1}
    np.testing.assert_array_equal(model.impute(data, holes, **options).rows, ref.impute(rows, holes, **options).rows)
    np.testing.assert_array_equal(make_vae().partial_fit(data).params_, make_vae().partial_fit(rows).params_)
    for each, held in ((model, data), (ref, rows)):
        each.set_params(n_epochs=3).resume(held).partial_fit(held)
    np.testing.assert_array_equal(model.params_, ref.params_)


@pytest.mark.parametrize("convert", [scipy.sparse.csr_matrix, scipy.sparse.csc_array, scipy.sparse.coo_array])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_every_kind_of_sparse_data_trains_alike(engine: Engine, convert: Any, dtype: Any) -> None:
    rows = (make_rows() < 0.3).astype(dtype)
    ref = make_vae(engine).fit(scipy.sparse.csr_array(rows.astype(np.float32)))

    model = make_vae(engine).fit(convert(rows))

    np.testing.assert_array_equal(model.params_, ref.params_)
    np.testing.assert_allclose(model.transform(convert(rows)), model.transform(rows), atol=1e-6)


def test_columns_names_are_kept_and_checked_as_scikit_learn_does(tmp_path: Any) -> None:
    frame = pd.DataFrame(make_rows(), columns=COLUMNS)
    model = make_vae().fit(frame, eval_set=frame)
    model.save(tmp_path / "m.safetensors")

    for fitted in (model, clone(model).partial_fit(frame), VAE.load(tmp_path / "m.safetensors")):
        assert fitted.feature_names_in_.tolist() == COLUMNS
        for use in (fitted.transform, fitted.score, fitted.reconstruct, fitted.log_likelihood, fitted.partial_fit):
            with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
                use(frame[COLUMNS[::-1]])
            with pytest.raises(ValueError, match="unseen at fit time:\n- z"):
                use(frame.rename(columns={"a": "z"}))
        with pytest.warns(UserWarning, match="X does not have valid feature names, but VAE was fitted with"):
            fitted.transform(frame.to_numpy())
        fitted.transform(as_dataset(frame))  # whose columns have no names
        fitted.impute(frame, frame < 0.1, n_iterations=2, n_burn_in=1)
    with pytest.raises(ValueError, match="feature names should match"):
        make_vae().fit(frame, eval_set=frame[COLUMNS[::-1]])
    with pytest.raises(ValueError, match="feature names should match"):
        model.resume(frame[COLUMNS[::-1]])

    model.fit(frame.to_numpy())
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(UserWarning, match="X has feature names, but VAE was fitted without"):
        model.transform(frame)


def test_a_fit_that_fails_keeps_the_names_of_the_columns() -> None:
    frame = pd.DataFrame(make_rows(), columns=COLUMNS)
    model = make_vae().fit(frame)
    for bad, error in ((frame.rename(columns={"a": 1}), TypeError), (frame.rename(columns=str.upper) * 9, DataError)):
        with pytest.raises(error):
            model.fit(bad)
        assert model.feature_names_in_.tolist() == COLUMNS
        model.transform(frame)


def test_integers_are_seen_with_the_factor_of_the_training_data() -> None:
    levels = np.round(255 * make_rows()).astype(np.uint8)
    model = make_vae().fit(levels)
    ref = model.transform(levels)

    for data in (levels.astype(np.int64), pd.DataFrame(levels), levels.astype(np.int16).tolist()):
        np.testing.assert_array_equal(model.transform(data), ref)
    np.testing.assert_allclose(model.transform(levels / 255), ref, rtol=1e-5)

    with pytest.raises(DataError, match=r"outside \[0, 1\].*scale=1/255 or x\.astype\(np\.uint8\)"):
        make_vae().fit(levels.astype(np.int64))
    wide = make_vae(scale=1 / 255).fit(levels.astype(np.int64))
    np.testing.assert_array_equal(wide.params_, model.params_)
    np.testing.assert_array_equal(wide.transform(levels // 255), model.transform(levels // 255))  # not for binary data


def test_codes_of_any_kind_are_decoded() -> None:
    model = make_vae().fit(make_rows())
    codes = model.transform(make_rows())
    ref = model.inverse_transform(codes)

    for held in (codes.astype(np.float64), np.asfortranarray(codes), pd.DataFrame(codes), codes.tolist()):
        np.testing.assert_array_equal(model.inverse_transform(held), ref)
    assert model.inverse_transform([[2, 300]]).shape == (1, 5)
    with pytest.raises(DataError, match="Z: data must be 2-D"):
        model.inverse_transform(codes[0])


# --- arrays on a device ----------------------------------------------------------------------------------------------


class Placed:
    """A NumPy array that says it lies on a device, with as much of CuPy's ndarray as datasets ask for."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.dtype, self.shape, self.flags, self.ndim = array.dtype, array.shape, array.flags, array.ndim

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        described = self._array.__array_interface__
        return {name: described[name] for name in ("shape", "typestr", "data", "strides")} | {"version": 3}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getitem__(self, index: Any) -> Placed:
        return Placed(self._array[index])

    def __float__(self) -> float:
        return float(self._array)

    def __len__(self) -> int:
        return len(self._array)

    def view(self, dtype: Any) -> Placed:
        return Placed(self._array.view(dtype))

    def copy(self) -> Placed:
        return Placed(self._array.copy())

    def get(self) -> Array:
        return self._array.copy()


class ByDlpack:
    """An array on a device that offers DLPack alone, as torch's with a gradient do."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("read on the host")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize("place", [Placed, ByDlpack])
def test_a_backend_on_the_cpu_refuses_arrays_on_a_device(engine: Engine, place: Any) -> None:
    if engine.NAME == "cuda":
        pytest.skip("it takes them")
    rows = make_rows()
    model = make_vae(engine).fit(rows)
    line = rf"on a device, where the backend '{engine.NAME}' does not read them: give x\.get\(\) \(CuPy\) or x\.cpu\(\)"
    for use in (make_vae(engine).fit, make_vae(engine).partial_fit, model.transform, model.score, model.partial_fit):
        with pytest.raises(DataError, match=line) as caught:
            use(place(rows))
        assert "\n" not in str(caught.value)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The CUDA engine on the CPU in the place of the backend cuda, and as much of CuPy as datasets ask for."""
    if not cuda_host.compiler():
        pytest.skip("no C++ compiler for the CUDA kernels' twin")
    cupy: Any = ModuleType("cupy")
    cupy.asarray = lambda x: Placed(x._array)
    cupy.from_dlpack = lambda x: Placed(x.array)
    cupy.ascontiguousarray = lambda x, dtype: Placed(np.ascontiguousarray(x._array, dtype))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(backends._MODULES, "cuda", "cuda_host")
    return {"backend": "cuda"}


def test_checks_of_the_cuda_kernels_on_the_cpu(on_device: dict[str, Any]) -> None:
    results = check_estimator(VAE(**GAUSSIAN, **on_device), on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_the_backend_cuda_takes_arrays_on_the_device_as_they_lie(on_device: dict[str, Any], dtype: Any) -> None:
    rows = (make_rows() * (255 if dtype == np.uint8 else 1)).astype(dtype)
    ref = make_vae(**on_device).fit(rows, eval_set=rows)
    data = as_dataset(Placed(rows))
    assert data.is_on_device
    assert np.shares_memory(data.rows._array, rows)

    for held in (Placed(rows), ByDlpack(rows), data):
        model = make_vae(**on_device).fit(held, eval_set=held)
        np.testing.assert_array_equal(model.params_, ref.params_)
        assert (model.scale_, model.fingerprint_) == (ref.scale_, ref.fingerprint_)
        np.testing.assert_array_equal(model.transform(held), ref.transform(rows))
        np.testing.assert_array_equal(model.score_samples(held), ref.score_samples(rows))
        assert model.evaluate(held).summary() == ref.evaluate(rows).summary()
        model.set_params(n_epochs=3).resume(held)
        model.impute(held, rows > 0.5, n_iterations=2, n_burn_in=1)
        model.denoise(held, clean=held)
        with pytest.raises(DataError, match="backend 'reference' does not read them"):
            make_vae(backend="reference").fit(held)
    part = data.select([3, 1])
    np.testing.assert_array_equal(part.dense(), rows.view(data.rows.dtype)[[3, 1]])
    assert data.select(slice(None, None, 2)).rows.flags.c_contiguous
    np.testing.assert_array_equal(ref.inverse_transform(Placed(np.zeros((1, 2)))), ref.inverse_transform([[0, 0]]))


def test_arrays_on_the_device_are_checked_and_converted_there(on_device: dict[str, Any]) -> None:
    rows = make_rows()
    ref = make_vae(**on_device).fit(rows)
    for held in (Placed(np.asfortranarray(rows)), Placed(rows.astype(">f4"))):
        assert as_dataset(held).is_on_device
        np.testing.assert_array_equal(make_vae(**on_device).fit(held).params_, ref.params_)
    levels = as_dataset(Placed((9 * rows).astype(np.int64)))
    assert (levels.rows.dtype, levels.is_integer) == (np.float64, True)
    rows[30, 2] = np.nan
    with pytest.raises(DataError, match="row 30, column 2: nan is not a finite"):
        ref.transform(Placed(rows))
    with pytest.raises(DataError, match="2-D"):
        ref.transform(Placed(rows[0]))
    with pytest.raises(DataError, match="complex64"):
        ref.transform(Placed(rows.astype(np.complex64)))
