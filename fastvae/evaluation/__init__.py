"""Evaluation of trained networks, batched through the operations of an engine."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fastvae.evaluation.ais import Sandwich, evaluate_ais, sandwich
from fastvae.evaluation.elbo import DEFAULT_DRAWS, PASSING_DRAWS, Bound, draws_for, evaluate_bound
from fastvae.evaluation.importance import evaluate_importance
from fastvae.evaluation.inference import decode, encode
from fastvae.evaluation.marginal_likelihood import evaluate_marginal_likelihood
from fastvae.evaluation.result import Comparison, LogLikelihood, Result, compare

__all__ = [
    "DEFAULT_DRAWS",
    "ESTIMATORS",
    "PASSING_DRAWS",
    "Bound",
    "Comparison",
    "LogLikelihood",
    "Result",
    "Sandwich",
    "compare",
    "decode",
    "draws_for",
    "encode",
    "evaluate_ais",
    "evaluate_bound",
    "evaluate_importance",
    "evaluate_marginal_likelihood",
    "sandwich",
]

# Of log p(x), by name.
ESTIMATORS: Mapping[str, Callable[..., LogLikelihood]] = MappingProxyType(
    {"importance": evaluate_importance, "marginal-likelihood": evaluate_marginal_likelihood, "ais": evaluate_ais}
)
