"""Every operation of every engine against the loops of `naive` (tiny shapes) and the float64 reference (larger)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import naive
import numpy as np
import pytest
import reduced
import scipy.sparse
from tolerances import assert_close, tolerance

from fastvae import backends, rng
from fastvae.kernels import BINARIZE, Array, Engine, Plan
from fastvae.network import ACTIVATIONS, Network

DTYPES = {"fp32": np.float32, "fp64": np.float64, "tf32": np.float32, "bf16": np.float32}
SCALE, KL_SCALE = 0.125, 0.3
SEED, STEP = 2**63 + 5, 2**33 + 1


@dataclass(frozen=True)
class Case:
    """Shapes and functions of one network, and the rows and draws that it is run on."""

    data_dim: int
    encoder_hidden: tuple[int, ...]
    decoder_hidden: tuple[int, ...]
    latent_dim: int
    rows: int
    draws: int
    activation: str = "tanh"
    likelihood: str = "bernoulli"
    mean: str = "sigmoid"
    truth: str = "naive"

    @property
    def network(self) -> Network:
        return Network(
            self.data_dim,
            self.latent_dim,
            encoder_hidden=self.encoder_hidden,
            decoder_hidden=self.decoder_hidden,
            activation=self.activation,
            likelihood=self.likelihood,
            mean=self.mean,
            logvar_floor=-4.0,
        )

    def __str__(self) -> str:
        widths = "-".join(map(str, (self.data_dim, *self.encoder_hidden, "J", *self.decoder_hidden)))
        shape = f"{widths.replace('J', str(self.latent_dim))}-M{self.rows}-L{self.draws}"
        return f"{shape}-{self.activation}-{self.likelihood}-{self.mean}"


KINDS = [
    ("tanh", "bernoulli", "sigmoid"),
    ("relu", "bernoulli", "sigmoid"),
    ("softplus", "bernoulli", "sigmoid"),
    ("sigmoid", "bernoulli", "sigmoid"),
    ("tanh", "gaussian", "sigmoid"),
    ("softplus", "gaussian", "identity"),
]
TINY = [
    (1, (), (), 1, 1, 1),
    (5, (), (), 2, 3, 2),
    (9, (7,), (7,), 3, 4, 1),
    (6, (7, 1), (1, 7), 1, 2, 5),
    (4, (3, 5, 2), (2, 3, 4), 2, 3, 2),
    (17, (8,), (9,), 8, 1, 1),
]
LARGE = [  # one below, at and above 8, 16, 32 and multiples, on every axis
    (7, (8,), (9,), 1, 16, 1),
    (8, (9,), (7,), 8, 17, 2),
    (15, (16,), (17,), 7, 1, 5),
    (16, (17,), (15,), 9, 15, 1),
    (17, (15,), (16,), 16, 31, 2),
    (31, (32, 33), (31, 32), 15, 32, 1),
    (32, (31,), (33,), 17, 33, 1),
    (33, (), (), 2, 8, 5),
    (63, (65,), (64,), 3, 7, 2),
    (64, (63, 17, 9), (9, 17, 65), 31, 9, 1),
    (129, (127,), (128,), 33, 64, 1),
    (785, (100,), (101,), 20, 21, 1),
    (1, (500,), (500,), 1, 3, 2),
]
CASES = [Case(*shape, *kind) for shape in TINY for kind in KINDS]
CASES += [Case(*shape, *KINDS[(i + k) % 6], truth="reference") for i, shape in enumerate(LARGE) for k in (0, 3, 4)]

# operation -> its inputs, as named in `inputs_of`
OPERATIONS = {
    "encoder_forward": ("params", "x"),
    "latent_forward": ("mu", "logvar", "eps"),
    "decoder_forward": ("params", "z"),
    "latent_forward_sampled": ("mu", "logvar", "eps"),
    "likelihood": ("x", "out"),
    "likelihood_mean": ("out",),
    "likelihood_sample": ("out",),
    "decoder_backward": ("params", "z", "decoder_hidden", "dout"),
    "latent_backward": ("mu", "logvar", "eps", "dz"),
    "latent_backward_sampled": ("mu", "logvar", "eps", "dz", "weight"),
    "encoder_backward": ("params", "x", "encoder_hidden", "dmu", "dlogvar"),
    "log_joint": ("params", "x", "z"),
}


@cache
def inputs_of(case: Case) -> dict[str, Any]:
    """Random inputs of every operation, float64 arrays that float32 holds exactly."""
    network, M, L, J, D = case.network, case.rows, case.draws, case.latent_dim, case.data_dim
    R, draw = L * M, np.random.default_rng(7)

    def normals(*shape: int) -> Array:
        return draw.normal(size=shape).astype(np.float32).astype(np.float64)

    def activated(rows: int, widths: tuple[int, ...]) -> tuple[Array, ...]:
        function = np.vectorize(lambda a: naive.activate(case.activation, a), otypes=[float])
        return tuple(function(normals(rows, width)).astype(np.float32).astype(np.float64) for width in widths)

    params = np.empty(network.layout.size)
    for layer in network.layout.layers:
        layer.weight(params)[:] = normals(layer.fan_in, layer.fan_out) / np.sqrt(layer.fan_in)
        layer.bias(params)[:] = 0.3 * normals(layer.fan_out)
    x = draw.random((M, D)) * (draw.random((M, D)) < 0.6)
    x[:, -1] = np.arange(M) % 2  # exact 0 and 1
    return {
        "params": params.astype(np.float32).astype(np.float64),
        "x": x.astype(np.float32).astype(np.float64),
        "mu": normals(M, J),
        "logvar": normals(M, J),
        "eps": normals(L, M, J),
        "z": normals(R, J),
        "encoder_hidden": activated(M, case.encoder_hidden),
        "decoder_hidden": activated(R, case.decoder_hidden),
        "out": normals(R, network.decoder_dims[-1]),
        "dout": normals(R, network.decoder_dims[-1]),
        "dz": normals(L, M, J),
        "dmu": normals(M, J),
        "dlogvar": normals(M, J),
        "weight": draw.random((L, M)).astype(np.float32).astype(np.float64),
    }


class PlanOperations:
    """A plan's operations as functions of their inputs that return their outputs by name."""

    def __init__(self, engine: Engine, network: Network, *, rows: int, draws: int = 1, precision: str = "fp32") -> None:
        self.plan: Plan = engine.plan(network=network, rows=rows, draws=draws, precision=precision, n_threads=2)
        self.network, self.dtype = network, DTYPES[precision]

    def run(self, operation: str, *inputs: Any) -> dict[str, Array]:
        cast = [tuple(map(self.cast, value)) if isinstance(value, tuple) else self.cast(value) for value in inputs]
        outputs: dict[str, Array] = getattr(self, operation)(*cast)
        return outputs

    def cast(self, value: Array) -> Array:
        return np.ascontiguousarray(value, self.dtype)

    def empty(self, *shape: int) -> Array:
        return np.full(shape, np.nan, self.dtype)

    def hidden(self, rows: int, widths: tuple[int, ...]) -> tuple[Array, ...]:
        return tuple(self.empty(rows, width) for width in widths)

    def encoder_forward(self, params: Array, x: Array) -> dict[str, Array]:
        hidden = self.hidden(len(x), self.network.encoder_hidden)
        mu, logvar = self.empty(len(x), self.network.latent_dim), self.empty(len(x), self.network.latent_dim)
        self.plan.encoder_forward(params=params, x=x, hidden=hidden, mu=mu, logvar=logvar)
        return {**named(hidden), "mu": mu, "logvar": logvar}

    def latent_forward(self, mu: Array, logvar: Array, eps: Array) -> dict[str, Array]:
        z, kl = self.empty(*eps.shape), self.empty(len(mu))
        self.plan.latent_forward(mu=mu, logvar=logvar, eps=eps, z=z, kl=kl)
        return {"z": z, "kl": kl}

    def latent_forward_sampled(self, mu: Array, logvar: Array, eps: Array) -> dict[str, Array]:
        z, kl = self.empty(*eps.shape), self.empty(*eps.shape[:2])
        self.plan.latent_forward_sampled(mu=mu, logvar=logvar, eps=eps, z=z, kl=kl)
        return {"z": z, "sampled_kl": kl}

    def decoder_forward(self, params: Array, z: Array) -> dict[str, Array]:
        hidden = self.hidden(len(z), self.network.decoder_hidden)
        out = self.empty(len(z), self.network.decoder_dims[-1])
        self.plan.decoder_forward(params=params, z=z, hidden=hidden, out=out)
        return {**named(hidden), "out": out}

    def likelihood(self, x: Array, out: Array) -> dict[str, Array]:
        log_px, dout = self.empty(len(out)), self.empty(*out.shape)
        self.plan.likelihood(x=x, out=out, scale=SCALE, log_px=log_px, dout=dout)
        return {"log_px": log_px, "dout": dout}

    def likelihood_mean(self, out: Array) -> dict[str, Array]:
        mean = self.empty(len(out), self.network.data_dim)
        self.plan.likelihood_mean(out=out, mean=mean)
        return {"mean": mean}

    def likelihood_sample(self, out: Array) -> dict[str, Array]:
        x = self.empty(len(out), self.network.data_dim)
        self.plan.likelihood_sample(out=out, seed=SEED, step=STEP, x=x)
        return {"sample": x}

    def decoder_backward(self, params: Array, z: Array, hidden: tuple[Array, ...], dout: Array) -> dict[str, Array]:
        dz, grad = self.empty(*z.shape), np.zeros_like(params)
        self.plan.decoder_backward(params=params, z=z, hidden=hidden, dout=dout, dz=dz, grad=grad)
        return {"dz": dz, "grad": grad}

    def latent_backward(self, mu: Array, logvar: Array, eps: Array, dz: Array) -> dict[str, Array]:
        dmu, dlogvar = self.empty(*mu.shape), self.empty(*mu.shape)
        self.plan.latent_backward(mu=mu, logvar=logvar, eps=eps, dz=dz, kl_scale=KL_SCALE, dmu=dmu, dlogvar=dlogvar)
        return {"dmu": dmu, "dlogvar": dlogvar}

    def latent_backward_sampled(
        self, mu: Array, logvar: Array, eps: Array, dz: Array, weight: Array
    ) -> dict[str, Array]:
        dmu, dlogvar = self.empty(*mu.shape), self.empty(*mu.shape)
        self.plan.latent_backward_sampled(mu=mu, logvar=logvar, eps=eps, dz=dz, weight=weight, dmu=dmu, dlogvar=dlogvar)
        return {"sampled_dmu": dmu, "sampled_dlogvar": dlogvar}

    def encoder_backward(
        self, params: Array, x: Array, hidden: tuple[Array, ...], dmu: Array, dlogvar: Array
    ) -> dict[str, Array]:
        grad = np.zeros_like(params)
        self.plan.encoder_backward(params=params, x=x, hidden=hidden, dmu=dmu, dlogvar=dlogvar, grad=grad)
        return {"grad": grad}

    def log_joint(self, params: Array, x: Array, z: Array) -> dict[str, Array]:
        log_pxz, dz = self.empty(len(z)), self.empty(*z.shape)
        self.plan.log_joint(params=params, x=x, z=z, log_pxz=log_pxz, dz=dz)
        return {"log_pxz": log_pxz, "dz": dz}


class NaiveOperations:
    """The same functions from `naive`."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def run(self, operation: str, *inputs: Any) -> dict[str, Array]:
        with_network = not operation.startswith("latent")
        constants: Any = {"likelihood": (SCALE,), "latent_backward": (KL_SCALE,), "likelihood_sample": (SEED, STEP)}
        constants = constants.get(operation, ())
        arguments = (self.network, *inputs, *constants) if with_network else (*inputs, *constants)
        outputs = naive.arrays(getattr(naive, operation)(*arguments))
        if operation.endswith("coder_forward"):
            names = ("mu", "logvar") if operation == "encoder_forward" else ("out",)
            return {**named(outputs[0]), **dict(zip(names, outputs[1:], strict=True))}
        if not isinstance(outputs, tuple):
            return {{"likelihood_mean": "mean", "likelihood_sample": "sample"}.get(operation, "grad"): outputs}
        names = {
            "latent_forward": ("z", "kl"),
            "latent_forward_sampled": ("z", "sampled_kl"),
            "likelihood": ("log_px", "dout"),
            "decoder_backward": ("dz", "grad"),
            "latent_backward": ("dmu", "dlogvar"),
            "latent_backward_sampled": ("sampled_dmu", "sampled_dlogvar"),
            "log_joint": ("log_pxz", "dz"),
        }[operation]
        return dict(zip(names, outputs, strict=True))


def named(hidden: tuple[Array, ...]) -> dict[str, Array]:
    return {f"hidden[{i}]": layer for i, layer in enumerate(hidden)}


@cache
def expected_of(case: Case, operation: str, *, operands: str | None) -> dict[str, Array]:
    """Outputs of an operation by the case's truth, or by that of a mode of reduced precision."""
    values = [inputs_of(case)[name] for name in OPERATIONS[operation]]
    if case.truth == "naive" and operands is None:
        return NaiveOperations(case.network).run(operation, *values)
    engine: Any = reduced.ReducedEngine(operands) if operands else backends.load("reference")
    truth = PlanOperations(engine, case.network, rows=case.rows, draws=case.draws, precision="fp64")
    return truth.run(operation, *values)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation(engine: Engine, case: Case, operation: str) -> None:
    values = [inputs_of(case)[name] for name in OPERATIONS[operation]]
    for precision in engine.PRECISIONS:
        if case.truth == "reference" and precision == "fp64":
            continue  # it is the truth here
        plan = PlanOperations(engine, case.network, rows=case.rows, draws=case.draws, precision=precision)
        actual = plan.run(operation, *values)
        operands = precision if precision in reduced.FORMATS else None
        for name, expected in expected_of(case, operation, operands=operands).items():
            if name == "sample" and case.likelihood == "bernoulli":
                assert_same_bits_drawn(actual[name], expected, values[0], tolerance("mean", precision))
            else:
                assert_close(name.split("[")[0], precision, actual[name], expected, label=f"{operation}: {name}")


def assert_same_bits_drawn(actual: Array, expected: Array, logits: Array, limit: float) -> None:
    """[u < sigmoid(a)] everywhere but where u is as close to it as the sigmoid's rounding."""
    assert np.isin(actual, (0, 1)).all()
    u = rng.uniform(seed=SEED, step=STEP, stream=rng.Stream.DREAM, shape=logits.shape)
    distance = np.abs(u - 1 / (1 + np.exp(-logits)))
    assert (actual == expected)[distance > limit].all()


# --- gather ---------------------------------------------------------------------------------------------------------


def stored(kind: str) -> tuple[Any, float]:
    """A data set of 6 rows and 11 columns in one storage, a third of it nonzero, and the scale to [0, 1]."""
    draw = np.random.default_rng(3)
    dense = draw.integers(0, 256, (6, 11)) * (draw.random((6, 11)) < 0.4)
    dense[2] = 0
    dense[:, 4] = 0, 255, 0, 255, 1, 254
    layout, dtype = kind.split("-")
    values = dense.astype(dtype) if dtype == "uint8" else (dense / 255).astype(dtype)
    scale = 1 / 255 if dtype == "uint8" else 1.0
    if layout == "dense":
        return values, scale
    sparse = scipy.sparse.csr_array(values)
    if layout == "csr64":
        sparse.indices, sparse.indptr = sparse.indices.astype(np.int64), sparse.indptr.astype(np.int64)
    return sparse, scale


STORAGES = [f"{layout}-{dtype}" for layout in ("dense", "csr", "csr64") for dtype in ("uint8", "float32", "float64")]


@pytest.mark.parametrize("binarize", BINARIZE)
@pytest.mark.parametrize("storage", STORAGES)
def test_gather(engine: Engine, storage: str, binarize: str) -> None:
    data, scale = stored(storage)
    index = np.array([5, 0, 2, 5, 3], np.int64)
    key: dict[str, Any] = {"scale": scale, "binarize": binarize, "seed": SEED, "step": STEP}
    expected = naive.arrays(naive.gather(data, index, **key))
    for precision in engine.PRECISIONS:
        plan = engine.plan(network=Network(11, 2), rows=7, draws=1, precision=precision, n_threads=2)
        x = np.full((5, 11), np.nan, DTYPES[precision])
        plan.gather(data=data, index=index, x=x, **key)
        if binarize == "none":
            assert_close("x", precision, x, expected)
        else:
            np.testing.assert_array_equal(x, expected)


def test_gather_of_a_scipy_matrix_equals_that_of_an_array(engine: Engine) -> None:
    data, _ = stored("csr-float32")
    results = []
    for container in (scipy.sparse.csr_array, scipy.sparse.csr_matrix):
        plan = engine.plan(network=Network(11, 2), rows=3, draws=1, precision="fp32", n_threads=1)
        x = np.empty((3, 11), np.float32)
        index = np.array([4, 2, 1], np.int64)
        plan.gather(data=container(data), index=index, scale=1.0, binarize="none", seed=0, step=0, x=x)
        results.append(x)
    np.testing.assert_array_equal(results[0], results[1])


def test_gather_accepts_stored_zeros_and_empty_rows(engine: Engine) -> None:
    """A zero that CSR stores is a zero; a row that stores nothing clears what the last minibatch left."""
    data = scipy.sparse.csr_array((3, 11), dtype=np.uint8)
    data.data, data.indices = np.array([0, 7, 0], np.uint8), np.array([2, 5, 10], np.int32)
    data.indptr = np.array([0, 3, 3, 3], np.int32)
    plan = engine.plan(network=Network(11, 2), rows=3, draws=1, precision="fp32", n_threads=1)
    x, index = np.full((3, 11), np.nan, np.float32), np.arange(3)
    plan.gather(data=data, index=index, scale=1.0, binarize="none", seed=0, step=0, x=x)
    expected = np.zeros((3, 11))
    expected[0, 5] = 7
    np.testing.assert_array_equal(x, expected)


def test_gather_keeps_the_greys_exact(engine: Engine) -> None:
    """All 256 grey levels, whether they come as uint8 or already scaled in float64: within an ulp or two."""
    plan = engine.plan(network=Network(256, 1), rows=1, draws=1, precision="fp32", n_threads=1)
    x = np.empty((1, 256), np.float32)
    grey = np.arange(256, dtype=np.uint8)[None]
    key = {"index": np.zeros(1, np.int64), "binarize": "none", "seed": 0, "step": 0, "x": x}
    for data, scale in ((grey, 1 / 255), (grey / 255, 1.0), ((grey / 255).astype(np.float32), 1.0)):
        plan.gather(data=data, scale=scale, **key)
        np.testing.assert_allclose(x[0], np.arange(256) / 255, rtol=2e-7, atol=0)
        assert x[0, 255] == 1


# Step and element of a 1 x 4096 minibatch, seed 0, whose 24-bit word is the largest and the smallest there is
LARGEST_WORD, SMALLEST_WORD = (2646, 1848), (10507, 1081)


@pytest.mark.parametrize(
    ("place", "word", "grey", "pixel"),
    [
        (LARGEST_WORD, 2**24 - 1, 1.0, 1.0),  # u = 1 - 2^-25 would round to 1 in float32
        (LARGEST_WORD, 2**24 - 1, 1 - 2**-24, 0.0),
        (SMALLEST_WORD, 0, 0.0, 0.0),
        (SMALLEST_WORD, 0, 2**-24, 1.0),
    ],
)
def test_binarize_at_the_ends_of_u(
    engine: Engine, place: tuple[int, int], word: int, grey: float, pixel: float
) -> None:
    step, element = place
    assert naive.word(element, seed=0, step=step, stream=rng.Stream.BINARIZE) >> 8 == word
    for precision in engine.PRECISIONS:
        plan = engine.plan(
            network=Network(4096, 1, encoder_hidden=(), decoder_hidden=()),
            rows=1,
            draws=1,
            precision=precision,
            n_threads=1,
        )
        data, x = np.full((1, 4096), grey), np.empty((1, 4096), DTYPES[precision])
        index = np.zeros(1, np.int64)
        plan.gather(data=data, index=index, scale=1.0, binarize="dynamic", seed=0, step=step, x=x)
        assert x[0, element] == pixel


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beside", [-1.0, 0.0, 2.0])
def test_binarize_is_exact_wherever_u_lies(engine: Engine, shift: float, beside: float) -> None:
    """Grey levels at u, half a step of it below and above, and their neighbours in float32."""
    words = (rng.words(4096, seed=0, step=3, stream=rng.Stream.BINARIZE) >> 8).astype(np.float64)
    grey = ((words + shift) / 2**24).astype(np.float32)
    if beside:
        grey = np.clip(np.nextafter(grey, np.float32(beside)), 0, 1)
    ref = (words + 0.5) / 2**24 < grey
    for precision in engine.PRECISIONS:
        network = Network(4096, 1, encoder_hidden=(), decoder_hidden=())
        plan = engine.plan(network=network, rows=1, draws=1, precision=precision, n_threads=1)
        x, index = np.empty((1, 4096), DTYPES[precision]), np.zeros(1, np.int64)
        plan.gather(data=grey[np.newaxis], index=index, scale=1.0, binarize="dynamic", seed=0, step=3, x=x)
        np.testing.assert_array_equal(x[0], ref)


# --- extreme inputs -------------------------------------------------------------------------------------------------


def sweep() -> Array:
    """Numbers from -200 to 200, dense around 0, and the edges of float32's exponential."""
    tiny = np.logspace(-6, 0, 61)
    edges = np.array([0.5, 1, 8, 9, 10, 15, 16, 17, 20, 30, 50, 80, 87, 88, 89, 100, 103, 104, 150, 200])
    positive = np.concatenate([tiny, edges, np.linspace(1, 30, 59)])
    return np.concatenate([-positive, [0.0], positive]).astype(np.float32).astype(np.float64)


def unit_network(**fields: Any) -> Network:
    """x -> f(x) -> z -> f(z) -> heads, all of width 1."""
    return Network(1, 1, encoder_hidden=(1,), decoder_hidden=(1,), **fields)


def unit_params(network: Network) -> Array:
    """Weights 1 and biases 0, so that a layer is its activation alone."""
    params = np.zeros(network.layout.size)
    for layer in network.layout.layers:
        layer.weight(params)[:] = 1
    return params


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_over_its_range(engine: Engine, activation: str) -> None:
    """Each value on its own is right to a few ulp, however small or saturated."""
    network, a = unit_network(activation=activation), sweep()[:, None]
    expected = [[naive.activate(activation, float(value))] for value in a[:, 0]]
    plan = PlanOperations(engine, network, rows=len(a))
    hidden = plan.run("encoder_forward", unit_params(network), a)["hidden[0]"]
    np.testing.assert_allclose(hidden, expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slope_of_the_stored_activation(engine: Engine, activation: str) -> None:
    """The derivative comes from the stored h; softplus keeps its relative accuracy where h is small."""
    network = unit_network(activation=activation)
    h = np.array([[naive.activate(activation, value)] for value in sweep()]).astype(np.float32).astype(np.float64)
    expected = [[naive.activation_slope(activation, float(value))] for value in h[:, 0]]
    plan = PlanOperations(engine, network, rows=len(h))
    ones = np.ones_like(h)
    dz = plan.run("decoder_backward", unit_params(network), np.zeros_like(h), (h,), ones)["dz"]
    relative = activation == "softplus"
    np.testing.assert_allclose(dz, expected, rtol=1e-6 if relative else 0, atol=1e-37 if relative else 1.2e-7)


@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
def test_bernoulli_over_all_logits(engine: Engine, x: float) -> None:
    network, a = unit_network(), sweep()[:, None]
    log_px, dout = naive.arrays(naive.likelihood(network, np.full((1, 1), x), a, SCALE))
    actual = PlanOperations(engine, network, rows=len(a)).run("likelihood", np.full((1, 1), x), a)
    np.testing.assert_allclose(actual["log_px"], log_px, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(actual["dout"], dout, rtol=0, atol=2e-7 * SCALE)


@pytest.mark.parametrize("mean", ["sigmoid", "identity"])
@pytest.mark.parametrize("floor", [-10.0, -2.0])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_gaussian_over_all_heads(engine: Engine, mean: str, floor: float, x: float) -> None:
    network = unit_network(likelihood="gaussian", mean=mean, logvar_floor=floor)
    a, raw = np.meshgrid([-200.0, -30.0, -1.0, 0.0, 0.5, 30.0, 200.0], sweep()[::4])
    heads = np.stack([a.reshape(-1), raw.reshape(-1)], axis=1)
    log_px, dout = naive.arrays(naive.likelihood(network, np.full((1, 1), x), heads, SCALE))
    actual = PlanOperations(engine, network, rows=len(heads)).run("likelihood", np.full((1, 1), x), heads)
    # exp(-logvar) carries the rounding of logvar, up to 200: 200 * 6e-8
    np.testing.assert_allclose(actual["log_px"], log_px, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(actual["dout"], dout, rtol=2e-5, atol=1e-6)


def test_latent_over_all_log_variances(engine: Engine) -> None:
    mu, logvar = np.meshgrid([-1e3, -2.0, 0.0, 1e-3, 5.0], [-80.0, -30.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 30.0, 80.0])
    mu, logvar = mu.reshape(-1, 1).astype(np.float32), logvar.reshape(-1, 1).astype(np.float32)
    eps = np.stack([np.full_like(mu, -2.5), np.full_like(mu, 0.5)])
    z, kl = naive.arrays(naive.latent_forward(mu.astype(float), logvar.astype(float), eps.astype(float)))
    actual = PlanOperations(engine, unit_network(), rows=len(mu), draws=2).run("latent_forward", mu, logvar, eps)
    np.testing.assert_allclose(actual["z"], z, rtol=1e-6, atol=1e-6)  # mu and sigma eps may cancel
    np.testing.assert_allclose(actual["kl"], kl, rtol=1e-6, atol=1e-7)


def test_sampled_latent_over_all_log_variances(engine: Engine) -> None:
    """A spread that mu hides, one that hides mu, and both so large that z^2 is near the end of float32."""
    mu, logvar = np.meshgrid([-1e3, -2.0, 0.0, 1e-3, 5.0], [-80.0, -30.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 30.0, 80.0])
    mu, logvar = mu.reshape(-1, 1).astype(np.float32), logvar.reshape(-1, 1).astype(np.float32)
    eps = np.stack([np.full_like(mu, -2.5), np.full_like(mu, 0.5)])
    exact = [value.astype(float) for value in (mu, logvar, eps)]
    z, kl = naive.arrays(naive.latent_forward_sampled(*exact))
    plan = PlanOperations(engine, unit_network(), rows=len(mu), draws=2)
    actual = plan.run("latent_forward_sampled", mu, logvar, eps)
    np.testing.assert_allclose(actual["z"], z, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual["sampled_kl"], kl, rtol=1e-6, atol=1e-6)
    weight = np.array([[0.25], [2.0]], np.float32) * np.ones(len(mu), np.float32)
    dmu, dlogvar = naive.arrays(naive.latent_backward_sampled(*exact, np.ones_like(eps), weight.astype(float)))
    actual = plan.run("latent_backward_sampled", mu, logvar, eps, np.ones_like(eps), weight)
    np.testing.assert_allclose(actual["sampled_dmu"], dmu, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual["sampled_dlogvar"], dlogvar, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mean", ["sigmoid", "identity"])
def test_gaussian_samples_over_all_heads(engine: Engine, mean: str) -> None:
    """The floor keeps the spread above zero, and a large log variance is not cut off."""
    network = unit_network(likelihood="gaussian", mean=mean, logvar_floor=-10.0)
    a, raw = np.meshgrid([-200.0, -1.0, 0.0, 200.0], sweep()[::4][np.abs(sweep()[::4]) <= 100])
    heads = np.stack([a.reshape(-1), raw.reshape(-1)], axis=1)
    expected = np.array(naive.likelihood_sample(network, heads, SEED, STEP))
    actual = PlanOperations(engine, network, rows=len(heads)).run("likelihood_sample", heads)["sample"]
    spread = np.exp(-5 + np.logaddexp(0, heads[:, 1:] + 10) / 2)
    assert (np.abs(actual - expected) <= 2e-7 * np.abs(heads[:, :1]) + 1.5e-5 * spread + 1e-7).all()


def test_bernoulli_samples_over_all_logits(engine: Engine) -> None:
    """Saturated logits leave nothing to chance."""
    logits = np.tile(sweep(), (5, 1)).reshape(-1, 1)
    expected = np.array(naive.likelihood_sample(unit_network(), logits, SEED, STEP))
    actual = PlanOperations(engine, unit_network(), rows=len(logits)).run("likelihood_sample", logits)["sample"]
    assert_same_bits_drawn(actual, expected, logits, tolerance("mean", "fp32"))
    assert actual[logits > 20].all()
    assert not actual[logits < -20].any()


# --- rules of the contract ------------------------------------------------------------------------------------------

RULE_CASE = Case(19, (13, 6), (6, 13), 3, 5, 2)


def test_gradients_are_added_to(engine: Engine) -> None:
    """Each backward pass adds to its own side of `grad` and leaves the other side's bits alone."""
    inputs, network = inputs_of(RULE_CASE), RULE_CASE.network
    plan = PlanOperations(engine, network, rows=5, draws=2)
    start = np.linspace(-3, 3, network.layout.size, dtype=np.float32)
    split = network.layout.decoder[0].offset
    values = {name: plan.cast(inputs[name]) for name in ("params", "x", "z", "dmu", "dlogvar", "dout")}
    hidden = {side: tuple(map(plan.cast, inputs[side])) for side in ("encoder_hidden", "decoder_hidden")}

    grad = start.copy()
    plan.plan.decoder_backward(
        params=values["params"], z=values["z"], hidden=hidden["decoder_hidden"], dout=values["dout"], dz=None, grad=grad
    )
    added = plan.run("decoder_backward", *(inputs[name] for name in OPERATIONS["decoder_backward"]))["grad"]
    np.testing.assert_array_equal(grad[:split], start[:split])
    np.testing.assert_allclose(grad[split:], start[split:] + added[split:], rtol=1e-6, atol=2e-6)

    grad = start.copy()
    plan.plan.encoder_backward(
        params=values["params"],
        x=values["x"],
        hidden=hidden["encoder_hidden"],
        dmu=values["dmu"],
        dlogvar=values["dlogvar"],
        grad=grad,
    )
    added = plan.run("encoder_backward", *(inputs[name] for name in OPERATIONS["encoder_backward"]))["grad"]
    np.testing.assert_array_equal(grad[split:], start[split:])
    np.testing.assert_allclose(grad[:split], start[:split] + added[:split], rtol=1e-6, atol=2e-6)


def test_optional_outputs_change_nothing_else(engine: Engine) -> None:
    """Without dz, grad or dout the other output has the same bits."""
    inputs, plan = inputs_of(RULE_CASE), PlanOperations(engine, RULE_CASE.network, rows=5, draws=2)
    params, x, z, out, dout = (plan.cast(inputs[name]) for name in ("params", "x", "z", "out", "dout"))
    hidden = tuple(map(plan.cast, inputs["decoder_hidden"]))
    both = plan.run("decoder_backward", *(inputs[name] for name in OPERATIONS["decoder_backward"]))
    dz, grad = plan.empty(*z.shape), np.zeros_like(params)
    plan.plan.decoder_backward(params=params, z=z, hidden=hidden, dout=dout, dz=dz, grad=None)
    plan.plan.decoder_backward(params=params, z=z, hidden=hidden, dout=dout, dz=None, grad=grad)
    np.testing.assert_array_equal(dz, both["dz"])
    np.testing.assert_array_equal(grad, both["grad"])

    log_px = plan.empty(len(z))
    plan.plan.likelihood(x=x, out=out, scale=SCALE, log_px=log_px, dout=None)
    np.testing.assert_array_equal(log_px, plan.run("likelihood", inputs["x"], inputs["out"])["log_px"])
    log_pxz = plan.empty(len(z))
    plan.plan.log_joint(params=params, x=x, z=z, log_pxz=log_pxz, dz=None)
    np.testing.assert_array_equal(log_pxz, plan.run("log_joint", params, x, z)["log_pxz"])


def test_inputs_are_left_alone(engine: Engine) -> None:
    inputs, plan = inputs_of(RULE_CASE), PlanOperations(engine, RULE_CASE.network, rows=5, draws=2)
    for operation, names in OPERATIONS.items():
        values = [plan.cast(inputs[name]) for name in names if not name.endswith("hidden")]
        before = [value.copy() for value in values]
        given = iter(values)
        plan.run(operation, *(inputs[name] if name.endswith("hidden") else next(given) for name in names))
        for value, copy in zip(values, before, strict=True):
            np.testing.assert_array_equal(value, copy, err_msg=operation)


@pytest.mark.parametrize("operation", ["likelihood", "log_joint"])
def test_one_row_of_x_with_many_draws(engine: Engine, operation: str) -> None:
    """Row r of z belongs to x[r % M], whatever M is: one datapoint may fill the plan with draws."""
    inputs, plan = inputs_of(RULE_CASE), PlanOperations(engine, RULE_CASE.network, rows=5, draws=2)
    one = {name: inputs[name][:1] if name == "x" else inputs[name] for name in OPERATIONS[operation]}
    tiled = {**one, "x": np.repeat(one["x"], 5, axis=0)}
    expected = plan.run(operation, *tiled.values())
    for name, value in plan.run(operation, *one.values()).items():
        np.testing.assert_array_equal(value, expected[name])


BATCH_OPERATIONS: dict[str, Callable[[str], bool]] = {
    "encoder_forward": lambda name: True,
    "latent_forward": lambda name: True,
    "decoder_forward": lambda name: True,
    "likelihood": lambda name: True,
    "likelihood_mean": lambda name: True,
    "decoder_backward": lambda name: name == "dz",  # grad is a sum over rows
    "latent_backward": lambda name: True,
    "log_joint": lambda name: True,
    "latent_forward_sampled": lambda name: True,
    "latent_backward_sampled": lambda name: True,
}
INDEPENDENCE_CASES = [
    Case(37, (33,), (21, 9), 5, 35, 1),
    Case(130, (70,), (65,), 17, 19, 1, "softplus", "gaussian"),
    Case(784, (50,), (40,), 20, 70, 1, "relu"),
]


def take_rows(name: str, value: Any, chosen: list[int]) -> Any:
    if name == "params":
        return value
    if isinstance(value, tuple):
        return tuple(layer[chosen] for layer in value)
    return value[:, chosen] if value.ndim == 3 or name in ("weight", "sampled_kl") else value[chosen]


@pytest.mark.parametrize("operation", BATCH_OPERATIONS)
@pytest.mark.parametrize("case", INDEPENDENCE_CASES, ids=str)
def test_rows_are_independent_bit_for_bit(engine: Engine, case: Case, operation: str) -> None:
    """A row's results are the same alone, in any smaller batch, and at any place in it."""
    if engine.NAME == "reference":
        pytest.skip("the reference leaves the order of its sums to NumPy's BLAS")
    inputs, plan = dict(inputs_of(case)), PlanOperations(engine, case.network, rows=case.rows)
    # rows 0 to 3 nearly empty: a batch of them alone is sparse, the whole batch is not
    inputs["x"] = inputs["x"].copy()
    inputs["x"][:4, : case.data_dim - 2] = 0
    names = OPERATIONS[operation]
    whole = plan.run(operation, *(inputs[name] for name in names))
    everything = list(range(case.rows))
    choices = [[0], [case.rows - 1], [0, 1, 2, 3], [5, 3], everything[2:13], everything[::-1], everything[1:]]
    for chosen in choices:
        part = plan.run(operation, *(take_rows(name, inputs[name], chosen) for name in names))
        for name in filter(BATCH_OPERATIONS[operation], part):
            expected = take_rows(name, whole[name], chosen)
            np.testing.assert_array_equal(part[name], expected, err_msg=f"{operation}: {name} of rows {chosen}")


@pytest.mark.parametrize("case", INDEPENDENCE_CASES, ids=str)
def test_a_sampled_row_depends_on_its_heads_and_number_alone(engine: Engine, case: Case) -> None:
    """The first rows of x are the same whatever follows; equal heads in two places draw two rows."""
    heads, plan = inputs_of(case)["out"], PlanOperations(engine, case.network, rows=case.rows)
    whole = plan.run("likelihood_sample", heads)["sample"]
    for count in (1, 2, case.rows - 1):
        np.testing.assert_array_equal(plan.run("likelihood_sample", heads[:count])["sample"], whole[:count])
    repeated = plan.run("likelihood_sample", np.repeat(heads[:1], 2, axis=0))["sample"]
    assert (repeated[0] != repeated[1]).any()
