"""Every engine has exactly the contract's methods, and refuses wrong arguments without writing anything."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from fastvae.errors import BackendError
from fastvae.kernels import Array, Engine, Plan
from fastvae.network import Network
from fastvae.optimizer import Optimizer

M, L, D, H, J, N, T = 3, 2, 6, 5, 2, 9, 4
R = L * M
NETWORK = Network(D, J, encoder_hidden=(H,), decoder_hidden=(H,))
P = NETWORK.layout.size
PLAN_METHODS = [name for name, value in vars(Plan).items() if inspect.isfunction(value) and not name.startswith("_")]
ENGINE_FUNCTIONS = ("plan", "philox", "normal")
ATTRIBUTES = ("network", "rows", "draws", "precision", "n_threads")
SENTINEL = 0.25


# --- names ----------------------------------------------------------------------------------------------------------


def argument_names(function: Any) -> list[str]:
    """Names of the arguments without self: by inspection, or from the docstring that pybind11 writes."""
    try:
        names = list(inspect.signature(function).parameters)
    except (ValueError, TypeError):
        signature = re.search(r"\w+\((.*)\)\s*->", (function.__doc__ or "").splitlines()[0])
        assert signature, f"no signature in the docstring of {function}"
        text = signature[1]
        while (flat := re.sub(r"\[[^\[\]]*\]|\"[^\"]*\"|\([^()]*\)", "", text)) != text:
            text = flat
        names = [part.split(":")[0].strip() for part in text.split(",")]
    return [name for name in names if name not in ("self", "*", "/")]


@pytest.mark.parametrize("method", PLAN_METHODS)
def test_plan_method_has_the_contracts_arguments(make_plan: Callable[..., Plan], method: str) -> None:
    plan = make_plan(NETWORK, rows=M, draws=L)
    assert argument_names(getattr(type(plan), method)) == argument_names(getattr(Plan, method))


@pytest.mark.parametrize("function", ENGINE_FUNCTIONS)
def test_engine_function_has_the_contracts_arguments(engine: Engine, function: str) -> None:
    assert argument_names(getattr(engine, function)) == argument_names(getattr(Engine, function))


def test_a_plan_takes_its_network_by_place_or_by_name(engine: Engine) -> None:
    constants: dict[str, Any] = {"rows": M, "draws": L, "precision": "fp32", "n_threads": 1}
    for plan in (engine.plan(NETWORK, **constants), engine.plan(network=NETWORK, **constants)):
        assert plan.network == NETWORK


def test_plan_has_no_other_method(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(NETWORK, rows=M, draws=L)
    public = {name for name in dir(plan) if not name.startswith("_") and callable(getattr(type(plan), name, None))}
    assert public == set(PLAN_METHODS)


def test_plan_tells_what_it_was_made_of(engine: Engine) -> None:
    for precision in engine.PRECISIONS:
        plan = engine.plan(network=NETWORK, rows=M, draws=L, precision=precision, n_threads=2)
        assert [getattr(plan, name) for name in ATTRIBUTES] == [NETWORK, M, L, precision, 2]
    assert "fp32" in engine.PRECISIONS


def test_arguments_are_keywords(make_plan: Callable[..., Plan]) -> None:
    plan: Any = make_plan(NETWORK, rows=M, draws=L)
    out = np.zeros((M, D), np.float32)
    with pytest.raises(TypeError):
        plan.likelihood_mean(out, np.zeros_like(out))


# --- refusals of a plan ---------------------------------------------------------------------------------------------


def test_unknown_precision_is_refused(engine: Engine) -> None:
    with pytest.raises(BackendError, match="fp13"):
        engine.plan(network=NETWORK, rows=M, draws=L, precision="fp13", n_threads=1)


@pytest.mark.parametrize("name", ["rows", "draws", "n_threads"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_plan_of_nothing_is_refused(engine: Engine, name: str, value: int) -> None:
    arguments: dict[str, Any] = {"rows": M, "draws": L, "precision": "fp32", "n_threads": 1, name: value}
    with pytest.raises((ValueError, TypeError, OverflowError), match=name):
        engine.plan(network=NETWORK, **arguments)


# --- refusals of an operation ---------------------------------------------------------------------------------------


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def output(*shape: int, dtype: Any = np.float32) -> Array:
    return np.full(shape, SENTINEL, dtype)


def valid_arguments(method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of a method that it accepts."""
    params, x, z, latent, eps = zeros(P), zeros(M, D), zeros(R, J), zeros(M, J), zeros(L, M, J)
    data = {"data": zeros(N, D, dtype=np.uint8), "scale": 1.0, "binarize": "none", "seed": 1, "step": 0}
    if method == "gather":
        return {**data, "index": np.arange(M)}, {"x": output(M, D)}
    if method == "encoder_forward":
        outputs = {"hidden": (output(M, H),), "mu": output(M, J), "logvar": output(M, J)}
        return {"params": params, "x": x}, outputs
    if method == "latent_forward":
        return {"mu": latent, "logvar": latent.copy(), "eps": eps}, {"z": output(L, M, J), "kl": output(M)}
    if method == "latent_forward_sampled":
        return {"mu": latent, "logvar": latent.copy(), "eps": eps}, {"z": output(L, M, J), "kl": output(L, M)}
    if method == "decoder_forward":
        return {"params": params, "z": z}, {"hidden": (output(R, H),), "out": output(R, D)}
    if method == "likelihood":
        return {"x": x, "out": zeros(R, D), "scale": 1.0}, {"log_px": output(R), "dout": output(R, D)}
    if method == "likelihood_mean":
        return {"out": zeros(R, D)}, {"mean": output(R, D)}
    if method == "likelihood_sample":
        return {"out": zeros(R, D), "seed": 1, "step": 0}, {"x": output(R, D)}
    if method == "decoder_backward":
        inputs = {"params": params, "z": z, "hidden": (zeros(R, H),), "dout": zeros(R, D)}
        return inputs, {"dz": output(R, J), "grad": output(P)}
    if method == "latent_backward":
        inputs = {"mu": latent, "logvar": latent.copy(), "eps": eps, "dz": zeros(L, M, J), "kl_scale": 1.0}
        return inputs, {"dmu": output(M, J), "dlogvar": output(M, J)}
    if method == "latent_backward_sampled":
        inputs = {"mu": latent, "logvar": latent.copy(), "eps": eps, "dz": zeros(L, M, J), "weight": zeros(L, M)}
        return inputs, {"dmu": output(M, J), "dlogvar": output(M, J)}
    if method == "encoder_backward":
        inputs = {"params": params, "x": x, "hidden": (zeros(M, H),), "dmu": zeros(M, J), "dlogvar": zeros(M, J)}
        return inputs, {"grad": output(P)}
    if method == "log_joint":
        return {"params": params, "x": x, "z": z}, {"log_pxz": output(R), "dz": output(R, J)}
    optimizer = {"optimizer": Optimizer("adam"), "step": 0, "decay": 0.0}
    if method == "update":
        return {**optimizer, "grad": zeros(P) + 1}, {"params": output(P), "state": output(2, P)}
    order = np.arange(T * M).reshape(T, M) % N
    inputs = {**data, **optimizer, "order": order, "estimator": "sgvb-b", "kl_weight": 1.0, "kl_warmup": 0}
    outputs = {
        "params": output(P),
        "state": output(2, P),
        "stats": output(T, 2, dtype=np.float64),
        "done": output(1, dtype=np.int64),
    }
    return inputs, outputs


def array_arguments() -> list[Any]:
    """Every (method, argument) that is an array or a tuple of arrays."""
    pairs = []
    for method in PLAN_METHODS:
        inputs, outputs = valid_arguments(method)
        for name, value in {**inputs, **outputs}.items():
            if isinstance(value, np.ndarray | tuple):
                pairs.append(pytest.param(method, name, id=f"{method}-{name}"))
    return pairs


def wider(array: Array) -> Array:
    """One more entry on the last axis; on the first for index, whose only axis is M."""
    return np.zeros((*array.shape[:-1], array.shape[-1] + 1), array.dtype)


def with_another_axis(array: Array) -> Array:
    return np.zeros((*array.shape, 1), array.dtype)


def with_fewer_axes(array: Array) -> Array:
    return np.zeros(array.size if array.ndim > 1 else (), array.dtype)


def of_another_dtype(array: Array) -> Array:
    other = {"float32": np.float64, "float64": np.float32, "int64": np.int32, "uint8": np.int16}[array.dtype.name]
    return array.astype(other)


def byte_swapped(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder() if array.dtype.itemsize > 1 else np.int8)


def strided(array: Array) -> Array:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def reversed_view(array: Array) -> Array:
    return np.repeat(array, 2, axis=0)[::-2]


def as_list(array: Array) -> Any:
    return array.tolist()


DEFECTS = [wider, with_another_axis, with_fewer_axes, of_another_dtype, byte_swapped, strided, reversed_view, as_list]


def assert_unwritten(outputs: dict[str, Any]) -> None:
    for name, value in outputs.items():
        for array in value if isinstance(value, tuple) else (value,):
            if isinstance(array, np.ndarray) and name != "done":
                assert (array == SENTINEL).all(), f"{name} was written"


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
@pytest.mark.parametrize(("method", "name"), array_arguments())
def test_a_defective_array_is_refused(
    make_plan: Callable[..., Plan], method: str, name: str, defect: Callable[[Array], Any]
) -> None:
    """The error names the argument, and no output is touched."""
    inputs, outputs = valid_arguments(method)
    values = {**inputs, **outputs}
    if name == "order" and defect is wider:
        values[name] = np.zeros((T, M + 1), np.int64)  # more rows than the plan holds
    elif name == "done" and defect in (strided, reversed_view):
        pytest.skip("one entry is contiguous whatever its stride")
    elif isinstance(values[name], tuple):
        values[name] = tuple(defect(array) for array in values[name])
    else:
        values[name] = defect(values[name])
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b" if name != "index" else r"\b(index|x)\b"):
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**values)
    assert_unwritten(outputs)


@pytest.mark.parametrize(("method", "name"), array_arguments())
def test_a_missing_array_is_refused(make_plan: Callable[..., Plan], method: str, name: str) -> None:
    """None is accepted for optional outputs alone."""
    inputs, outputs = valid_arguments(method)
    if name in ("dz", "dout", "grad") and name in outputs and method != "encoder_backward":
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**{**inputs, **outputs, name: None})
        return
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**{**inputs, **outputs, name: None})
    assert_unwritten(outputs)


@pytest.mark.parametrize("method", PLAN_METHODS)
def test_a_read_only_output_is_refused(make_plan: Callable[..., Plan], method: str) -> None:
    for name in valid_arguments(method)[1]:
        inputs, outputs = valid_arguments(method)
        for array in outputs[name] if isinstance(outputs[name], tuple) else (outputs[name],):
            array.flags.writeable = False
        with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
            getattr(make_plan(NETWORK, rows=M, draws=L), method)(**inputs, **outputs)
        assert_unwritten(outputs)


@pytest.mark.parametrize("method", PLAN_METHODS)
def test_read_only_inputs_are_accepted(make_plan: Callable[..., Plan], method: str) -> None:
    inputs, outputs = valid_arguments(method)
    for value in inputs.values():
        for array in value if isinstance(value, tuple) else (value,):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    getattr(make_plan(NETWORK, rows=M, draws=L), method)(**inputs, **outputs)


@pytest.mark.parametrize("method", [name for name in PLAN_METHODS if "hidden" in str(valid_arguments(name))])
@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_hidden_layers_is_refused(make_plan: Callable[..., Plan], method: str, count: int) -> None:
    inputs, outputs = valid_arguments(method)
    values = {**inputs, **outputs}
    values["hidden"] *= count
    with pytest.raises((ValueError, TypeError), match="hidden"):
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**values)
    assert_unwritten({name: value for name, value in outputs.items() if name != "hidden"})


@pytest.mark.parametrize(
    ("rows", "draws", "method"),
    [(M - 1, L, name) for name in PLAN_METHODS if name != "update"]
    + [(M, L - 1, name) for name in ("latent_forward", "latent_forward_sampled", "latent_backward_sampled")],
)
def test_more_rows_than_the_plan_holds_are_refused(
    make_plan: Callable[..., Plan], rows: int, draws: int, method: str
) -> None:
    inputs, outputs = valid_arguments(method)
    with pytest.raises(ValueError, match=r"\b(rows|draws|shape|columns)\b"):
        getattr(make_plan(NETWORK, rows=rows, draws=draws), method)(**inputs, **outputs)
    assert_unwritten(outputs)


@pytest.mark.parametrize("method", [name for name in PLAN_METHODS if name not in ("update", "train_steps")])
def test_no_rows_are_refused(make_plan: Callable[..., Plan], method: str) -> None:
    """An empty minibatch has no mean."""
    inputs, outputs = valid_arguments(method)

    def emptied(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(array[:0].copy() for array in value)
        if not isinstance(value, np.ndarray) or name in ("params", "grad", "data"):
            return value
        return value[:, :0].copy() if value.ndim == 3 else value[:0].copy()

    values = {name: emptied(name, value) for name, value in {**inputs, **outputs}.items()}
    with pytest.raises(ValueError, match=r"\b(rows|shape)\b"):
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**values)


def test_rows_of_heads_must_be_a_multiple_of_rows_of_x(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(NETWORK, rows=M, draws=L)
    with pytest.raises(ValueError, match=r"\bout\b"):
        plan.likelihood(x=zeros(3, D), out=zeros(4, D), scale=1.0, log_px=output(4), dout=None)
    with pytest.raises(ValueError, match=r"\b(z|out)\b"):
        plan.log_joint(params=zeros(P), x=zeros(3, D), z=zeros(4, J), log_pxz=output(4), dz=None)


# --- row numbers, data and constants --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, N, 2**62, -(2**63)])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("method", "name"), [("gather", "index"), ("train_steps", "order")])
def test_a_row_number_out_of_range_is_refused(
    make_plan: Callable[..., Plan], method: str, name: str, sparse: bool, bad: int
) -> None:
    """In the last place too; no step is made."""
    inputs, outputs = valid_arguments(method)
    inputs[name].reshape(-1)[-1] = bad
    if sparse:
        inputs["data"] = scipy.sparse.csr_array(inputs["data"])
    with pytest.raises((ValueError, IndexError), match=rf"\b{name}\b"):
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**inputs, **outputs)
    assert_unwritten(outputs)
    if method == "train_steps":
        assert outputs["done"][0] in (0, SENTINEL)


def csr(values: Any, indices: Any, indptr: Any, columns: int = D) -> Any:
    """Build a CSR matrix without scipy's own checks."""
    matrix = scipy.sparse.csr_array((N, columns), dtype=np.uint8)
    matrix.data, matrix.indices = np.array(values, np.uint8), np.array(indices, np.int32)
    matrix.indptr = np.array(indptr, np.int32)
    return matrix


BAD_DATA: dict[str, Callable[[], Any]] = {
    "wrong columns": lambda: zeros(N, D + 1, dtype=np.uint8),
    "one axis": lambda: zeros(D, dtype=np.uint8),
    "int32": lambda: zeros(N, D, dtype=np.int32),
    "float16": lambda: zeros(N, D, dtype=np.float16),
    "bool": lambda: zeros(N, D, dtype=np.bool_),
    "column order": lambda: np.asfortranarray(np.zeros((N, D), np.float32)),
    "csr, wrong columns": lambda: scipy.sparse.csr_array((N, D + 1), dtype=np.uint8),
    "csr of int32": lambda: scipy.sparse.csr_array((N, D), dtype=np.int32),
    "csr, column out of range": lambda: csr([1], [D], [0] + [1] * N),
    "csr, negative column": lambda: csr([1], [-1], [0] + [1] * N),
    "csr, indptr too short": lambda: csr([1], [0], [0, 1]),
    "csr, indptr past the end": lambda: csr([1], [0], [0] + [4] * N),
    "csr, indptr decreases": lambda: csr([1, 1], [0, 1], [0, 2, 1] + [2] * (N - 2)),
    "csr, negative indptr": lambda: csr([1, 1], [0, 1], [-1] + [2] * N),
    "csr, fewer indices than values": lambda: csr([1, 1], [0], [0] + [2] * N),
    "csr, columns out of order": lambda: csr([1, 1], [2, 1], [0] + [2] * N),
    "csr, column twice": lambda: csr([1, 1], [2, 2], [0] + [2] * N),
    "csc": lambda: scipy.sparse.csc_array((N, D), dtype=np.uint8),
    "coo": lambda: scipy.sparse.coo_array((N, D), dtype=np.uint8),
    "text": lambda: "data",
    "none": lambda: None,
}


@pytest.mark.parametrize("kind", BAD_DATA)
@pytest.mark.parametrize("method", ["gather", "train_steps"])
def test_bad_data_is_refused(make_plan: Callable[..., Plan], method: str, kind: str) -> None:
    inputs, outputs = valid_arguments(method)
    inputs["data"] = BAD_DATA[kind]()
    with pytest.raises((ValueError, TypeError), match=r"\bdata\b"):
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**inputs, **outputs)
    assert_unwritten(outputs)


@pytest.mark.parametrize("method", ["gather", "train_steps"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("binarize", "sometimes"),
        ("binarize", None),
        ("scale", float("nan")),
        ("scale", float("inf")),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("step", -1),
        ("step", 2**64),
    ],
)
def test_bad_constants_are_refused(make_plan: Callable[..., Plan], method: str, name: str, value: Any) -> None:
    inputs, outputs = valid_arguments(method)
    inputs[name] = value
    with pytest.raises((ValueError, TypeError, OverflowError), match=rf"\b{name}\b"):
        getattr(make_plan(NETWORK, rows=M, draws=L), method)(**inputs, **outputs)
    assert_unwritten(outputs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kl_warmup", -1),
        ("kl_weight", float("nan")),
        ("decay", float("nan")),
        ("optimizer", "adam"),
    ],
)
def test_bad_constants_of_training_are_refused(make_plan: Callable[..., Plan], name: str, value: Any) -> None:
    inputs, outputs = valid_arguments("train_steps")
    inputs[name] = value
    with pytest.raises((ValueError, TypeError, AttributeError), match=None if name == "optimizer" else name):
        make_plan(NETWORK, rows=M, draws=L).train_steps(**inputs, **outputs)
    assert_unwritten(outputs)


@pytest.mark.parametrize("name", ["seed", "step"])
@pytest.mark.parametrize("value", [-1, 2**64, 0.5])
def test_bad_keys_of_a_sample_are_refused(make_plan: Callable[..., Plan], name: str, value: Any) -> None:
    inputs, outputs = valid_arguments("likelihood_sample")
    inputs[name] = value
    with pytest.raises((ValueError, TypeError, OverflowError), match=rf"\b{name}\b"):
        make_plan(NETWORK, rows=M, draws=L).likelihood_sample(**inputs, **outputs)
    assert_unwritten(outputs)


def test_an_unknown_estimator_is_named_with_the_known_ones(make_plan: Callable[..., Plan]) -> None:
    inputs, outputs = valid_arguments("train_steps")
    inputs["estimator"] = "sgvb"
    with pytest.raises(ValueError, match=r"^estimator must be one of sgvb-b, sgvb-a, iwae, wake-sleep, got 'sgvb'$"):
        make_plan(NETWORK, rows=M, draws=L).train_steps(**inputs, **outputs)
    assert_unwritten(outputs)


@pytest.mark.parametrize("estimator", ["iwae", "wake-sleep"])
@pytest.mark.parametrize("weights", [(0.5, 0), (1.0, 4)])
def test_a_weight_of_no_kl_divergence_is_refused(
    make_plan: Callable[..., Plan], estimator: str, weights: tuple[float, int]
) -> None:
    inputs, outputs = valid_arguments("train_steps")
    inputs |= {"estimator": estimator, "kl_weight": weights[0], "kl_warmup": weights[1]}
    with pytest.raises(ValueError, match=rf"^kl_weight and kl_warmup must be 1 and 0 with estimator '{estimator}'"):
        make_plan(NETWORK, rows=M, draws=L).train_steps(**inputs, **outputs)
    assert_unwritten(outputs)


@pytest.mark.parametrize("estimator", [None, 2, ["iwae"], b"iwae"])
def test_an_estimator_that_is_no_string_is_refused_in_one_line(make_plan: Callable[..., Plan], estimator: Any) -> None:
    inputs, outputs = valid_arguments("train_steps")
    inputs["estimator"] = estimator
    with pytest.raises(ValueError, match=r"^estimator must be one of sgvb-b, sgvb-a, iwae, wake-sleep, got [^\n]*$"):
        make_plan(NETWORK, rows=M, draws=L).train_steps(**inputs, **outputs)
    assert_unwritten(outputs)


def test_no_steps_are_no_error(make_plan: Callable[..., Plan]) -> None:
    inputs, outputs = valid_arguments("train_steps")
    inputs["order"], outputs["stats"] = np.empty((0, M), np.int64), np.empty((0, 2))
    make_plan(NETWORK, rows=M, draws=L).train_steps(**inputs, **outputs)
    assert outputs["done"][0] == 0
    assert_unwritten(outputs)


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("counter", np.zeros((3, 3), np.uint32)),
        ("counter", np.zeros((3, 4), np.int64)),
        ("counter", np.zeros((6, 4), np.uint32)[::2]),
        ("key", np.zeros(3, np.uint32)),
        ("key", np.zeros(2, np.uint64)),
        ("out", np.zeros((2, 4), np.uint32)),
        ("out", np.zeros((3, 4), np.int32)),
        ("out", np.zeros((6, 4), np.uint32)[::2]),
    ],
)
def test_philox_refuses_defective_arrays(engine: Engine, name: str, value: Array) -> None:
    arguments = {
        "counter": np.zeros((3, 4), np.uint32),
        "key": np.zeros(2, np.uint32),
        "out": np.zeros((3, 4), np.uint32),
        name: value,
    }
    with pytest.raises((ValueError, TypeError), match=rf"\b({name}|counter)\b"):
        engine.philox(**arguments)
    assert not arguments["out"].any()


@pytest.mark.parametrize("out", [np.zeros(4, np.float64), np.zeros(8, np.float32)[::2], np.zeros(4, np.int32)])
def test_normal_refuses_a_defective_output(engine: Engine, out: Array) -> None:
    with pytest.raises((ValueError, TypeError), match=r"\bout\b"):
        engine.normal(seed=0, step=0, stream=0, out=out)
    assert not out.any()
