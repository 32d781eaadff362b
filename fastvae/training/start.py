"""A model at step 0, from whatever parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastvae import settings
from fastvae.training.algorithm import algorithm_class
from fastvae.training.state import State

if TYPE_CHECKING:
    from fastvae.kernels import Array
    from fastvae.model import Model
    from fastvae.network import Network

__all__ = ["begin"]


def begin(model: Model, network: Network, params: Array, *, n_rows: int) -> None:
    """Set what a model is trained as, and the state of step 0. Its `seed_` is set already.

    Parameters
    ----------
    model : Model
    network : Network
    params : ndarray of shape (P,)
    n_rows : int
        N, which Monte Carlo EM keeps a state for.
    """
    model.network_, model.optimizer_ = network, settings.optimizer(model)
    model.algorithm_, model.estimator_ = model.algorithm, model.estimator
    model.n_features_in_ = network.data_dim
    params = params.astype(settings.dtype(model), copy=False)
    kind = algorithm_class(model.algorithm, model.estimator)
    shapes = settings.extra_shapes(model, network, model.optimizer_, n_rows)
    extra = {name: np.zeros(shape, params.dtype) for name, shape in shapes.items()}
    kind.initialise_extra(extra, seed=model.seed_)
    slots = np.zeros((model.optimizer_.n_slots, network.layout.size), params.dtype)
    model.state_ = State(params, slots, sums=np.zeros(len(kind.statistics)), extra=extra)
