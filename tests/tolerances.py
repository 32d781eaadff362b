"""The one table of tolerances, and the comparison that uses it.

The error of a tensor is the largest difference between two entries as a share of the largest expected entry: an entry
whose terms cancel is judged by the size of its tensor, not by its own smallness. The limits of operations are two to
three times the largest error measured over all cases, engines and instruction sets (float64: about 1e-15 everywhere).

The modes bf16 and tf32 are compared with `reduced.RoundedReference`, which rounds the same operands. Most tensors agree
as in float32 (median error 4e-8); a value beside a rounding boundary may fall to its other side, 2^-8 or 2^-11 away, by
the order of a sum, and ten steps amplify that. So their limits allow for one such value among the largest (measured:
hidden 2e-3 and 5e-4, out 1.6e-4 and 1.2e-4, logvar 3e-5 and 4.5e-4), and half of a tensor's entries must lie within a
twentieth of them. An operand that is not rounded at all would be off by 1e-3 and 1e-4 everywhere. In ten steps a relu
may change sides by it (measured: 2.4e-2 of tf32's parameters, else 1e-3). Only "autograd" compares with exact operands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# name -> (float32, float64, tf32 products, bfloat16 products, reason)
TOLERANCES: dict[str, tuple[float, float, float, float, str]] = {
    "x": (2e-7, 1e-15, 2e-7, 2e-7, "scale, product and float64 data each rounded once: 1.5 ulp of 1.2e-7"),
    "hidden": (2e-6, 1e-14, 1e-3, 4e-3, "sum of up to 785 products, then an activation of a few ulp; measured 7e-7"),
    "mu": (2e-6, 1e-14, 1e-3, 1e-4, "sum of up to 500 products; measured 6e-7"),
    "logvar": (2e-6, 1e-14, 1e-3, 1e-4, "sum of up to 500 products; measured 5e-7"),
    "z": (6e-7, 1e-14, 6e-7, 6e-7, "one exp of a few ulp, a product and a sum; measured 2e-7"),
    "kl": (4e-7, 1e-14, 4e-7, 4e-7, "sum over J of positive terms with one exp each; measured 1.3e-7"),
    "sampled_kl": (6e-6, 4e-14, 6e-6, 6e-6, "sum over J of terms of either sign; measured 2e-6 where one is alone"),
    "sample": (8e-7, 1e-14, 8e-7, 8e-7, "mean, one exp and a normal of a few ulp; measured 3.1e-7"),
    "out": (3e-6, 1e-14, 3e-4, 4e-4, "sum of up to 500 products, which cancel where D is 1; measured 1.2e-6"),
    "log_px": (8e-7, 1e-14, 8e-7, 8e-7, "sum over D of terms with exp and log1p; measured 2.6e-7"),
    "dout": (1e-6, 1e-14, 1e-6, 1e-6, "exp(-logvar), a squared error and two slopes, each a few ulp; measured 3.3e-7"),
    "mean": (3e-7, 1e-14, 3e-7, 3e-7, "one sigmoid; measured 9e-8"),
    "dz": (3e-6, 1e-14, 3e-4, 1.5e-3, "chain of up to four products with sums of up to 1570 terms; measured 9e-7"),
    "dmu": (3e-7, 1e-14, 3e-7, 3e-7, "sum over L; measured 9e-8"),
    "dlogvar": (5e-7, 1e-14, 5e-7, 5e-7, "sum over L and two exp; measured 1.7e-7"),
    "sampled_dmu": (1e-6, 1e-14, 1e-6, 1e-6, "sum over L of differences with one exp; measured 3.6e-7"),
    "sampled_dlogvar": (1e-6, 1e-14, 1e-6, 1e-6, "sum over L of differences, and two exp; measured 3.7e-7"),
    "grad": (2e-6, 1e-14, 5e-4, 2e-3, "chain of up to four products, then a sum over rows; measured 7e-7"),
    "log_pxz": (1e-6, 1e-14, 1e-5, 1e-6, "decoder, likelihood and prior together; measured 2.9e-7"),
    "params": (3e-7, 1e-14, 3e-7, 3e-7, "one update: a product, a root and a quotient; measured 1e-7"),
    "state": (
        6e-7,
        1e-14,
        6e-7,
        6e-7,
        "two products and a sum rounded: 2.5 ulp of 1.2e-7, of the sum of magnitudes",
    ),
    "trajectory": (1e-4, 1e-10, 5e-2, 0.2, "norm-wise after ten steps: the project's promise; measured 4e-5"),
    "stats": (1e-5, 1e-11, 1e-2, 2e-2, "mean bound of a minibatch within those ten steps"),
    "autograd": (2e-6, 1e-14, 2e-2, 2e-2, "norm-wise, one whole step; measured 5e-7"),
}


def tolerance(name: str, precision: str) -> float:
    """Return the tolerance of a tensor in a precision."""
    return dict(zip(("fp32", "fp64", "tf32", "bf16"), TOLERANCES[name][:4], strict=True))[precision]


def relative_error(actual: Any, expected: Any) -> float:
    """Largest difference as a share of the largest expected entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(expected).all(), "the expected values are not finite"
    assert np.isfinite(actual).all(), "not finite"
    if not expected.size:
        return 0.0
    largest = np.abs(expected).max()
    return float(np.abs(actual - expected).max() / (largest if largest else 1.0))


def relative_norm(actual: Any, expected: Any) -> float:
    """Norm of the difference as a share of the expected norm."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(actual).all(), "not finite"
    largest = np.linalg.norm(expected)
    return float(np.linalg.norm(actual - expected) / (largest if largest else 1.0))


def assert_close(name: str, precision: str, actual: Any, expected: Any, label: str = "") -> None:
    """Compare one tensor by its row of the table."""
    error, limit = relative_error(actual, expected), tolerance(name, precision)
    assert error <= limit, f"{label or name} ({precision}): error {error:.2e} above {limit:.0e}"
    if limit > tolerance(name, "fp32"):
        differences = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64))
        median = float(np.median(differences) / max(np.abs(expected).max(), np.finfo(np.float64).tiny))
        assert median <= limit / 20, f"{label or name} ({precision}): median error {median:.2e} above {limit / 20:.0e}"
