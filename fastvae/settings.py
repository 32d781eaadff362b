"""A model's parameters: their checks, what is derived from them, and their JSON form."""

from __future__ import annotations

import inspect
import os
import secrets
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae import backends
from fastvae.arguments import choice, integer, non_negative, positive
from fastvae.callbacks import Callback, EarlyStopping, Rollback
from fastvae.errors import BackendError
from fastvae.evaluation.elbo import POOL_DRAWS
from fastvae.network import MAX_WIDTH, Network, check_init
from fastvae.optimizer import DEFAULT_LEARNING_RATES, OPTIMIZERS, Optimizer
from fastvae.training.algorithm import ALGORITHMS, ESTIMATORS, algorithm_class

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = [
    "TRAINING_BINARIZE",
    "check",
    "check_batch_size",
    "check_encodes",
    "check_fitted",
    "check_has_bound",
    "check_memory",
    "check_unchanged",
    "dtype",
    "encodes",
    "extra_shapes",
    "from_json",
    "has_bound",
    "is_fitted",
    "minibatch_rows",
    "network",
    "optimizer",
    "seed",
    "to_json",
]

TRAINING_BINARIZE = ("none", "dynamic", "fixed")

# Noise on its way to initial weights or draws, and activations of forward and backward: bytes per value, roughly.
_NOISE_BYTES, _ACTIVATION_BYTES = 48, 12


def check(model: Model) -> None:
    """Check every parameter that does not depend on the data.

    Raises
    ------
    ValueError
        A parameter is of another kind or out of range.
    BackendError
        The backend or precision is not available.
    """
    network(model, 1)
    optimizer(model)
    check_init(model.init)
    for name, low, high in (("batch_size", 1, 2**24), ("n_epochs", 1, 2**31 - 1), ("n_draws", 1, 2**16)):
        integer(name, getattr(model, name), low=low, high=high)
    integer("kl_warmup", model.kl_warmup, low=0, high=2**53)
    if model.n_threads is not None:
        integer("n_threads", model.n_threads, low=1, high=backends.MAX_THREADS)
    if model.scale is not None:
        positive("scale", model.scale)
    non_negative("kl_weight", model.kl_weight)
    if not isinstance(model.prior, bool | np.bool_):
        raise ValueError(f"prior must be True or False, got {model.prior!r}")
    if choice("binarize", model.binarize, TRAINING_BINARIZE) != "none" and model.likelihood != "bernoulli":
        raise ValueError(f"binarize={model.binarize!r} makes pixels 0 or 1; it needs likelihood='bernoulli'")
    callbacks: Any = model.callbacks
    if callbacks is not None and not (
        isinstance(callbacks, list | tuple) and all(isinstance(each, Callback) for each in callbacks)
    ):
        raise ValueError(f"callbacks must be a list of Callback objects, got {callbacks!r}")
    _check_algorithm(model)
    engine = backends.load(model.backend)
    if model.precision not in engine.PRECISIONS:
        raise BackendError(
            f"backend {engine.NAME!r} has no precision {model.precision!r} here; "
            f"choose one of {', '.join(engine.PRECISIONS)}"
        )


def _check_algorithm(model: Model) -> None:
    name, estimator = choice("algorithm", model.algorithm, ALGORITHMS), choice("estimator", model.estimator, ESTIMATORS)
    if name != "aevb" and estimator != "sgvb-b":
        raise ValueError(f"estimator={estimator!r} needs algorithm='aevb'; {name!r} has its own objective")
    kind = algorithm_class(name, estimator)
    chosen = f"estimator={estimator!r}" if name == "aevb" else f"algorithm={name!r}"
    if not kind.weighs_kl and (model.kl_weight != 1 or model.kl_warmup != 0):
        raise ValueError(f"{chosen} has no KL divergence to weigh; set kl_weight=1 and kl_warmup=0")
    if not kind.weighs_kl and any(_weighs_kl(each) for each in model.callbacks or ()):
        raise ValueError(f"{chosen} has no KL divergence to weigh; leave KLAnneal out of callbacks")
    if name == "full-vb" and model.prior:
        raise ValueError("algorithm='full-vb' has the prior N(0, I) of the weights in its bound; set prior=False")
    if not kind.has_bound and model.n_draws != 1:
        raise ValueError(f"{chosen} draws nothing from q(z|x); set n_draws=1")
    if name == "mcem" and model.binarize == "dynamic":
        raise ValueError(
            "algorithm='mcem' keeps a z of p(z|x) for every row, whose x binarize='dynamic' would change at every "
            "visit; set binarize='fixed'"
        )


def _weighs_kl(callback: Callback) -> bool:
    """Whether it has a `kl_weight` of its own, be it the class's or the object's."""
    return getattr(callback.kl_weight, "__func__", callback.kl_weight) is not Callback.kl_weight


def network(model: Model, data_dim: int) -> Network:
    """Return the network for data of D columns."""
    encoder = _widths("hidden_dims", model.hidden_dims)
    decoder = model.decoder_hidden_dims
    return Network(
        data_dim=data_dim,
        latent_dim=model.latent_dim,
        encoder_hidden=encoder,
        decoder_hidden=encoder[::-1] if decoder is None else _widths("decoder_hidden_dims", decoder),
        activation=model.activation,
        likelihood=model.likelihood,
        mean=model.mean,
        logvar_floor=model.logvar_floor,
    )


def _widths(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name} must be a sequence of integers such as (500,), got {value!r}")
    return tuple(integer(f"{name}[{i}]", width, low=1, high=MAX_WIDTH) for i, width in enumerate(value))


def optimizer(model: Model) -> Optimizer:
    """Return the optimizer, with the default learning rate of its name."""
    chosen, rate = model.optimizer, model.learning_rate
    if isinstance(chosen, Optimizer):
        if rate is not None:
            raise ValueError("learning_rate must be None when optimizer is an Optimizer; set it there")
        return chosen
    name = choice("optimizer", chosen, OPTIMIZERS)
    return Optimizer(name, DEFAULT_LEARNING_RATES[name] if rate is None else rate)


def dtype(model: Model) -> np.dtype[Any]:
    """Return the dtype of parameters: float64 for precision fp64, float32 for every other."""
    return np.dtype(np.float64 if model.precision == "fp64" else np.float32)


def seed(random_state: Any) -> int:
    """Turn scikit-learn's kinds of random state into a Philox key; None draws 63 fresh bits.

    Raises
    ------
    ValueError
        It is none of an integer in [0, 2^64), a RandomState, or None.
    """
    if random_state is None:
        return secrets.randbits(63)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(0, 2**63 - 1, dtype=np.int64))
    is_integer = isinstance(random_state, int | np.integer) and not isinstance(random_state, bool)
    if not is_integer or not 0 <= random_state < 2**64:
        raise ValueError(f"random_state must be an integer in [0, 2^64), a RandomState or None, got {random_state!r}")
    return int(random_state)


def is_fitted(model: Model) -> bool:
    """Return whether a model has been trained, or loaded."""
    return hasattr(model, "state_")


def check_fitted(model: Model) -> None:
    """Refuse a model that has not been trained.

    Raises
    ------
    NotFittedError
        scikit-learn's, which is imported for it alone.
    """
    if not is_fitted(model):
        from sklearn.exceptions import NotFittedError

        raise NotFittedError(
            f"This {type(model).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
            "using this estimator."
        )


def encodes(model: Model) -> bool:
    """Return whether a fitted model's algorithm trains a recognition model."""
    return algorithm_class(model.algorithm_, model.estimator_).encodes


def has_bound(model: Model) -> bool:
    """Return whether a fitted model's algorithm trains a q(z|x) that there is a bound of."""
    return encodes(model) and algorithm_class(model.algorithm_, model.estimator_).has_bound


def check_encodes(model: Model) -> None:
    """Refuse a model whose algorithm trains no recognition model.

    Raises
    ------
    ValueError
        It is a fitted one of algorithm ``"mcem"``.
    """
    check_fitted(model)
    if not encodes(model):
        raise ValueError(
            f"a model trained by algorithm={model.algorithm_!r} has no recognition model q(z|x), so it encodes and "
            "reconstructs nothing; use sample, and log_likelihood with estimator='marginal-likelihood' or 'ais'"
        )


def check_has_bound(model: Model) -> None:
    """Refuse a model that has no bound to be measured.

    Raises
    ------
    ValueError
        It is a fitted one of an algorithm that trains no q(z|x).
    """
    check_encodes(model)
    if not has_bound(model):
        raise ValueError(
            f"a model trained by algorithm={model.algorithm_!r} has no distribution q(z|x) to draw from, so no bound; "
            "compare its reconstructions, or use log_likelihood with estimator='marginal-likelihood' or 'ais'"
        )


def check_unchanged(model: Model) -> None:
    """Refuse to go on with training when what the fitted state depends on was changed after it began.

    Raises
    ------
    ValueError
        Network, algorithm, estimator, optimizer or precision are others than the fitted ones.
    """
    begun, wanted = model.network_, network(model, model.n_features_in_)
    pairs = {name: (getattr(begun, name), value) for name, value in wanted.to_dict().items()}
    pairs["algorithm"], pairs["estimator"] = (model.algorithm_, model.algorithm), (model.estimator_, model.estimator)
    pairs["optimizer"] = model.optimizer_.name, optimizer(model).name
    pairs["dtype of precision"] = model.params_.dtype, dtype(model)
    for name, (before, after) in pairs.items():
        if before != after:
            raise ValueError(f"training began with {name} {before}, not {after}; set it back or fit anew")


def minibatch_rows(model: Model) -> int:
    """Return M, rows of a step of `fit`: `batch_size`, or all rows of the data where they are fewer."""
    return min(int(model.batch_size), model.n_samples_seen_)


def check_batch_size(model: Model) -> None:
    """Refuse to resume `fit` with another minibatch size: a step's number would stand for another place in the data.

    Raises
    ------
    ValueError
        `batch_size` is not that of the steps done.
    """
    state = model.state_
    if state.samples != state.step * minibatch_rows(model):
        before = state.samples // state.step
        raise ValueError(f"training began with batch_size {before}, not {model.batch_size}; set it back or fit anew")


def extra_shapes(model: Model, network: Network, optimizer: Optimizer, n_rows: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what the algorithm carries besides parameters and optimizer state, on N rows."""
    kind = algorithm_class(model.algorithm, model.estimator)
    return kind.extra_shapes(network, n_slots=optimizer.n_slots, n_rows=n_rows)


def check_memory(model: Model, network: Network, optimizer: Optimizer, n_rows: int) -> None:
    """Refuse a model that cannot fit, before the system kills the process for it.

    Raises
    ------
    MemoryError
        Parameters, gradient, optimizer state, the engine's, a checkpoint's and callbacks' copies of them, what the
        algorithm carries besides, one minibatch and the draws of evaluation need more than the machine's memory.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size, itemsize = network.layout.size, dtype(model).itemsize
    rows = min(int(model.batch_size), n_rows) * int(model.n_draws)
    state = size * (1 + optimizer.n_slots) + sum(map(prod, extra_shapes(model, network, optimizer, n_rows).values()))
    kept = sum(state for each in model.callbacks or () if isinstance(each, Rollback))
    kept += sum(size for each in model.callbacks or () if isinstance(each, EarlyStopping) and each.restore_best)
    needed = (
        itemsize * (state + size * (2 + optimizer.n_slots) + size * (1 + optimizer.n_slots))
        + itemsize * 2 * kept  # the old copy goes when the new one is there
        + _NOISE_BYTES
        * max(POOL_DRAWS * network.latent_dim, *(layer.fan_in * layer.fan_out for layer in network.layout.layers))
        + _ACTIVATION_BYTES * rows * (sum(network.encoder_dims) + sum(network.decoder_dims))
    )
    if needed > available:
        raise MemoryError(
            f"{size} parameters and minibatches of {rows} rows need about {needed / 2**30:.0f} GiB, this machine has "
            f"{available / 2**30:.0f} GiB; choose smaller hidden_dims, batch_size or n_draws"
        )


def to_json(model: Model) -> dict[str, Any]:
    """Return the parameters as JSON-serialisable values; callbacks and random_state are left out."""
    names = sorted(inspect.signature(type(model)).parameters.keys() - {"callbacks", "random_state"})
    return {name: _plain(getattr(model, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Optimizer):
        return value.to_dict()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `to_json`'s result into parameters."""
    params: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if isinstance(params.get("optimizer"), dict):
        params["optimizer"] = Optimizer.from_dict(params["optimizer"])
    return params
