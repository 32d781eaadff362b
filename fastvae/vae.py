"""The variational auto-encoder as a scikit-learn style estimator."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from fastvae import backends, settings
from fastvae.arguments import integer
from fastvae.callbacks import Callback, EpochMetrics, Progress
from fastvae.checkpoint import write
from fastvae.data import Dataset, as_dataset, check_values
from fastvae.errors import CheckpointError
from fastvae.evaluation import DEFAULT_DRAWS, PASSING_DRAWS, Bound, decode, encode, evaluate_bound
from fastvae.evaluation.inference import batch_rows
from fastvae.kernels import Array, Plan
from fastvae.network import initialise
from fastvae.optimizer import Optimizer
from fastvae.rng import Stream, normal
from fastvae.training.algorithm import AEVB
from fastvae.training.loop import run_epochs, run_pass
from fastvae.training.state import State, fingerprint

__all__ = ["VAE"]

# use -> what a plan was built of, and the plan, of every estimator: workspaces are no part of its state.
_PLANS: WeakKeyDictionary[VAE, dict[str, tuple[Any, Plan]]] = WeakKeyDictionary()


class VAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Variational auto-encoder, trained by Auto-Encoding Variational Bayes (Kingma & Welling 2013).

    The encoder q(z|x) is a diagonal Gaussian, the prior p(z) = N(0, I), both networks are fully connected. All bounds
    are in nats per datapoint, summed over dimensions. Data are arrays of shape (N, D): uint8, float32, float64 or
    scipy CSR of these, used as they are stored and never copied.

    Parameters
    ----------
    latent_dim : int
        J.
    hidden_dims : sequence of int
        Widths of the encoder's hidden layers.
    decoder_hidden_dims : sequence of int, optional
        Widths of the decoder's; by default the encoder's reversed.
    activation : {"tanh", "relu", "softplus", "sigmoid"}
    likelihood : {"bernoulli", "gaussian"}
        p(x|z). Bernoulli takes data in [0, 1], grey levels included.
    mean : {"sigmoid", "identity"}
        Mean of the Gaussian likelihood: the paper's sigmoid for data in [0, 1], the identity for any.
    logvar_floor : float
        Lowest log variance of the Gaussian likelihood, see `fastvae.Network`.
    binarize : {"none", "dynamic", "fixed"}
        Make pixels 0 or 1 with their grey level as probability: anew at every step, or once for all.
    optimizer : {"adam", "adagrad", "sgd"} or Optimizer
    learning_rate : float, optional
        By default 0.001, for adagrad 0.02.
    batch_size : int
        M.
    n_epochs : int
        Passes over the data; each leaves out N mod M rows, others every time.
    n_draws : int
        L, draws of z per datapoint and step.
    kl_weight : float
        Weight of the KL divergence in the objective; the bounds reported are never weighted.
    kl_warmup : int
        Steps over which that weight rises linearly from 0.
    prior : bool
        Weight prior N(0, I): MAP instead of maximum likelihood.
    init : {"fan_in"} or float
        Standard deviation of the initial weights, see `fastvae.network.initialise`.
    scale : float, optional
        The model sees ``X * scale``; by default 1/255 for uint8 with values above 1, else 1. Further data of the
        same kind (integer or float) are seen with the factor of the training data.
    backend : str
        ``"auto"`` or a name of `fastvae.backends.NAMES`.
    precision : str
        One that the backend has: ``"fp32"`` everywhere; ``"bf16"``, matrix products of bfloat16 summed in float32, with
        the backend cuda, and with cpp on processors that have AVX512_BF16; ``"tf32"``, those of tf32, with cuda.
    n_threads : int, optional
        By default the processors that this process may use. Results do not depend on it.
    random_state : int, RandomState or None
        None draws a fresh seed; `seed_` has it, so that the run can be repeated.
    verbose : int
        1 prints a line per epoch to stderr, with a progress bar on a terminal.
    callbacks : sequence of Callback, optional
        See `fastvae.callbacks`.

    Attributes
    ----------
    network_ : Network
    optimizer_ : Optimizer
    state_ : State
        Parameters, optimizer state, counters: all that training goes on from.
    params_ : ndarray of shape (P,)
        All parameters; `parameters_` names them.
    history_ : dict of str to list
        One value per epoch: ``epoch``, ``step``, ``elbo``, ``log_px``, ``kl`` (means over the epoch's minibatches while
        it trained), ``kl_weight``, ``seconds``, ``samples_per_second``; with an `eval_set` also ``elbo_test``,
        ``log_px_test``, ``kl_test`` (with one draw per row, see `evaluate` for more) and ``active_units``.
    n_features_in_ : int
        D.
    n_steps_ : int
        Steps done.
    scale_ : float
        Factor of the training data.
    seed_ : int
        Key of all randomness.
    """

    def __init__(
        self,
        latent_dim: int = 20,
        *,
        hidden_dims: Sequence[int] = (500,),
        decoder_hidden_dims: Sequence[int] | None = None,
        activation: str = "tanh",
        likelihood: str = "bernoulli",
        mean: str = "sigmoid",
        logvar_floor: float = -10.0,
        binarize: str = "none",
        optimizer: str | Optimizer = "adam",
        learning_rate: float | None = None,
        batch_size: int = 100,
        n_epochs: int = 10,
        n_draws: int = 1,
        kl_weight: float = 1.0,
        kl_warmup: int = 0,
        prior: bool = False,
        init: str | float = "fan_in",
        scale: float | None = None,
        backend: str = "auto",
        precision: str = "fp32",
        n_threads: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden_dims = hidden_dims
        self.decoder_hidden_dims = decoder_hidden_dims
        self.activation = activation
        self.likelihood = likelihood
        self.mean = mean
        self.logvar_floor = logvar_floor
        self.binarize = binarize
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.n_draws = n_draws
        self.kl_weight = kl_weight
        self.kl_warmup = kl_warmup
        self.prior = prior
        self.init = init
        self.scale = scale
        self.backend = backend
        self.precision = precision
        self.n_threads = n_threads
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks

    def fit(self, X: Any, y: Any = None, *, eval_set: Any = None) -> Self:
        """Train from fresh parameters for `n_epochs` epochs.

        Parameters
        ----------
        X : array of shape (N, D), or Dataset
        y : ignored
        eval_set : array of shape (N', D), or Dataset, optional
            Data whose bound joins the history after every epoch.

        Returns
        -------
        self
            Also after an exception in training it holds the state that the last complete step left, and `resume` goes
            on from it. After one about arguments, data, backend or memory it is as it was before the call.

        Raises
        ------
        DataError
            The data do not fit the model, see `fastvae.data.as_dataset` and `check_values`.
        ValueError
            A parameter is out of range, or there are fewer rows than `batch_size`.
        BackendError
            The backend or precision is not available.
        DivergenceError
            The objective stopped being finite.
        MemoryError
            Model and optimizer need more memory than the machine has.
        """
        settings.check(self)
        dataset = self._training_set(X, self.scale)
        with self._kept_on_error():
            self._start(dataset)
            self.fingerprint_: dict[str, Any] | None = fingerprint(dataset)
            self.n_samples_seen_ = dataset.n_rows
            algorithm, callbacks = self._algorithm(dataset), self._callbacks(eval_set)
        return self._run_epochs(algorithm, callbacks)

    def resume(self, X: Any, *, eval_set: Any = None) -> Self:
        """Go on with a `fit` that was interrupted, or loaded, or whose `n_epochs` was raised.

        With the same parameters the result is that of a run that was never interrupted, bit for bit; `n_epochs`,
        `n_threads`, `verbose` and `callbacks` may change all the same. Another `backend` changes the last bits. Others
        than these take effect from the next step on: `learning_rate` and the constants of an `Optimizer`, `n_draws`,
        `binarize`, `kl_weight`, `kl_warmup`, `prior`. Refused are another network, optimizer by name, precision of the
        parameters, `scale`, or `batch_size`, by which epochs are counted. `init` and `random_state` are not looked at.

        Parameters
        ----------
        X : array of shape (N, D), or Dataset
            The data that it was fitted on.
        eval_set : array of shape (N', D), or Dataset, optional

        Returns
        -------
        self

        Raises
        ------
        CheckpointError
            `X` is not the data that it was fitted on, or training was not by `fit`.
        ValueError
            A parameter is out of range, or changed that may not.
        DataError, BackendError, DivergenceError
            As in `fit`.
        """
        check_is_fitted(self)
        settings.check(self)
        settings.check_unchanged(self)
        if self.fingerprint_ is None:
            raise CheckpointError("partial_fit has no epochs to resume; call partial_fit with the next rows")
        settings.check_batch_size(self)
        dataset = self._training_set(X, self.scale)
        found = fingerprint(dataset)
        for name, expected in self.fingerprint_.items():
            if found[name] != expected:
                raise CheckpointError(
                    f"these are not the data of the run: {name} is {found[name]}, was {expected}; "
                    "resume with the same data or start another run"
                )
        with self._kept_on_error():
            algorithm, callbacks = self._algorithm(dataset), self._callbacks(eval_set)
        return self._run_epochs(algorithm, callbacks)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train once on the rows of X in the order given, from where training stands or from fresh parameters.

        X is cut into minibatches of `batch_size` rows, the last being what is left over, and makes one row of the
        history. With `prior` the rows seen so far count as N.

        Parameters
        ----------
        X : array of shape (N, D), or Dataset
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        DataError, ValueError, BackendError, DivergenceError, MemoryError
            As in `fit`.
        """
        settings.check(self)
        with self._kept_on_error():
            if not self.__sklearn_is_fitted__():
                dataset = self._dataset(X, self.scale)
                self._start(dataset)
                self.n_samples_seen_ = 0
            else:
                settings.check_unchanged(self)
                dataset = self._checked(X)
            self.fingerprint_ = None
            self.n_samples_seen_ += dataset.n_rows
            algorithm, callbacks = self._algorithm(dataset), self._callbacks(None)
        run_pass(algorithm, self.state_, n_rows=dataset.n_rows, batch_size=int(self.batch_size), callbacks=callbacks)
        return self

    @contextmanager
    def _kept_on_error(self) -> Iterator[None]:
        """Set all attributes back when the block fails; it may replace them, but not change what they hold."""
        before = vars(self).copy()
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _training_set(self, X: Any, scale: float | None) -> Dataset:
        dataset = self._dataset(X, scale)
        if dataset.n_rows < self.batch_size:
            raise ValueError(
                f"n_samples={dataset.n_rows} is less than batch_size={self.batch_size}; "
                f"set batch_size to {dataset.n_rows} or less"
            )
        return dataset

    def _dataset(self, X: Any, scale: float | None) -> Dataset:
        dataset = X if isinstance(X, Dataset) else as_dataset(X, scale=scale)
        check_values(dataset, self.likelihood, self.mean)
        return dataset

    def _start(self, dataset: Dataset) -> None:
        """Set the fitted attributes to those of step 0."""
        network = settings.network(self, dataset.data_dim)
        optimizer = settings.optimizer(self)
        settings.check_memory(self, network, optimizer)
        self.seed_ = settings.seed(self.random_state)
        self.network_, self.optimizer_ = network, optimizer
        self.n_features_in_ = dataset.data_dim
        self.scale_ = dataset.scale
        self.integer_data_ = _is_integer(dataset)
        self.image_shape_ = dataset.image_shape
        params = initialise(network, seed=self.seed_, init=self.init).astype(settings.dtype(self), copy=False)
        self.state_ = State(params, np.zeros((optimizer.n_slots, network.layout.size), params.dtype))

    def _run_epochs(self, algorithm: AEVB, callbacks: list[Callback]) -> Self:
        run_epochs(
            algorithm,
            self.state_,
            n_rows=algorithm.dataset.n_rows,
            batch_size=int(self.batch_size),
            n_epochs=int(self.n_epochs),
            callbacks=callbacks,
        )
        return self

    def _algorithm(self, dataset: Dataset) -> AEVB:
        self.optimizer_ = settings.optimizer(self)
        return AEVB(
            self._plan("training", rows=int(self.batch_size), draws=int(self.n_draws)),
            self.optimizer_,
            dataset,
            binarize=self.binarize,
            seed=self.seed_,
            kl_weight=float(self.kl_weight),
            kl_warmup=int(self.kl_warmup),
            decay=1 / self.n_samples_seen_ if self.prior else 0.0,
        )

    def _callbacks(self, eval_set: Any) -> list[Callback]:
        callbacks = list(self.callbacks or ())
        if eval_set is not None:
            held_out = self._checked(eval_set)

            def measure() -> dict[str, Any]:
                bound = self.evaluate(held_out, n_draws=PASSING_DRAWS).summary()
                columns = {"elbo_test": "elbo", "log_px_test": "log_px_z", "kl_test": "kl"}
                return {column: bound[name] for column, name in columns.items()} | {
                    "active_units": bound["active_units"]
                }

            callbacks.append(EpochMetrics(measure))
        if self.verbose:
            callbacks.append(Progress())
        return callbacks

    def transform(self, X: Any) -> Array:
        """Return the posterior mean mu of each row, shape (N, J), float32. Pixels are seen as they are."""
        return self._encode(X)[0]

    def _encode(self, X: Any) -> tuple[Array, Array]:
        dataset = self._checked(X)
        return encode(self._inference_plan(), self.params_, dataset)

    def inverse_transform(self, Z: Any) -> Array:
        """Return the mean of p(x|z).

        Parameters
        ----------
        Z : array of shape (N, J)

        Returns
        -------
        ndarray of shape (N, D), float32
            As the model sees data: ``X * scale_``.

        Raises
        ------
        ValueError
            `Z` has another shape, or a value that is not finite.
        """
        check_is_fitted(self)
        z = np.ascontiguousarray(Z, self.params_.dtype)
        if z.ndim != 2 or z.shape[1] != self.network_.latent_dim:
            raise ValueError(f"Z must have shape (n, {self.network_.latent_dim}), got {z.shape}")
        if not np.isfinite(z).all():
            raise ValueError("Z has values that are not finite; remove those rows")
        return decode(self._inference_plan(), self.params_, z)

    def reconstruct(self, X: Any) -> Array:
        """Return the mean of p(x|z) at each row's posterior mean, shape (N, D), float32."""
        return self.inverse_transform(self.transform(X))

    def sample(self, n_samples: int = 1, *, random_state: int | np.random.RandomState | None = None) -> Array:
        """Return the mean of p(x|z) for z drawn from the prior.

        Parameters
        ----------
        n_samples : int
        random_state : int or RandomState, optional
            By default `seed_`: the same samples at every call.

        Returns
        -------
        ndarray of shape (n_samples, D), float32
        """
        check_is_fitted(self)
        n_samples = integer("n_samples", n_samples, low=1)
        key = self.seed_ if random_state is None else settings.seed(random_state)
        shape = (n_samples, self.network_.latent_dim)
        return self.inverse_transform(normal(seed=key, step=0, stream=Stream.SAMPLE, shape=shape))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean bound of the rows in nats; higher is better."""
        return float(self.score_samples(X).mean())

    def score_samples(self, X: Any) -> Array:
        """Return the bound of each row in nats, shape (N,), float64; a row's value does not depend on the others."""
        return self.evaluate(X).elbo

    def evaluate(self, X: Any, *, n_draws: int = DEFAULT_DRAWS, random_state: int | None = None) -> Bound:
        """Measure the bound of each row.

        Parameters
        ----------
        X : array of shape (N, D), or Dataset
        n_draws : int
            L.
        random_state : int, optional
            Key of the draws, by default `seed_`.

        Returns
        -------
        Bound
            See `fastvae.evaluation.evaluate_bound`.
        """
        dataset = self._checked(X)
        key = self.seed_ if random_state is None else settings.seed(random_state)
        return evaluate_bound(
            self._inference_plan(), self.params_, dataset, n_draws=n_draws, seed=key, binarize=self.binarize
        )

    def _checked(self, X: Any) -> Dataset:
        """Wrap data for a fitted model."""
        check_is_fitted(self)
        self._check_width(X)  # also before the checks of memory order and values, whose mends would not help
        dataset = self._dataset(X, self.scale_ if _is_integer(X) == self.integer_data_ else None)
        self._check_width(dataset.rows)
        return dataset

    def _check_width(self, X: Any) -> None:
        shape: tuple[int, ...] = getattr(X.rows if isinstance(X, Dataset) else X, "shape", ())
        if len(shape) == 2 and shape[1] not in (0, self.n_features_in_):
            raise ValueError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "state_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = self.likelihood == "bernoulli" or self.mean == "sigmoid"
        tags.transformer_tags.preserves_dtype = ["float64" if self.precision == "fp64" else "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.network_.latent_dim

    @property
    def params_(self) -> Array:
        """All parameters in one buffer of shape (P,)."""
        return self.state_.params

    @property
    def parameters_(self) -> dict[str, Array]:
        """The parameters by name, as views of `params_`: ``encoder.0.W`` of shape (D, H), ..."""
        return self.network_.layout.views(self.params_)

    @property
    def history_(self) -> dict[str, list[Any]]:
        """The history, see the class."""
        return self.state_.history

    @property
    def n_steps_(self) -> int:
        """Steps done."""
        return self.state_.step

    def _inference_plan(self) -> Plan:
        return self._plan("inference", rows=batch_rows(self.network_), draws=1)

    def _plan(self, use: str, *, rows: int, draws: int) -> Plan:
        """Return the plan for a use, built anew only when what it was built of has changed."""
        key = (self.network_, self.backend, self.precision, self.n_threads, rows, draws)
        plans = _PLANS.setdefault(self, {})
        if use not in plans or plans[use][0] != key:
            plan = backends.load(self.backend).plan(
                self.network_,
                rows=rows,
                draws=draws,
                precision=self.precision,
                n_threads=self.n_threads or backends.default_threads(),
            )
            plans[use] = (key, plan)
        return plans[use][1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint from which `load` restores everything, so that training can go on too.

        Parameters
        ----------
        path : path-like
            File to write or replace, by custom ``*.safetensors``.

        Raises
        ------
        CheckpointError
            The folder is missing, full or not writable.
        """
        from fastvae.model_file import to_checkpoint

        check_is_fitted(self)
        write(path, to_checkpoint(self))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, on_damaged: Callable[[Path, CheckpointError], None] | None = None
    ) -> Self:
        """Read a checkpoint.

        Parameters
        ----------
        path : path-like
            A file that `save` or training wrote, or a folder of checkpoints or of a run, whose newest one is taken.
        on_damaged : callable, optional
            Called with path and error for every newer file of a folder that is damaged; by default a warning.

        Returns
        -------
        VAE

        Raises
        ------
        CheckpointError
            It is missing, damaged, or not that of a VAE.
        """
        from fastvae.model_file import read_model

        return cast("Self", read_model(path, on_damaged or _warn_damaged, cls)[2])


def _warn_damaged(path: Path, error: CheckpointError) -> None:
    warnings.warn(f"{error}; taking an older checkpoint than {path.name}", stacklevel=3)


def _is_integer(data: Any) -> bool:
    """Whether data are stored as grey levels or bits rather than as floats."""
    rows = data.rows if isinstance(data, Dataset) else data
    return getattr(rows, "dtype", None) in (np.uint8, np.bool_)
