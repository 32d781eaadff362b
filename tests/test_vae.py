"""The estimator: its parameters, its methods, and scikit-learn's conventions."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from fastvae import VAE, Optimizer, backends, settings
from fastvae.callbacks import Callback, EarlyStopping, Rollback
from fastvae.checkpoint import Checkpoint, read, write
from fastvae.data import load
from fastvae.errors import BackendError, CheckpointError, DataError, DivergenceError
from fastvae.kernels import Array, Engine
from fastvae.network import Network
from fastvae.training import fitting

D = 12
SMALL: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (9,), "batch_size": 10, "n_epochs": 3, "random_state": 5}


def make_rows(n_rows: int = 60) -> Array:
    """Grey levels that two latent dimensions explain in part."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n_rows, 2))
    return np.round(255 / (1 + np.exp(-3 * z @ rng.normal(size=(2, D))))).astype(np.uint8)


def make_vae(engine: Engine | None = None, **changes: Any) -> VAE:
    backend = {} if engine is None else {"backend": engine.NAME}
    return VAE(**SMALL | backend | changes)


def test_fit_raises_the_bound_of_digits(engine: Engine) -> None:
    split = load("digits")
    model = VAE(10, hidden_dims=(64,), backend=engine.NAME, n_epochs=15, learning_rate=3e-3, random_state=0)

    model.fit(split.train, eval_set=split.test)

    history = model.history_
    assert history["epoch"] == list(range(1, 16))
    assert history["elbo_test"][-1] > history["elbo_test"][0] + 8
    assert history["elbo"][-1] > -32
    assert split.test is not None
    assert model.evaluate(split.test, n_draws=1).summary()["elbo"] == history["elbo_test"][-1]
    kl = model.evaluate(split.test, n_draws=1).kl_per_dimension
    np.testing.assert_allclose(history["kl_per_dimension"][-1], kl, rtol=1e-3)
    assert {len(column) for column in history.values()} == {15}


def test_methods_have_shapes_and_dtypes(engine: Engine) -> None:
    rows = make_rows()
    model = make_vae(engine).fit(rows)

    assert model.transform(rows).shape == (60, 2)
    assert model.inverse_transform(np.zeros((3, 2))).shape == (3, D)
    assert model.sample(7).shape == (7, D)
    assert model.reconstruct(rows).shape == (60, D)
    assert model.score_samples(rows).shape == (60,)
    assert model.score(rows) == model.score_samples(rows).mean()
    assert model.n_features_in_ == D
    assert model.n_steps_ == 18
    assert model.network_ == Network(D, 2, (9,), (9,))
    assert model.parameters_["encoder.0.W"].shape == (D, 9)
    assert np.shares_memory(model.parameters_["decoder.0.W"], model.params_)
    for values in (model.transform(rows), model.sample(2), model.params_):
        assert values.dtype == np.float32


def test_the_encoders_layers_are_mirrored_unless_told() -> None:
    rows = make_rows()

    mirrored = make_vae(hidden_dims=(8, 5), n_epochs=1).fit(rows).network_
    told = make_vae(hidden_dims=[8, 5], decoder_hidden_dims=(), n_epochs=1).fit(rows).network_

    assert (mirrored.encoder_hidden, mirrored.decoder_hidden) == ((8, 5), (5, 8))
    assert (told.encoder_hidden, told.decoder_hidden) == ((8, 5), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adagrad", "prior": True, "n_draws": 3, "kl_weight": 0.5, "kl_warmup": 7},
        {"optimizer": Optimizer("adagrad", 0.05, hold_steps=4)},
        {"optimizer": "sgd", "learning_rate": 1e-3, "init": 0.1, "activation": "softplus"},
        {"binarize": "dynamic", "activation": "relu"},
        {"binarize": "fixed", "hidden_dims": ()},
        {"likelihood": "gaussian", "mean": "identity", "logvar_floor": -3.0},
        {"likelihood": "gaussian", "latent_dim": np.int64(1), "batch_size": np.int32(60)},
    ],
)
def test_every_configuration_is_repeatable(engine: Engine, changes: dict[str, Any]) -> None:
    rows = make_rows()

    first, again = (make_vae(engine, **changes).fit(rows) for _ in range(2))
    other = make_vae(engine, **changes | {"random_state": 6}).fit(rows)

    np.testing.assert_array_equal(first.params_, again.params_)
    assert (first.params_ != other.params_).any()
    assert np.isfinite(first.score(rows))


def test_double_precision_of_the_reference_agrees_with_single(tmp_path: Path) -> None:
    rows = make_rows()
    single = make_vae(backend="reference").fit(rows)

    double = make_vae(backend="reference", precision="fp64").fit(rows)

    assert double.params_.dtype == double.transform(rows).dtype == np.float64
    np.testing.assert_allclose(single.params_, double.params_, atol=1e-5)
    assert single.score(rows) == pytest.approx(double.score(rows), rel=1e-5)
    double.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(VAE.load(tmp_path / "m.safetensors").params_, double.params_)


def test_fit_works_outside_the_main_thread(engine: Engine) -> None:
    rows = make_rows()
    ref = make_vae(engine).fit(rows)

    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(lambda _: make_vae(engine).fit(rows), range(2)))

    for model in models:
        np.testing.assert_array_equal(model.params_, ref.params_)


def test_fewer_rows_than_a_minibatch_are_one(engine: Engine, tmp_path: Path) -> None:
    rows = make_rows()
    ref = make_vae(engine, batch_size=60).fit(rows)

    model = make_vae(engine, batch_size=2**20).fit(rows)

    np.testing.assert_array_equal(model.params_, ref.params_)
    assert (model.n_steps_, model.history_["epoch"]) == (3, [1, 2, 3])
    model.save(tmp_path / "m.safetensors")
    VAE.load(tmp_path / "m.safetensors").set_params(n_epochs=4).resume(rows)  # which counts epochs by the same steps


def test_a_fresh_seed_is_kept_so_that_the_run_can_be_repeated() -> None:
    rows = make_rows()
    first, second = (make_vae(random_state=None).fit(rows) for _ in range(2))

    again = make_vae(random_state=first.seed_).fit(rows)

    assert first.seed_ != second.seed_
    np.testing.assert_array_equal(again.params_, first.params_)
    assert make_vae(random_state=np.random.RandomState(3)).fit(rows).seed_ == (
        make_vae(random_state=np.random.RandomState(3)).fit(rows).seed_
    )


@pytest.mark.parametrize(
    "convert",
    [
        lambda rows: rows,
        lambda rows: (rows / 255).astype(np.float32),
        lambda rows: rows / 255,
        lambda rows: scipy.sparse.csr_array(rows),
        lambda rows: scipy.sparse.csr_matrix((rows / 255).astype(np.float32)),
    ],
    ids=["uint8", "float32", "float64", "csr-uint8", "csr-float32"],
)
def test_data_are_trained_on_as_they_are_stored(engine: Engine, convert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = convert(make_rows() // 64 * 64)
    seen = []
    keep = fitting._algorithm
    monkeypatch.setattr(fitting, "_algorithm", lambda model, data: (seen.append(data.rows), keep(model, data))[1])
    ref = make_vae(engine).fit(make_rows() // 64 * 64)

    model = make_vae(engine).fit(rows)

    assert seen[-1] is rows
    np.testing.assert_allclose(model.params_, ref.params_, atol=1e-4)
    np.testing.assert_allclose(model.transform(rows), ref.transform(make_rows() // 64 * 64), atol=1e-3)


def test_integer_data_keep_the_factor_of_the_training_data() -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    dark = rows * 0 + 1

    assert model.scale_ == 1 / 255
    ref = model.transform(dark.astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(model.transform(dark), ref, rtol=1e-5)
    assert make_vae(scale=0.001).fit(rows).scale_ == 0.001


def test_a_factor_given_for_floats_is_that_of_integers_too() -> None:
    levels = make_rows() // 16
    model = make_vae(scale=1 / 16).fit(levels / 1.0)
    np.testing.assert_array_equal(model.transform(levels), model.transform(levels / 1.0))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"latent_dim": 0}, "latent_dim must be an integer from 1"),
        ({"latent_dim": 2.0}, "latent_dim must be an integer"),
        ({"hidden_dims": 500}, r"hidden_dims must be a sequence of integers such as \(500,\)"),
        ({"hidden_dims": (5, -1)}, r"hidden_dims\[1\] must be an integer"),
        ({"decoder_hidden_dims": "500"}, "decoder_hidden_dims must be a sequence"),
        ({"activation": "gelu"}, "activation must be one of tanh"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"mean": "exp"}, "mean must be one of"),
        ({"logvar_floor": np.nan}, "logvar_floor must lie"),
        ({"binarize": "shared"}, "binarize must be one of none, dynamic, fixed"),
        ({"binarize": "fixed", "likelihood": "gaussian"}, "needs likelihood='bernoulli'"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of"),
        ({"optimizer": Optimizer(), "learning_rate": 0.1}, "learning_rate must be None"),
        ({"learning_rate": -1}, "learning_rate must lie"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"n_epochs": 0}, "n_epochs must be an integer"),
        ({"n_draws": -3}, "n_draws must be an integer"),
        ({"kl_weight": -0.1}, "kl_weight must be a finite number"),
        ({"kl_weight": np.inf}, "kl_weight must be a finite number"),
        ({"kl_warmup": 1.5}, "kl_warmup must be an integer"),
        ({"prior": "yes"}, "prior must be True or False"),
        ({"init": 0.0}, "init must be 'fan_in' or a positive"),
        ({"scale": -1.0}, "scale must be a positive finite number"),
        ({"scale": 0}, "scale must be a positive finite number"),
        ({"scale": "big"}, "scale must be a number, got 'big'"),
        ({"logvar_floor": "a"}, "logvar_floor must be a number, got 'a'"),
        ({"logvar_floor": None}, "logvar_floor must be a number, got None"),
        ({"optimizer": ["adam"]}, r"optimizer must be one of adagrad, adam, sgd, got \['adam'\]"),
        ({"activation": ["tanh"]}, "activation must be one of"),
        ({"binarize": ["none"]}, "binarize must be one of"),
        ({"init": np.array([1, 2.0])}, "init must be 'fan_in' or a positive standard deviation"),
        ({"callbacks": 3}, "callbacks must be a list of Callback objects, got 3"),
        ({"callbacks": [print]}, "callbacks must be a list of Callback objects"),
        ({"n_threads": 0}, "n_threads must be an integer"),
        ({"n_threads": 1025}, "n_threads must be an integer from 1 to 1024"),
        ({"random_state": -1}, "random_state must be an integer in"),
        ({"random_state": 0.5}, "random_state must be an integer in"),
    ],
)
def test_bad_parameters_are_refused_in_fit(changes: dict[str, Any], match: str) -> None:
    model = make_vae(**changes)
    with pytest.raises(ValueError, match=match) as info:
        model.fit(make_rows())
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("changes", [{"backend": "abacus"}, {"backend": ["abacus"]}, {"precision": "fp12"}])
def test_backends_and_precisions_that_are_not_there_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match=r"abacus|fp12"):
        make_vae(**changes).fit(make_rows())


def test_a_model_beyond_the_memory_is_refused_before_it_takes_any() -> None:
    with pytest.raises(MemoryError, match="choose smaller hidden_dims"):
        make_vae(hidden_dims=(2**24, 2**24)).fit(make_rows())


@pytest.mark.parametrize(
    ("changes", "n_values"),
    [
        ({"hidden_dims": (500, 500)}, 10),
        ({"latent_dim": 5000}, 0),
        ({"hidden_dims": (500, 500), "callbacks": [Rollback(), EarlyStopping(restore_best=True)]}, 18),
    ],
)
def test_memory_counts_copies_and_the_draws_of_evaluation(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], n_values: int
) -> None:
    """Adam: parameters, gradient, two slots, the engine's copies of the three, a checkpoint's; or 4096 draws of z.

    Rollback keeps the three and early stopping parameters, each twice while the new copy is made.
    """
    model = make_vae(**changes)
    network, optimizer = settings.network(model, D), settings.optimizer(model)
    needed = n_values * 4 * network.layout.size or 4096 * 5000 * 4
    for available, fits in ((needed, False), (20 * needed, True)):
        monkeypatch.setattr(os, "sysconf", lambda name, n=available: 1 if name == "SC_PAGE_SIZE" else n)
        if fits:
            settings.check_memory(model, network, optimizer, n_rows=1000)
        else:
            with pytest.raises(MemoryError, match="choose smaller hidden_dims"):
                settings.check_memory(model, network, optimizer, n_rows=1000)


def test_bad_data_are_refused_and_lose_nothing() -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    before = model.params_.copy()
    bad = rows / 255
    bad[3, 4] = np.nan

    with pytest.raises(DataError, match="row 3, column 4"):
        model.fit(bad)
    with pytest.raises(DataError, match="outside"):
        model.partial_fit(rows / 100)
    with pytest.raises(DataError, match="2-D"):
        model.score(rows[0])
    with pytest.raises(ValueError, match="X has 5 features, but VAE is expecting 12"):
        model.transform(rows[:, :5].copy())
    with pytest.raises(ValueError, match=r"Z must have shape \(n, 2\)"):
        model.inverse_transform(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        model.inverse_transform(np.full((4, 2), np.inf))
    with pytest.raises(ValueError, match="n_samples must be an integer"):
        model.sample(0)

    np.testing.assert_array_equal(model.params_, before)


def test_a_fit_that_cannot_begin_leaves_the_fitted_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    before = {"params": model.params_.copy(), "score": model.score(rows), "steps": model.n_steps_}
    narrow = rows[:, :5].copy()

    with pytest.raises(ValueError, match="X has 12 features, but VAE is expecting 5"):
        model.fit(narrow, eval_set=rows)
    with pytest.raises(ValueError, match="X has 5 features"):
        model.resume(rows, eval_set=narrow)
    engine = backends.load("reference")
    monkeypatch.setattr(engine, "plan", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no room")))
    for use in (model.fit, model.partial_fit):
        with pytest.raises(MemoryError, match="no room"):
            model.set_params(backend="reference") and use(rows)
    monkeypatch.undo()

    model.set_params(backend="auto")
    assert (model.score(rows), model.n_steps_, model.n_samples_seen_) == (before["score"], before["steps"], 60)
    np.testing.assert_array_equal(model.params_, before["params"])
    model.resume(rows)  # and it is still one that fit made


def test_divergence_is_an_error_of_fit(engine: Engine) -> None:
    with pytest.raises(DivergenceError, match="lower learning_rate"):
        make_vae(engine, optimizer="sgd", learning_rate=1000.0, n_epochs=50).fit(make_rows())


def test_an_overflow_in_the_last_step_is_an_error_too(engine: Engine) -> None:
    gaussian = {"likelihood": "gaussian", "mean": "identity", "hidden_dims": (4,), "n_epochs": 1, "random_state": 0}
    steep = gaussian | {"optimizer": "sgd", "learning_rate": 1000.0}
    rows = np.full((10, 1), 1e18)
    for use in ("fit", "partial_fit"):
        with pytest.raises(DivergenceError, match="diverged at step 1: parameter"):
            getattr(make_vae(engine, **steep), use)(rows)


def test_methods_of_an_unfitted_model_say_so(tmp_path: Path) -> None:
    model, rows = make_vae(), make_rows()
    for use in (model.transform, model.score, model.score_samples, model.reconstruct, model.resume):
        with pytest.raises(NotFittedError):
            use(rows)
    with pytest.raises(NotFittedError):
        model.sample()
    with pytest.raises(NotFittedError):
        model.save(tmp_path / "x.safetensors")


def test_scikit_learn_finds_what_it_expects() -> None:
    rows = make_rows()
    model = make_vae(callbacks=[]).fit(rows)

    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "state_")
    pipeline = make_pipeline(FunctionTransformer(lambda X: X), make_vae())
    assert pipeline.fit_transform(rows).shape == (60, 2)
    assert pipeline.score(rows) < 0
    assert model.get_feature_names_out().tolist() == ["vae0", "vae1"]
    assert "latent_dim=2" in repr(model)
    assert inspect.unwrap(VAE.transform) is not VAE.transform  # by set_output
    np.testing.assert_array_equal(make_vae().fit_transform(rows), model.transform(rows))


def test_scikit_learn_is_told_what_the_estimator_takes() -> None:
    tags = get_tags(make_vae())
    assert tags.input_tags.sparse
    assert tags.input_tags.positive_only
    assert not get_tags(make_vae(likelihood="gaussian", mean="identity")).input_tags.positive_only
    assert tags.transformer_tags.preserves_dtype == ["float32"]


def test_transform_leaves_the_estimator_as_it_is() -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    before = vars(model).copy()

    model.transform(rows)
    model.set_params(n_threads=1).transform(rows)

    assert vars(model) | {"n_threads": None} == before


def test_the_width_is_looked_at_before_the_memory_order() -> None:
    model = make_vae().fit(make_rows())
    with pytest.raises(ValueError, match="X has 5 features, but VAE is expecting 12"):
        model.transform(make_rows()[:, :5])


def test_copies_and_pickles_keep_the_state() -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    model.transform(rows)

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.transform(rows), model.transform(rows))
        assert twin.score(rows) == model.score(rows)


def test_partial_fit_continues_and_leaves_no_row_out(engine: Engine) -> None:
    rows = make_rows(34)
    model = make_vae(engine)

    for start in (0, 17):
        model.partial_fit(rows[start : start + 17])

    assert model.n_steps_ == 4  # 10 and 7 rows, twice
    assert model.history_["epoch"] == [1, 2]
    assert model.n_samples_seen_ == 34
    again = make_vae(engine).partial_fit(rows[:17])
    again.partial_fit(rows[17:])
    np.testing.assert_array_equal(again.params_, model.params_)
    with pytest.raises(CheckpointError, match="partial_fit has no epochs to resume"):
        model.resume(rows)


def test_partial_fit_takes_a_fitted_model_further(engine: Engine) -> None:
    rows = make_rows()
    model = make_vae(engine).fit(rows)
    before = model.params_.copy()

    model.partial_fit(rows)

    assert model.n_steps_ == 24
    assert (model.params_ != before).any()


def test_partial_fit_keeps_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, built = make_rows(), []
    engine = backends.load()
    keep = engine.plan
    monkeypatch.setattr(engine, "plan", lambda *args, **sizes: (built.append(sizes), keep(*args, **sizes))[1])
    model = make_vae()

    for _ in range(3):
        model.partial_fit(rows)
    assert len(built) == 1
    model.set_params(batch_size=7).partial_fit(rows)
    assert [sizes["rows"] for sizes in built] == [10, 7]


def test_sampling_is_repeatable_and_seeded() -> None:
    model = make_vae().fit(make_rows())

    np.testing.assert_array_equal(model.sample(5), model.sample(5))
    np.testing.assert_array_equal(model.sample(5), model.sample(9)[:5])
    assert (model.sample(5, random_state=1) != model.sample(5)).any()


def test_callbacks_of_the_user_are_called() -> None:
    epochs = []

    class Count(Callback):
        def after_epoch(self, model: VAE, epoch: int, history: dict[str, list[Any]]) -> None:
            epochs.append((epoch, model.n_steps_))

    make_vae(callbacks=[Count()]).fit(make_rows())

    assert epochs == [(1, 6), (2, 12), (3, 18)]


def test_verbose_prints_a_line_per_epoch_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows()

    make_vae(verbose=1).fit(rows, eval_set=rows)

    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[0] for line in err.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert " test " in err


def test_verbose_partial_fit_counts_passes_without_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_vae(verbose=1)

    model.partial_fit(make_rows(34)).partial_fit(make_rows(17))

    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == ["epoch 1", "epoch 2"]


def test_fit_keeps_silent_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    make_vae().fit(make_rows())
    assert capsys.readouterr() == ("", "")


def test_a_loaded_model_is_the_saved_one_and_trains_on(engine: Engine, tmp_path: Path) -> None:
    rows = make_rows()
    model = make_vae(engine, optimizer="adagrad", kl_warmup=4).fit(rows)
    model.save(tmp_path / "model.safetensors")

    comp = VAE.load(tmp_path / "model.safetensors")

    assert comp.get_params() == model.get_params() | {"optimizer": "adagrad"}
    assert comp.history_ == model.history_
    np.testing.assert_array_equal(comp.params_, model.params_)
    np.testing.assert_array_equal(comp.transform(rows), model.transform(rows))
    assert comp.score(rows) == model.score(rows)
    for twin in (comp, model):
        twin.set_params(n_epochs=5).resume(rows)
    np.testing.assert_array_equal(comp.params_, model.params_)
    np.testing.assert_array_equal(comp.state_.slots, model.state_.slots)


def test_an_optimizer_object_survives_saving(tmp_path: Path) -> None:
    model = make_vae(optimizer=Optimizer("sgd", 0.01, momentum=0.5)).fit(make_rows())
    model.save(tmp_path / "m.safetensors")

    assert VAE.load(tmp_path / "m.safetensors").optimizer == Optimizer("sgd", 0.01, momentum=0.5)


def test_resume_refuses_other_data_and_other_models() -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    other = rows.copy()
    other[0, 0] ^= 255

    with pytest.raises(CheckpointError, match="these are not the data of the run: sha256"):
        model.resume(other)
    with pytest.raises(CheckpointError, match="n_rows is 50, was 60"):
        model.resume(rows[:50])
    for change in ({"latent_dim": 3}, {"optimizer": "sgd"}, {"likelihood": "gaussian"}):
        with pytest.raises(ValueError, match="training began with"):
            clone_state(model).set_params(**change).resume(rows)


def test_resume_refuses_another_batch_size_and_takes_another_learning_rate() -> None:
    rows = make_rows()
    model = make_vae().fit(rows)
    before = model.params_.copy()

    with pytest.raises(ValueError, match="training began with batch_size 10, not 20"):
        model.set_params(batch_size=20, n_epochs=5).resume(rows)
    model.set_params(batch_size=10, learning_rate=1e-30).resume(rows)

    assert (model.n_steps_, model.history_["step"]) == (30, [6, 12, 18, 24, 30])
    np.testing.assert_array_equal(model.params_, before)


@pytest.mark.parametrize(("missing", "taken"), [([], "cpp"), (["cpp"], "numba"), (["cpp", "numba"], "reference")])
def test_auto_warns_once_of_what_it_passes_over(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], taken: str
) -> None:
    if reason := backends.unavailable(taken):
        pytest.skip(reason)
    for name in missing:
        monkeypatch.setitem(backends._MODULES, name, "fastvae.not_built")
    backends._warn_once.cache_clear()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [backends.resolve() for _ in range(3)] == [taken] * 3

    assert [str(warning.message).split("'")[1] for warning in caught] == missing
    assert all(f"; taking the backend '{taken}'" in str(warning.message) for warning in caught)


def test_the_reason_why_there_is_no_cuda_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._MODULES, "cuda", "fastvae.not_built")
    with pytest.raises(BackendError, match=r"'cuda' cannot be imported .*: pip install 'fastvae\[cuda13\]'"):
        backends.resolve("cuda")


def clone_state(model: VAE) -> VAE:
    return copy.deepcopy(model)


def damage_params(checkpoint: Checkpoint) -> None:
    checkpoint.tensors["params"] = checkpoint.tensors["params"][:-1].copy()


def drop_optimizer(checkpoint: Checkpoint) -> None:
    del checkpoint.tensors["optimizer"]


def drop_network(checkpoint: Checkpoint) -> None:
    del checkpoint.metadata["network"]


def change_network(checkpoint: Checkpoint) -> None:
    checkpoint.metadata["network"]["activation"] = "relu"


def unknown_parameter(checkpoint: Checkpoint) -> None:
    checkpoint.metadata["estimator"]["wings"] = 2


def drop_state(checkpoint: Checkpoint) -> None:
    del checkpoint.metadata["state"]


def ragged_history(checkpoint: Checkpoint) -> None:
    checkpoint.metadata["state"]["history"]["elbo"].pop()


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (damage_params, "tensor 'params' is float32 of shape"),
        (drop_optimizer, "tensor 'optimizer' is missing"),
        (drop_network, "do not describe a VAE"),
        (change_network, "training began with activation"),
        (unknown_parameter, "wings"),
        (drop_state, "training state is missing"),
        (ragged_history, "columns of different lengths"),
    ],
)
def test_load_validates_everything(tmp_path: Path, spoil: Any, match: str) -> None:
    path = tmp_path / "model.safetensors"
    make_vae().fit(make_rows()).save(path)
    checkpoint = read(path)
    spoil(checkpoint)
    write(path, checkpoint)

    with pytest.raises(CheckpointError, match=match) as info:
        VAE.load(path)

    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
