"""The variational auto-encoder as a scikit-learn style estimator."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import validate_data

from fastvae import settings
from fastvae.callbacks import Checkpoint
from fastvae.checkpoint import write
from fastvae.data import Dataset
from fastvae.errors import CheckpointError
from fastvae.kernels import Array
from fastvae.model import Model
from fastvae.model_file import read_model, to_checkpoint
from fastvae.training import fitting
from fastvae.training.interrupts import Interrupted

__all__ = ["VAE"]


class VAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, Model):  # type: ignore[misc]
    """Variational auto-encoder, trained by Auto-Encoding Variational Bayes (Kingma & Welling 2013).

    The encoder q(z|x) is a diagonal Gaussian, the prior p(z) = N(0, I), both networks are fully connected. All bounds
    are in nats per datapoint, summed over dimensions.

    Data are arrays of shape (N, D) of any kind: NumPy's, data frames of pandas and polars, sparse matrices of SciPy,
    tensors of torch; with the backend cuda also arrays on the device. C-contiguous uint8, bool, float32 and float64
    and CSR of these, memory-mapped too, are used as they lie; what else holds numbers is copied once, see
    `fastvae.data.as_dataset`. Each X below is such an array, or a `Dataset`.

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
        Make pixels 0 or 1 with their grey level as probability: anew at every step (not for ``"mcem"``, which keeps a z
        of p(z|x) for every row), or once for all.
    algorithm : {"aevb", "wake-sleep", "mcem", "full-vb", "autoencoder"}
        Auto-Encoding Variational Bayes (Algorithm 1); what the paper compares it with, wake-sleep and Monte Carlo EM
        (section 5), the latter without a recognition model, so that `transform` and all that builds on it are refused;
        full variational Bayes over the decoder's parameters too (appendix F); a deterministic autoencoder without
        noise and KL divergence, for comparing reconstructions. Their classes, `WakeSleep`, `MCEM`, `FullVB`, ... in
        `fastvae.training`, say what each ascends.
    estimator : {"sgvb-b", "sgvb-a", "iwae"}
        What ``"aevb"`` ascends: the bound with the analytic KL divergence (equation 7) or with a sampled one (equation
        6), or the importance-weighted bound of `n_draws` draws (Burda et al. 2016), which of one draw is the second.
    optimizer : {"adam", "adagrad", "sgd"} or Optimizer
    learning_rate : float, optional
        By default 0.001, for adagrad 0.02.
    batch_size : int
        M. Of fewer rows than that, `fit` takes all in every step.
    n_epochs : int
        Passes over the data; each leaves out N mod M rows, others every time.
    n_draws : int
        L, draws of z per datapoint and step.
    kl_weight : float
        Weight of the KL divergence in the objective; the bounds reported are never weighted. Neither this nor
        `kl_warmup` is taken where there is none to weigh: by ``"iwae"``, ``"wake-sleep"`` and those without a bound.
    kl_warmup : int
        Steps over which that weight rises linearly from 0.
    prior : bool
        Weight prior N(0, I): MAP instead of maximum likelihood.
    init : {"fan_in"} or float
        Standard deviation of the initial weights, see `fastvae.network.initialise`.
    scale : float, optional
        The model sees ``X * scale``; by default 1/255 for uint8 with values above 1, else 1, also for other integers:
        give 1/255 if they are grey levels. Further data of the same kind (integers or floats) are seen with the factor
        of the training data; a factor given for floats holds for integers too, one of integers not for floats.
    backend : str
        ``"auto"`` or a name of `fastvae.backends.NAMES`.
    precision : str
        One that the backend has: ``"fp32"`` everywhere; ``"bf16"``, matrix products of bfloat16 summed in float32, with
        the backend cuda, and with cpp on processors that have AVX512_BF16; ``"tf32"``, those of tf32, with cuda.
    n_threads : int, optional
        By default the processors that this process may use, OMP_NUM_THREADS at most, by which joblib shares them out
        among the workers of ``n_jobs``. Results do not depend on it.
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
    algorithm_, estimator_ : str
        What trained it; `estimator_` means something to ``"aevb"`` alone.
    state_ : State
        Parameters, optimizer state, counters: all that training goes on from.
    params_ : ndarray of shape (P,)
        All parameters; `parameters_` names them.
    history_ : dict of str to list
        One value per epoch: ``epoch``, ``step``, ``elbo``, ``log_px``, ``kl`` (means over the epoch's minibatches while
        it trained), ``kl_weight`` where there is a KL divergence to weigh, ``learning_rate``, ``seconds``,
        ``samples_per_second``; with an `eval_set` also ``elbo_test``, ``log_px_test``, ``kl_test`` (one draw per row,
        see `evaluate` for more), ``active_units`` and ``kl_per_dimension``, a list of J values, by which a latent
        dimension that falls out of use is seen. Full variational Bayes adds ``kl_theta`` (over N, and subtracted in
        ``elbo`` too); Monte Carlo EM has ``log_px``, ``log_pxz`` and ``acceptance`` in place of bound and KL
        divergence, the autoencoder ``log_px`` alone. Of ``"iwae"`` ``elbo`` is the importance-weighted bound,
        ``log_px`` a mean by the draws' weights and ``kl`` their difference, while ``elbo_test`` and all that evaluates
        have the bound of equation 7.
    n_features_in_ : int
        D.
    feature_names_in_ : ndarray of shape (D,)
        Names of the columns; only there after training on a data frame whose columns are all named by strings.
    n_steps_ : int
        Steps done.
    scale_ : float
        Factor of the training data.
    seed_ : int
        Key of all randomness.
    """

    def fit(self, X: Any, y: Any = None, *, eval_set: Any = None, resume: str | os.PathLike[str] | None = None) -> Self:
        """Train from fresh parameters for `n_epochs` epochs, or go on with a run that was saved.

        The first Ctrl-C ends training after a complete step, with a warning: the model is that of this step, and
        `resume` goes on from it. Another one while it is saved is a KeyboardInterrupt.

        Parameters
        ----------
        X : array of shape (N, D), or Dataset
        y : ignored
        eval_set : array of shape (N', D), or Dataset, optional
            Data whose bound joins the history after every epoch.
        resume : path-like, optional
            A checkpoint, or a folder as `load` takes it, of a run with the same parameters and data: training goes on
            from its newest one that is whole, as the method `resume` does. Where there is none training starts afresh,
            with a warning unless a `Checkpoint` is about to save there. So a script with
            ``callbacks=[Checkpoint("runs/x")]`` and ``resume="runs/x"`` can be started again and again until the run
            is complete.

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
            A parameter is out of range.
        BackendError
            The backend or precision is not available.
        DivergenceError
            The objective stopped being finite.
        MemoryError
            Model and optimizer need more memory than the machine has.
        CheckpointError
            No checkpoint of `resume` can be read, or it is that of another run.
        """
        with _interruptible(self):
            if resume is None:
                fitting.fit(self, X, eval_set=eval_set)
            elif not fitting.take_up(self, X, resume, eval_set=eval_set, on_damaged=_warn_damaged):
                if not any(isinstance(c, Checkpoint) and c.folder == Path(resume) for c in self.callbacks or ()):
                    warnings.warn(f"no checkpoint is in {resume} to go on from: training starts afresh", stacklevel=2)
                fitting.fit(self, X, eval_set=eval_set)
        return self

    def resume(self, X: Any, *, eval_set: Any = None) -> Self:
        """Go on with a `fit` that was interrupted, or loaded, or whose `n_epochs` was raised, or from imported weights.

        Ctrl-C is as in `fit`.

        With the same parameters the result is that of a run that was never interrupted, bit for bit; `n_epochs`,
        `n_threads`, `verbose` and `callbacks` may change all the same. Another `backend` changes the last bits, which
        early in training can grow to some nats. Others
        than these take effect from the next step on: `learning_rate` and the constants of an `Optimizer`, `n_draws`,
        `binarize`, `kl_weight`, `kl_warmup`, `prior`. Refused are another network, algorithm, estimator, optimizer by
        name, precision of the parameters, `scale`, or `batch_size`, by which epochs are counted. `init` and
        `random_state` are not looked at.

        Parameters
        ----------
        X : array of shape (N, D), or Dataset
            The data that it was fitted on; after `from_torch` any that its network fits.
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
        with _interruptible(self):
            fitting.resume(self, X, eval_set=eval_set)
        return self

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
        fitting.partial_fit(self, X)
        return self

    def transform(self, X: Any) -> Array:
        """Return the posterior mean mu of each row, see `Model.transform`."""
        return super().transform(X)  # defined in this class so that scikit-learn's set_output wraps it

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean bound of the rows in nats; higher is better."""
        return float(self.score_samples(X).mean())

    def score_samples(self, X: Any) -> Array:
        """Return the bound of each row in nats, shape (N,), float64; a row's value does not depend on the others."""
        return self.evaluate(X).elbo

    def _name_features(self, X: Any, *, reset: bool) -> None:
        if reset or not isinstance(X, Dataset):  # whose columns have no names to compare
            validate_data(self, X, reset=reset, skip_check_array=True, ensure_2d=False)

    def __sklearn_is_fitted__(self) -> bool:
        return settings.is_fitted(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = self.likelihood == "bernoulli" or self.mean == "sigmoid"
        tags.transformer_tags.preserves_dtype = ["float64" if self.precision == "fp64" else "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.network_.latent_dim

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
        settings.check_fitted(self)
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
        return read_model(path, on_damaged or _warn_damaged, cls)[2]


@contextmanager
def _interruptible(model: VAE) -> Iterator[None]:
    """Keep the model when Ctrl-C has ended its training."""
    try:
        yield
    except Interrupted:
        warnings.warn(
            f"training was interrupted after step {model.n_steps_}: the model is that of this step, "
            "and resume(X) goes on from there",
            stacklevel=4,
        )


def _warn_damaged(path: Path, error: CheckpointError) -> None:
    warnings.warn(f"{error}; taking an older checkpoint than {path.name}", stacklevel=3)
