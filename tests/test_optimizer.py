"""Optimizer constants, and every engine's update against the loops of `naive`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest
from tolerances import assert_close, tolerance

from fastvae.kernels import Engine, Plan
from fastvae.network import Network
from fastvae.optimizer import DEFAULT_LEARNING_RATES, OPTIMIZERS, Optimizer

NETWORKS = [
    Network(1, 1, encoder_hidden=(), decoder_hidden=()),
    Network(7, 3, encoder_hidden=(5,), decoder_hidden=(4,)),
    Network(33, 4, encoder_hidden=(17,), decoder_hidden=(16,), likelihood="gaussian"),
]
RULES = [
    Optimizer("adagrad", learning_rate=0.02),
    Optimizer("adagrad", learning_rate=0.1, epsilon=1e-3, hold_steps=2),
    Optimizer("adam", learning_rate=1e-3),
    Optimizer("adam", learning_rate=0.01, beta1=0.5, beta2=0.9, epsilon=1e-4),
    Optimizer("adam", learning_rate=0.01, beta1=0.0, beta2=0.0),
    Optimizer("sgd", learning_rate=0.1, momentum=0.9),
    Optimizer("sgd", learning_rate=0.1, momentum=0.0),
]


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.learning_rate}-{rule.hold_steps}")
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.layout.size))
def test_update_equals_the_loops(engine: Engine, network: Network, rule: Optimizer, decay: float) -> None:
    """One step from the same values, at the first steps and far into training."""
    draw = np.random.default_rng(0)
    size = network.layout.size
    for precision in engine.PRECISIONS:
        plan = engine.plan(network=network, rows=1, draws=1, precision=precision, n_threads=2)
        dtype = np.float64 if precision == "fp64" else np.float32
        for step in (0, 1, 2, 1000, 10**7):
            params, grad = draw.normal(size=(2, size)).astype(np.float32)
            grad *= np.float32(10.0) ** draw.integers(-6, 3, size)
            grad[0] = 0
            state = np.abs(draw.normal(size=(rule.n_slots, size))).astype(np.float32)
            if step == 0:
                state[:] = 0
            expected = naive.arrays(naive.update(rule, params, grad, state, step=step, decay=decay))
            # the sum of the magnitudes of a slot's terms: what its rounding is measured by
            terms = naive.update(rule, abs(params), abs(grad), abs(state), step=step, decay=-decay)[1]
            params, grad, state = params.astype(dtype), grad.astype(dtype), state.astype(dtype)
            before = params.copy()
            plan.update(optimizer=rule, params=params, grad=grad, state=state, step=step, decay=decay)
            assert_close("params", precision, params, expected[0], label=f"params at step {step}")
            for slot in range(rule.n_slots):
                error = np.abs(state[slot] - expected[1][slot]) / np.maximum(terms[slot], 1e-30)
                assert error.max() <= tolerance("state", precision), f"slot {slot} at step {step}: {error.max():.1e}"
            if rule.name == "adagrad" and step < rule.hold_steps:
                np.testing.assert_array_equal(params, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_ascends(make_plan: Callable[..., Plan], name: str) -> None:
    """A positive gradient raises a parameter; the prior alone pulls it to zero."""
    network = NETWORKS[0]
    rule = Optimizer(name, learning_rate=0.01)
    for gradient, decay in ((1.0, 0.0), (0.0, 0.5)):
        params = np.ones(network.layout.size, np.float32)
        grad = np.full_like(params, gradient)
        state = np.zeros((rule.n_slots, params.size), np.float32)
        make_plan(network, rows=1).update(optimizer=rule, params=params, grad=grad, state=state, step=0, decay=decay)
        assert ((params > 1) if gradient else (params < 1)).all()
        np.testing.assert_array_equal(grad, np.full_like(grad, gradient))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_add_up(engine: Engine, name: str) -> None:
    """Twenty steps in a row against the loops: the state carries over, bias corrections count from 1."""
    network, rule = NETWORKS[1], Optimizer(name, learning_rate=0.05)
    size = network.layout.size
    draw = np.random.default_rng(1)
    start, gradients = draw.normal(size=size).astype(np.float32), draw.normal(size=(20, size)).astype(np.float32)
    expected, slots = list(start), [[0.0] * size for _ in range(rule.n_slots)]
    params, state = start.copy(), np.zeros((rule.n_slots, size), np.float32)
    plan = engine.plan(network=network, rows=1, draws=1, precision="fp32", n_threads=2)
    for step, grad in enumerate(gradients):
        expected, slots = naive.update(rule, expected, grad, slots, step=step, decay=0.1)
        plan.update(optimizer=rule, params=params, grad=grad, state=state, step=step, decay=0.1)
    np.testing.assert_allclose(params, expected, rtol=0, atol=5e-6)
    np.testing.assert_allclose(state, slots, rtol=1e-5, atol=1e-5)


# --- constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "rmsprop"),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", 1001.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("beta1", 1.0),
        ("beta2", float("nan")),
        ("epsilon", 0.0),
        ("epsilon", 1.0),
        ("epsilon", 1e-38),
        ("hold_steps", -1),
        ("hold_steps", 2.5),
        ("hold_steps", True),
        ("learning_rate", "0.1"),
        ("momentum", None),
        ("name", ["adam"]),
    ],
)
def test_bad_constants_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match="optimizer" if field == "name" else field):
        Optimizer(**{field: value})


def test_names_slots_and_rates() -> None:
    assert {name: Optimizer(name).n_slots for name in OPTIMIZERS} == {"adagrad": 1, "adam": 2, "sgd": 1}
    assert DEFAULT_LEARNING_RATES.keys() == OPTIMIZERS.keys()


def test_numpy_scalars_become_plain() -> None:
    rule = Optimizer("adagrad", np.float32(0.5), epsilon=np.float64(1e-8), hold_steps=np.int64(3))
    assert rule == Optimizer("adagrad", 0.5, epsilon=1e-8, hold_steps=3)
    assert [type(value) for value in rule.to_dict().values()] == [str, *[float] * 5, int]


@pytest.mark.parametrize("rule", RULES)
def test_fields_survive_a_dictionary(rule: Optimizer) -> None:
    assert Optimizer.from_dict(rule.to_dict()) == rule


def test_an_optimizer_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RULES[0].name = "sgd"  # type: ignore[misc]
