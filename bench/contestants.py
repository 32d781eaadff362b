"""Who takes part: our backends in their precisions, the peers, and the measurements of the machine's limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastvae import backends

__all__ = ["LIMITS", "PEERS", "Contestant", "everybody", "ours"]


@dataclass(frozen=True)
class Contestant:
    """One engine, peer or limit.

    Attributes
    ----------
    name, precision : str
    imports : tuple of str
        Modules whose import is timed.
    module : str
        Where ``make`` is.
    options : dict
        Further arguments of ``make``.
    is_ours : bool
    missing : str or None
        Why it cannot run here, as far as that is known beforehand.
    """

    name: str
    precision: str
    imports: tuple[str, ...]
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    is_ours: bool = False
    missing: str | None = None

    @property
    def key(self) -> str:
        """Name and precision."""
        return f"{self.name} {self.precision}"


def _peer(name: str, precision: str, library: str, **options: Any) -> Contestant:
    bf16 = {"bf16": True} if precision == "bf16" else {}
    imports = ("jax", "jax.numpy") if library == "jax" else (library,)
    return Contestant(name, precision, imports, f"fastvae.bench.peers_{library}", {**options, **bf16})


def _limit(what: str, precision: str = "fp32") -> Contestant:
    library = what.partition(" ")[0] if "gemm" in what else "numpy"
    return Contestant(what, precision, (library,), "fastvae.bench.limits", {"what": what})


PEERS = (
    _peer("torch eager", "fp32", "torch"),
    _peer("torch compile", "fp32", "torch", compiled=True),
    _peer("torch max-autotune", "fp32", "torch", compiled=True, mode="max-autotune-no-cudagraphs"),
    _peer("jax", "fp32", "jax"),
    _peer("torch eager", "bf16", "torch"),
    _peer("torch compile", "bf16", "torch", compiled=True),
    _peer("jax", "bf16", "jax"),
)

LIMITS = (
    _limit("numpy sgemm"),
    _limit("torch sgemm"),
    _limit("torch bf16 gemm", "bf16"),
    _limit("copy"),
    _limit("add"),
)


def ours() -> Iterator[Contestant]:
    """Yield every backend in every precision but float64, which is for tests; of an unavailable one, why it is."""
    for name in backends.NAMES:
        reason = backends.unavailable(name)
        engine = None if reason else backends.load(name)
        for precision in engine.PRECISIONS if engine else ("fp32",):
            if precision != "fp64":
                yield Contestant(
                    f"fastvae {name}",
                    precision,
                    (engine.__name__,) if engine else (),  # type: ignore[attr-defined]
                    "fastvae.bench.engines",
                    {"backend": name, "precision": precision},
                    is_ours=True,
                    missing=reason,
                )


def everybody() -> dict[str, Contestant]:
    """Return all engines and peers by key."""
    return {contestant.key: contestant for contestant in (*ours(), *PEERS)}
