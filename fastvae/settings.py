"""The estimator's parameters: their checks, what is derived from them, and their JSON form."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae import backends
from fastvae.errors import BackendError
from fastvae.network import Network
from fastvae.optimizer import DEFAULT_LEARNING_RATES, OPTIMIZERS, Optimizer

if TYPE_CHECKING:
    from fastvae.vae import VAE

__all__ = [
    "TRAINING_BINARIZE",
    "check",
    "check_memory",
    "check_unchanged",
    "dtype",
    "from_json",
    "integer",
    "isa_level",
    "network",
    "optimizer",
    "seed",
    "to_json",
]

TRAINING_BINARIZE = ("none", "dynamic", "fixed")

# Philox of a layer's initial weights, and the activations of forward and backward: bytes per value, roughly.
_INIT_BYTES, _ACTIVATION_BYTES = 48, 12


def integer(name: str, value: Any, *, low: int, high: int = 2**31 - 1) -> int:
    """Return an integer parameter, or raise ValueError naming its range."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return int(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check(model: VAE) -> None:
    """Check every parameter that does not depend on the data.

    Raises
    ------
    ValueError, TypeError
        A parameter is out of range.
    BackendError
        The backend or precision is not available.
    """
    network(model, 1)
    optimizer(model)
    for name, low, high in (("batch_size", 1, 2**24), ("n_epochs", 1, 2**31 - 1), ("n_draws", 1, 2**16)):
        integer(name, getattr(model, name), low=low, high=high)
    integer("kl_warmup", model.kl_warmup, low=0, high=2**53)
    if model.n_threads is not None:
        integer("n_threads", model.n_threads, low=1, high=4096)
    for name in ("kl_weight", "scale"):
        value = getattr(model, name)
        if value is None and name == "scale":
            continue
        if not _is_real(value) or not 0 <= value < np.inf:
            raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")
    if not isinstance(model.prior, bool | np.bool_):
        raise ValueError(f"prior must be True or False, got {model.prior!r}")
    if model.binarize not in TRAINING_BINARIZE:
        raise ValueError(f"binarize must be one of {', '.join(TRAINING_BINARIZE)}, got {model.binarize!r}")
    if model.binarize != "none" and model.likelihood != "bernoulli":
        raise ValueError(f"binarize={model.binarize!r} makes pixels 0 or 1; it needs likelihood='bernoulli'")
    init: Any = model.init
    if init != "fan_in" and not (_is_real(init) and 0 < init < np.inf):
        raise ValueError(f"init must be 'fan_in' or a positive standard deviation, got {init!r}")
    engine = backends.load(model.backend)
    if model.precision not in engine.PRECISIONS:
        raise BackendError(
            f"backend {engine.NAME!r} has no precision {model.precision!r} here; "
            f"choose one of {', '.join(engine.PRECISIONS)}"
        )


def network(model: VAE, data_dim: int) -> Network:
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
    return tuple(integer(f"{name}[{i}]", width, low=1, high=2**24) for i, width in enumerate(value))


def optimizer(model: VAE) -> Optimizer:
    """Return the optimizer, with the default learning rate of its name."""
    chosen, rate = model.optimizer, model.learning_rate
    if isinstance(chosen, Optimizer):
        if rate is not None:
            raise ValueError("learning_rate must be None when optimizer is an Optimizer; set it there")
        return chosen
    if chosen not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {chosen!r}")
    if rate is not None and not _is_real(rate):
        raise ValueError(f"learning_rate must be a number, got {rate!r}")
    return Optimizer(chosen, DEFAULT_LEARNING_RATES[chosen] if rate is None else float(rate))


def dtype(model: VAE) -> np.dtype[Any]:
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


def check_unchanged(model: VAE) -> None:
    """Refuse to go on with training when what the fitted state depends on was changed after it began.

    Raises
    ------
    ValueError
        Network, optimizer or precision are others than the fitted ones.
    """
    begun, wanted = model.network_, network(model, model.n_features_in_)
    pairs = {name: (getattr(begun, name), value) for name, value in wanted.to_dict().items()}
    pairs["optimizer"] = model.optimizer_.name, optimizer(model).name
    pairs["dtype of precision"] = model.params_.dtype, dtype(model)
    for name, (before, after) in pairs.items():
        if before != after:
            raise ValueError(f"training began with {name} {before}, not {after}; set it back or fit anew")


def check_memory(model: VAE, network: Network, optimizer: Optimizer) -> None:
    """Refuse a model that cannot fit, before the system kills the process for it.

    Raises
    ------
    MemoryError
        Parameters, optimizer state and one minibatch need more than the machine's memory.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size, itemsize = network.layout.size, dtype(model).itemsize
    rows = int(model.batch_size) * int(model.n_draws)
    needed = (
        size * itemsize * (2 + optimizer.n_slots)
        + _INIT_BYTES * max(layer.fan_in * layer.fan_out for layer in network.layout.layers)
        + _ACTIVATION_BYTES * rows * (sum(network.encoder_dims) + sum(network.decoder_dims))
    )
    if needed > available:
        raise MemoryError(
            f"{size} parameters and minibatches of {rows} rows need about {needed / 2**30:.0f} GiB, this machine has "
            f"{available / 2**30:.0f} GiB; choose smaller hidden_dims, batch_size or n_draws"
        )


def isa_level(engine: Any) -> str | None:
    """Return the instruction set that an engine runs on, or None for one without levels."""
    level = getattr(engine, "isa_level", None)
    return None if level is None else str(level() if callable(level) else level)


def to_json(model: VAE) -> dict[str, Any]:
    """Return the estimator's parameters as JSON-serialisable values; callbacks and random_state are left out."""
    values = model.get_params(deep=False)
    return {name: _plain(value) for name, value in values.items() if name not in ("callbacks", "random_state")}


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
