"""The engine's plans of a model, kept from call to call: workspaces are no part of its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastvae import backends, settings
from fastvae.evaluation.inference import CACHED_VALUES, batch_rows

if TYPE_CHECKING:
    from fastvae.kernels import Plan
    from fastvae.model import Model

__all__ = ["inference_plan", "training_plan"]

# use -> what a plan was built of, and the plan, of every model
_PLANS: WeakKeyDictionary[Model, dict[str, tuple[Any, Plan]]] = WeakKeyDictionary()


def training_plan(model: Model) -> Plan:
    """Return the plan for minibatches of the model's size."""
    return _plan(model, "training", rows=settings.minibatch_rows(model), draws=int(model.n_draws))


def inference_plan(model: Model) -> Plan:
    """Return the plan for encoding, decoding and evaluation."""
    values = getattr(backends.load(model.backend), "INFERENCE_VALUES", CACHED_VALUES)
    return _plan(model, "inference", rows=batch_rows(model.network_, values), draws=1)


def _plan(model: Model, use: str, *, rows: int, draws: int) -> Plan:
    """Return the plan for a use, built anew only when what it was built of has changed."""
    key = (model.network_, model.backend, model.precision, model.n_threads, rows, draws)
    plans = _PLANS.setdefault(model, {})
    if use not in plans or plans[use][0] != key:
        plan = backends.load(model.backend).plan(
            model.network_,
            rows=rows,
            draws=draws,
            precision=model.precision,
            n_threads=model.n_threads or backends.default_threads(),
        )
        plans[use] = (key, plan)
    return plans[use][1]
