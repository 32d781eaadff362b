"""A model: its parameters, what training has left of it, and what can be asked of it then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Self

import numpy as np

from fastvae import settings
from fastvae.arguments import choice, integer
from fastvae.callbacks import Callback
from fastvae.data import as_dataset
from fastvae.evaluation import (
    DEFAULT_DRAWS,
    ESTIMATORS,
    Bound,
    LogLikelihood,
    Sandwich,
    decode,
    encode,
    evaluate_bound,
    sandwich,
)
from fastvae.interop import exported, imported
from fastvae.kernels import Array
from fastvae.model_data import fitted_dataset
from fastvae.model_plans import inference_plan
from fastvae.network import Network
from fastvae.optimizer import Optimizer
from fastvae.report import page
from fastvae.rng import Stream, normal
from fastvae.training.state import State
from fastvae.uses import denoising, imputation, latent_space

__all__ = ["Model"]


@dataclass(eq=False, repr=False)
class Model:
    """A variational auto-encoder without scikit-learn, whose import takes longer and more memory than everything else.

    The command line works with it. `fastvae.VAE` is the same as an estimator of scikit-learn, and describes the
    parameters and fitted attributes; `fastvae.training.fitting` trains either.
    """

    latent_dim: int = 20
    _: KW_ONLY
    hidden_dims: Sequence[int] = (500,)
    decoder_hidden_dims: Sequence[int] | None = None
    activation: str = "tanh"
    likelihood: str = "bernoulli"
    mean: str = "sigmoid"
    logvar_floor: float = -10.0
    binarize: str = "none"
    algorithm: str = "aevb"
    estimator: str = "sgvb-b"
    optimizer: str | Optimizer = "adam"
    learning_rate: float | None = None
    batch_size: int = 100
    n_epochs: int = 10
    n_draws: int = 1
    kl_weight: float = 1.0
    kl_warmup: int = 0
    prior: bool = False
    init: str | float = "fan_in"
    scale: float | None = None
    backend: str = "auto"
    precision: str = "fp32"
    n_threads: int | None = None
    random_state: int | np.random.RandomState | None = None
    verbose: int = 0
    callbacks: Sequence[Callback] | None = None

    # Not there before training.
    network_: Network = field(init=False)
    optimizer_: Optimizer = field(init=False)
    algorithm_: str = field(init=False)
    estimator_: str = field(init=False)
    state_: State = field(init=False)
    seed_: int = field(init=False)
    n_features_in_: int = field(init=False)
    scale_: float = field(init=False)
    feature_names_in_: Array = field(init=False)  # only after training on a data frame
    integer_data_: bool = field(init=False)  # whether the training data were grey levels or bits
    image_shape_: tuple[int, int] | None = field(init=False)
    fingerprint_: dict[str, Any] | None = field(init=False)  # of the data of `fit`; None after `partial_fit`
    n_samples_seen_: int = field(init=False)  # rows of `fit`'s data; summed over the calls of `partial_fit`

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

    def transform(self, X: Any) -> Array:
        """Return the posterior mean mu of each row, shape (N, J), float32. Pixels are seen as they are.

        Raises
        ------
        ValueError
            The algorithm trains no recognition model.
        """
        settings.check_encodes(self)
        dataset = fitted_dataset(self, X)
        return encode(inference_plan(self), self.params_, dataset)[0]

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
        settings.check_fitted(self)
        z = as_dataset(Z, scale=1.0, name="Z").dense().astype(self.params_.dtype, copy=False)
        if z.shape[1] != self.network_.latent_dim:
            raise ValueError(f"Z must have shape (n, {self.network_.latent_dim}), got {z.shape}")
        if not np.isfinite(z).all():
            raise ValueError("Z has values that are not finite; remove those rows")
        return decode(inference_plan(self), self.params_, z)

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
        settings.check_fitted(self)
        n_samples = integer("n_samples", n_samples, low=1)
        key = self.seed_ if random_state is None else settings.seed(random_state)
        shape = (n_samples, self.network_.latent_dim)
        return self.inverse_transform(normal(seed=key, step=0, stream=Stream.SAMPLE, shape=shape))

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

        Raises
        ------
        ValueError
            The algorithm trains no q(z|x), so that there is no bound.
        """
        settings.check_has_bound(self)
        dataset = fitted_dataset(self, X)
        key = self.seed_ if random_state is None else settings.seed(random_state)
        return evaluate_bound(
            inference_plan(self), self.params_, dataset, n_draws=n_draws, seed=key, binarize=self.binarize
        )

    def log_likelihood(
        self,
        X: Any,
        *,
        estimator: str = "importance",
        random_state: int | None = None,
        split: str | None = None,
        **options: Any,
    ) -> LogLikelihood:
        """Estimate log p(x) of each row.

        Parameters
        ----------
        X : array of shape (N, D), or Dataset
        estimator : {"importance", "marginal-likelihood", "ais"}
            Importance sampling from q(z|x); the paper's appendix D, for up to 5 latent dimensions; annealed importance
            sampling, which takes longest and needs no recognition model.
        random_state : int, optional
            Key of the draws, by default `seed_`.
        split : str, optional
            Which part of the data X is, for the record.
        **options
            The estimator's own arguments, such as ``n_draws``: see `fastvae.evaluation.evaluate_importance`,
            `evaluate_marginal_likelihood` and `evaluate_ais`. The chains of a model of Monte Carlo EM start from the
            prior, as it has no q(z|x).

        Returns
        -------
        LogLikelihood
            With standard errors; `fastvae.evaluation.compare` sets two beside each other.

        Raises
        ------
        ValueError
            The estimator is unknown or needs a q(z|x) that the algorithm has not trained, or an option is out of range.
        """
        choice("estimator", estimator, ESTIMATORS)
        dataset = fitted_dataset(self, X)
        if estimator == "importance":
            settings.check_has_bound(self)
        if estimator == "marginal-likelihood":
            options.setdefault("start", "encoder" if settings.encodes(self) else "prior")
        if options.get("start") == "encoder":
            settings.check_encodes(self)
        key = self.seed_ if random_state is None else settings.seed(random_state)
        plan = inference_plan(self)
        return ESTIMATORS[estimator](
            plan, self.params_, dataset, seed=key, binarize=self.binarize, split=split, **options
        )

    def sandwich(self, n_rows: int = 100, *, random_state: int | None = None, **options: Any) -> Sandwich:
        """Bound log p(x) from below and above on rows drawn from the model: how exact ``estimator="ais"`` is.

        Parameters
        ----------
        n_rows : int
            Rows drawn.
        random_state : int, optional
            Key of the rows and chains, by default `seed_`.
        **options
            ``n_draws``, ``n_temperatures``, ``n_leapfrog``: see `fastvae.evaluation.sandwich`.

        Returns
        -------
        Sandwich

        Raises
        ------
        ValueError
            An argument is out of range.
        """
        settings.check_fitted(self)
        key = self.seed_ if random_state is None else settings.seed(random_state)
        return sandwich(inference_plan(self), self.params_, n_rows=n_rows, seed=key, **options)

    def _name_features(self, X: Any, *, reset: bool) -> None:
        """Keep the names of a data frame's columns, or check X against them: an estimator's custom, see `VAE`."""

    report = page.write
    denoise = denoising.denoise
    impute = imputation.impute
    manifold = latent_space.manifold
    traverse = latent_space.traverse
    interpolate = latent_space.interpolate

    to_torch = exported.to_torch
    to_onnx = exported.to_onnx
    state_dict = exported.state_dict
    export = exported.export

    @classmethod
    def from_torch(cls, state_dict: Any, **options: Any) -> Self:
        """Make a fitted model of weights that PyTorch or Flax trained.

        Parameters
        ----------
        state_dict : mapping, or torch.nn.Module
            Names to torch, NumPy or JAX arrays, in a layout known by its names.
        **options
            What names and shapes do not tell, and parameters of this class: see `fastvae.interop.from_torch`.

        Returns
        -------
        VAE
            Of step 0: `resume` trains it on for `n_epochs` epochs, `partial_fit` for one pass.

        Raises
        ------
        LayoutError
            The names are of no known layout, the shapes do not fit together, or a value is not finite.
        ValueError
            An option is out of range.
        """
        return imported.from_torch(cls, state_dict, **options)
