"""Evaluation of trained networks, batched through the operations of an engine."""

from fastvae.evaluation.elbo import DEFAULT_DRAWS, PASSING_DRAWS, Bound, evaluate_bound
from fastvae.evaluation.inference import decode, encode

__all__ = ["DEFAULT_DRAWS", "PASSING_DRAWS", "Bound", "decode", "encode", "evaluate_bound"]
