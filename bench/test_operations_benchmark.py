"""Time every operation of the contract by itself, for every engine and precision, on the mnist case: ``pytest bench``.

``train_steps`` is one call of as many steps as the case has. Twenty steps by each estimator, fused and of operations.
And what goes on beside the operations: an epoch's order, and the bound of 10,000 rows, evaluated once or repeatedly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from fastvae import backends
from fastvae.bench.cases import CASES
from fastvae.bench.data import Minibatches
from fastvae.data import Dataset
from fastvae.errors import BackendError
from fastvae.evaluation import evaluate_bound
from fastvae.evaluation.inference import batch_rows
from fastvae.evaluation.result import with_hashes_kept
from fastvae.kernels import STEP_ESTIMATORS, Array, Plan
from fastvae.network import initialise
from fastvae.rng import Stream, epoch_order
from fastvae.training.aevb import Buffers
from fastvae.training.algorithm import algorithm_class
from fastvae.training.composed import Composed
from fastvae.training.state import State

CASE = CASES["mnist"]


def engines() -> Iterator[Any]:
    """Every backend in every precision but float64; an absent one is skipped with its reason."""
    for name in backends.NAMES:
        reason = backends.unavailable(name)
        precisions = ("fp32",) if reason else backends.load(name).PRECISIONS
        for precision in precisions:
            if precision != "fp64":
                marks = [pytest.mark.skip(reason=reason)] if reason else []
                yield pytest.param(name, precision, marks=marks, id=f"{name}-{precision}")


@cache
def rows() -> Dataset:
    """Read the rows once."""
    return CASE.load()


def operations(plan: Plan, normal: Callable[..., None]) -> dict[str, Callable[[], None]]:
    """Return every operation with arguments that one training step would give it."""
    network, optimizer = CASE.network, CASE.optimizer
    data = rows()
    order = Minibatches(data.n_rows, CASE.batch_size).take(CASE.steps)
    b = Buffers.allocate(network, CASE.batch_size, 1)
    params = initialise(network, seed=0)
    state = np.zeros((optimizer.n_slots, params.size), np.float32)
    z, dz = b.z[0], b.dz[0]
    noise: dict[str, Any] = {"scale": data.scale, "binarize": "none", "seed": 0, "step": 0}
    encoder: dict[str, Any] = {"params": params, "x": b.x, "hidden": b.encoder_hidden}
    decoder: dict[str, Any] = {"params": params, "z": z, "hidden": b.decoder_hidden}
    latent: dict[str, Array] = {"mu": b.mu, "logvar": b.logvar, "eps": b.eps}
    scale = 1 / CASE.batch_size
    return {
        "gather_binarized": partial(
            plan.gather, data=data.rows, index=order[0], x=b.x, **noise | {"binarize": "dynamic"}
        ),
        "gather": partial(plan.gather, data=data.rows, index=order[0], x=b.x, **noise),
        "normal": partial(normal, seed=0, step=0, stream=Stream.LATENT, out=b.eps),
        "encoder_forward": partial(plan.encoder_forward, mu=b.mu, logvar=b.logvar, **encoder),
        "latent_forward": partial(plan.latent_forward, z=b.z, kl=b.kl, **latent),
        "latent_forward_sampled": partial(plan.latent_forward_sampled, z=b.z, kl=b.sampled_kl, **latent),
        "decoder_forward": partial(plan.decoder_forward, out=b.out, **decoder),
        "likelihood": partial(plan.likelihood, x=b.x, out=b.out, scale=scale, log_px=b.log_px, dout=b.dout),
        "likelihood_mean": partial(plan.likelihood_mean, out=b.out, mean=np.empty_like(b.x)),
        "likelihood_sample": partial(plan.likelihood_sample, out=b.out, seed=0, step=0, x=np.empty_like(b.x)),
        "decoder_backward": partial(plan.decoder_backward, dout=b.dout, dz=dz, grad=b.grad, **decoder),
        "latent_backward": partial(
            plan.latent_backward, dz=b.dz, kl_scale=scale, dmu=b.dmu, dlogvar=b.dlogvar, **latent
        ),
        "latent_backward_sampled": partial(
            plan.latent_backward_sampled,
            dz=b.dz,
            weight=np.full_like(b.weight, scale),
            dmu=b.dmu,
            dlogvar=b.dlogvar,
            **latent,
        ),
        "encoder_backward": partial(plan.encoder_backward, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad, **encoder),
        "log_joint": partial(plan.log_joint, params=params, x=b.x, z=z, log_pxz=b.log_px, dz=dz),
        "update": partial(plan.update, optimizer=optimizer, params=params, grad=b.grad, state=state, step=0, decay=0.0),
        "train_steps": partial(
            plan.train_steps,
            params=params,
            state=state,
            optimizer=optimizer,
            data=data.rows,
            order=order,
            estimator="sgvb-b",
            kl_weight=1.0,
            kl_warmup=0,
            decay=0.0,
            stats=np.empty((len(order), 2)),
            done=np.zeros(1, np.int64),
            **noise,
        ),
    }


NAMES = (
    *("gather_binarized", "gather", "normal", "encoder_forward", "latent_forward", "latent_forward_sampled"),
    *("decoder_forward", "likelihood", "likelihood_mean", "likelihood_sample", "decoder_backward", "latent_backward"),
    *("latent_backward_sampled", "encoder_backward", "log_joint", "update", "train_steps"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("backend", "precision"), list(engines()))
def test_operation(benchmark: Any, backend: str, precision: str, name: str) -> None:
    engine = backends.load(backend)
    try:
        plan = engine.plan(
            CASE.network, rows=CASE.batch_size, draws=1, precision=precision, n_threads=backends.default_threads()
        )
    except BackendError as error:
        pytest.skip(str(error))
    every = operations(plan, engine.normal)
    assert set(every) == set(NAMES)
    for before in NAMES[: NAMES.index(name) + 1]:  # an operation reads what those before it have written
        every[before]()
    benchmark.group = name
    benchmark(every[name])


@pytest.mark.parametrize("way", ["fused", "of operations"])
@pytest.mark.parametrize("estimator", STEP_ESTIMATORS)
@pytest.mark.parametrize(("backend", "precision"), list(engines()))
def test_estimator(benchmark: Any, backend: str, precision: str, estimator: str, way: str) -> None:
    """The importance-weighted bound of five draws, the others of one."""
    engine, data = backends.load(backend), rows()
    sizes: dict[str, Any] = {"rows": CASE.batch_size, "draws": 5 if estimator == "iwae" else 1, "precision": precision}
    try:
        plan = engine.plan(CASE.network, n_threads=backends.default_threads(), **sizes)
    except BackendError as error:
        pytest.skip(str(error))
    kind = algorithm_class(*(("wake-sleep", "sgvb-b") if estimator == "wake-sleep" else ("aevb", estimator)))
    constants: dict[str, Any] = {"binarize": "none", "seed": 0, "kl_weight": 1.0, "kl_warmup": 0, "decay": 0.0}
    algorithm = kind(engine, plan, CASE.optimizer, dataset=data, **constants)
    params = initialise(CASE.network, seed=0)
    state = State(params, np.zeros((CASE.optimizer.n_slots, params.size), np.float32))
    order = Minibatches(data.n_rows, CASE.batch_size).take(20)
    outputs: dict[str, Array] = {"stats": np.empty((len(order), 2)), "done": np.zeros(1, np.int64)}
    advance = algorithm.advance if way == "fused" else partial(Composed.advance, algorithm)
    benchmark.group = f"20 steps of {estimator}, {backend} {precision}"
    benchmark(advance, state, order=order, **outputs)
    assert outputs["done"][0] == 20


@pytest.mark.parametrize("way", ["C++", "NumPy"])
def test_epoch_order(benchmark: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    reason = backends.unavailable("cpp")
    if way == "C++" and reason:
        pytest.skip(reason)
    if way == "NumPy":
        monkeypatch.setattr(backends, "unavailable", lambda name: f"no {name}")
    benchmark.group = "epoch_order"
    benchmark(epoch_order, 60000, seed=0, epoch=0)


@pytest.mark.parametrize("kept", [False, True], ids=["once", "hashes kept"])
def test_bound(benchmark: Any, kept: bool) -> None:
    engine, data = backends.load(), rows().select(slice(10000))
    plan = engine.plan(
        CASE.network, rows=batch_rows(CASE.network), draws=1, precision="fp32", n_threads=backends.default_threads()
    )
    data = with_hashes_kept(data) if kept else data
    benchmark.group = "bound of 10,000 rows"
    benchmark(evaluate_bound, plan, initialise(CASE.network, seed=0), data, n_draws=1, seed=0)
