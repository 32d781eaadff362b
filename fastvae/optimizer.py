"""The optimizers' names, constants and state sizes; the arithmetic is each backend's ``update``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastvae.arguments import choice, integer, real

__all__ = ["DEFAULT_LEARNING_RATES", "OPTIMIZERS", "Optimizer"]

# name -> number of state values per parameter
OPTIMIZERS = {"adagrad": 1, "adam": 2, "sgd": 1}
DEFAULT_LEARNING_RATES = {"adagrad": 0.02, "adam": 1e-3, "sgd": 1e-3}


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and its constants.

    It ascends the bound. With ``g`` the gradient and ``t`` the number of the step, counted from 1:

    - ``adagrad``: ``s += g^2``; ``w += learning_rate * g / sqrt(s + epsilon)``
    - ``adam``: ``s1 = beta1 s1 + (1 - beta1) g``, ``s2 = beta2 s2 + (1 - beta2) g^2``,
      ``w += learning_rate * s1 / (1 - beta1^t) / (sqrt(s2 / (1 - beta2^t)) + epsilon)``
    - ``sgd``: ``s = momentum s + g``; ``w += learning_rate * s``

    Parameters
    ----------
    name : {"adagrad", "adam", "sgd"}
    learning_rate : float
    momentum, beta1, beta2 : float
        In [0, 1).
    epsilon : float
        In [1e-37, 1): below that it is nothing in float32. Both optimizers that use it default to 1e-8.
    hold_steps : int
        For ``adagrad``: number of first steps that gather squares and leave the parameters alone.

    Raises
    ------
    ValueError
        An unknown name, or a constant that is not a number or out of range.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    hold_steps: int = 0

    def __post_init__(self) -> None:
        choice("optimizer", self.name, OPTIMIZERS)
        for name in ("learning_rate", "momentum", "beta1", "beta2", "epsilon"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        object.__setattr__(self, "hold_steps", integer("hold_steps", self.hold_steps, low=0, high=2**53))
        if not 0 < self.learning_rate <= 1e3:
            raise ValueError(f"learning_rate must lie in (0, 1000], got {self.learning_rate!r}")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        if not 1e-37 <= self.epsilon < 1:
            raise ValueError(f"epsilon must lie in [1e-37, 1), the range of float32, got {self.epsilon!r}")

    @property
    def n_slots(self) -> int:
        """State values per parameter."""
        return OPTIMIZERS[self.name]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Optimizer:
        """Build an optimizer from `to_dict`'s fields."""
        return cls(**fields)
