"""Weights for and from PyTorch, Flax, ONNX and safetensors: equal outputs, nothing lost, errors that name the mend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Result, assert_error
from safetensors import safe_open
from safetensors.numpy import save_file
from tolerances import relative_error, tolerance

from fastvae import VAE
from fastvae.data import Dataset, load
from fastvae.errors import CheckpointError, LayoutError
from fastvae.evaluation import encode
from fastvae.interop import LAYOUTS, from_file
from fastvae.kernels import Array
from fastvae.model_plans import inference_plan
from fastvae.network import ACTIVATIONS, Network, initialise

LIKELIHOODS = [("bernoulli", "sigmoid"), ("gaussian", "sigmoid"), ("gaussian", "identity")]
FUNCTIONS = [(activation, *likelihood) for activation in ACTIVATIONS for likelihood in LIKELIHOODS]
HIDDEN: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ()), ((9,), (9,)), ((9, 7), (5,)), ((), (6, 8, 4))]


@pytest.fixture(scope="module")
def rows() -> Array:
    """Digits in [0, 1] as float32."""
    return load("digits").train.select(slice(120)).as_seen()


@pytest.fixture
def torch() -> Iterator[Any]:
    """PyTorch on one thread: several wait long for each other where a processor is busy."""
    library = pytest.importorskip("torch")
    threads = library.get_num_threads()
    library.set_num_threads(1)
    yield library
    library.set_num_threads(threads)


@pytest.fixture(scope="module")
def make_vae(draw_params: Callable[..., Array]) -> Callable[..., VAE]:
    """A fitted model of random parameters, without training."""

    def make(
        hidden: tuple[int, ...] = (60, 40), decoder_hidden: tuple[int, ...] = (50,), dim: int = 64, **functions: Any
    ) -> VAE:
        given = {"activation": "tanh", "likelihood": "bernoulli", "mean": "sigmoid", "logvar_floor": -6.0} | functions
        network = Network(dim, 8, hidden, decoder_hidden, **given)
        return VAE.from_torch(network.layout.views(draw_params(network)), random_state=3, n_threads=2, **given)

    return make


def differences(comp: dict[str, Any], ref: dict[str, Any], rules: dict[str, str], label: str) -> None:
    """Print the largest absolute difference of each array, and hold it to a row of the table of tolerances."""
    errors = {name: float(np.abs(np.asarray(comp[name], np.float64) - ref[name]).max()) for name in ref}
    print(f"max abs error, {label}:", ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    for name, rule in rules.items():
        error, limit = relative_error(comp[name], ref[name]), tolerance(rule, "fp32")
        assert error <= limit, f"{label}: {name} differs by {error:.1e} of its largest value"


# Both sides are float32 sums of up to 64 products, then as many again: the engines' own limits.
RULES = {"mu": "mu", "logvar": "logvar", "decoded": "out", "logvar_x": "out", "elbo": "log_pxz"}


def ours(vae: VAE, x: Array, eps: Array) -> dict[str, Array]:
    """What fastvae's engine gives, with given noise."""
    plan, network = inference_plan(vae), vae.network_
    mu, logvar = encode(plan, vae.params_, Dataset(x, 1.0))
    z, kl = np.empty_like(eps), np.empty(len(x), np.float32)
    out, log_px = np.empty((len(x), network.decoder_dims[-1]), np.float32), np.empty(len(x), np.float32)
    hidden = tuple(np.empty((len(x), width), np.float32) for width in network.decoder_hidden)
    plan.latent_forward(mu=mu, logvar=logvar, eps=eps[np.newaxis], z=z[np.newaxis], kl=kl)
    plan.decoder_forward(params=vae.params_, z=z, hidden=hidden, out=out)
    plan.likelihood(x=x, out=out, scale=1.0, log_px=log_px, dout=None)
    result = {"mu": mu, "logvar": logvar, "z": z, "decoded": vae.inverse_transform(z), "elbo": log_px - kl}
    if network.likelihood == "gaussian":
        raw = out[:, network.data_dim :].astype(np.float64)
        result["logvar_x"] = network.logvar_floor + np.logaddexp(0, raw - network.logvar_floor)
    return result


# --- PyTorch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "likelihood", "mean"), FUNCTIONS)
def test_torch_module_has_equal_outputs(
    torch: Any, make_vae: Callable[..., VAE], rows: Array, activation: str, likelihood: str, mean: str
) -> None:
    vae = make_vae(activation=activation, likelihood=likelihood, mean=mean)
    eps = np.random.default_rng(1).normal(size=(len(rows), 8)).astype(np.float32)
    ref = ours(vae, rows, eps)

    module, x = vae.to_torch(), torch.from_numpy(rows)
    with torch.no_grad():
        comp = dict(zip(("mu", "logvar"), module.encode(x), strict=True))
        comp["decoded"] = module.decode(torch.from_numpy(ref["z"]))
        comp["elbo"] = module.elbo(x, torch.from_numpy(eps))
        heads = module.heads(torch.from_numpy(ref["z"]))
    if likelihood == "gaussian":
        comp["logvar_x"] = heads["logvar"]
        torch.testing.assert_close(heads["mean"], comp["decoded"])
    else:
        torch.testing.assert_close(torch.sigmoid(heads["logits"]), comp["decoded"])

    del ref["z"]
    differences(comp, ref, {name: RULES[name] for name in ref}, f"torch, {activation}, {likelihood}, {mean}")


def test_torch_module_draws_trains_and_comes_back(torch: Any, make_vae: Callable[..., VAE], rows: Array) -> None:
    vae = make_vae(hidden=(30,), decoder_hidden=(), activation="softplus")
    before = vae.params_.copy()
    module, x = vae.to_torch(), torch.from_numpy(rows)
    assert list(module.state_dict()) == [
        f"{layer}.{part}"
        for layer in ("encoder.0", "encoder.mu", "encoder.logvar", "decoder.logits")
        for part in ("weight", "bias")
    ]

    torch.manual_seed(0)
    reconstruction, mu, logvar = module(x.reshape(-1, 1, 8, 8))  # images are flattened
    assert reconstruction.shape == x.shape
    assert mu.shape == logvar.shape == (len(rows), 8)
    assert not torch.equal(module(x)[0], reconstruction)  # another draw
    torch.manual_seed(0)
    loss = module.loss(x)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, -module.elbo(x, torch.randn(len(rows), 8)).mean())

    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        module.loss(x).backward()
        optimizer.step()
    trained = VAE.from_torch(module)

    assert trained.network_ == vae.network_
    assert trained.score(rows) > vae.score(rows) + 10
    np.testing.assert_array_equal(vae.params_, before)  # the module has copies


def test_fp64_goes_to_a_module_of_float64(torch: Any, rows: Array) -> None:
    vae = VAE(2, hidden_dims=(9,), backend="reference", precision="fp64", n_epochs=1, random_state=0).fit(rows)
    x = rows.astype(np.float64)
    with torch.no_grad():
        mu = vae.to_torch().encode(torch.from_numpy(x))[0]
    np.testing.assert_allclose(mu.numpy(), vae.transform(x), rtol=1e-12)


def test_dlpack_hands_results_over_without_a_copy(torch: Any, make_vae: Callable[..., VAE], rows: Array) -> None:
    vae = make_vae()
    for result in (vae.transform(rows), vae.reconstruct(rows), vae.sample(3)):
        assert torch.from_dlpack(result).data_ptr() == result.ctypes.data


# --- layouts --------------------------------------------------------------------------------------------------------


def pytorch_example(torch: Any) -> Any:
    """A module in the manner of PyTorch's example."""

    class Example(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc21, self.fc22 = torch.nn.Linear(64, 40), torch.nn.Linear(40, 5), torch.nn.Linear(40, 5)
            self.fc3, self.fc4 = torch.nn.Linear(5, 40), torch.nn.Linear(40, 64)

        def encode(self, x: Any) -> Any:
            h = torch.relu(self.fc1(x))
            return self.fc21(h), self.fc22(h)

        def decode(self, z: Any) -> Any:
            return torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))

    torch.manual_seed(1)
    return Example()


def test_pytorch_examples_layout_both_ways(torch: Any, rows: Array) -> None:
    module, x = pytorch_example(torch), torch.from_numpy(rows)

    vae = VAE.from_torch(module.state_dict())

    assert vae.network_ == Network(64, 5, (40,), (40,), activation="relu")
    with torch.no_grad():
        mu = module.encode(x)[0]
        comp = {"mu": vae.transform(rows), "decoded": vae.inverse_transform(mu)}
        ref = {"mu": mu.numpy(), "decoded": module.decode(mu).numpy()}
    differences(comp, ref, {"mu": "mu", "decoded": "out"}, "pytorch-examples")

    other = pytorch_example(torch)
    other.load_state_dict({name: torch.zeros_like(value) for name, value in module.state_dict().items()})
    other.load_state_dict(vae.state_dict("pytorch-examples"))
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.vae."])
def test_wrapped_modules_and_narrow_tensors_are_read(torch: Any, prefix: str) -> None:
    weights = pytorch_example(torch).bfloat16().state_dict()
    comp = VAE.from_torch({prefix + name: value for name, value in weights.items()})
    np.testing.assert_array_equal(comp.parameters_["encoder.0.W"], weights["fc1.weight"].float().numpy().T)


def test_a_module_of_ours_is_known_within_others(torch: Any, make_vae: Callable[..., VAE]) -> None:
    vae = make_vae(activation="relu", likelihood="gaussian", mean="identity")
    for module in (torch.nn.DataParallel(vae.to_torch()), torch.nn.Sequential(vae.to_torch())):
        comp = VAE.from_torch(module)
        assert comp.network_ == vae.network_
        np.testing.assert_array_equal(comp.params_, vae.params_)


def test_flax_modules_both_ways(rows: Array) -> None:
    linen = pytest.importorskip("flax.linen")
    import jax

    class Encoder(linen.Module):  # type: ignore[misc]
        @linen.compact
        def __call__(self, x: Any) -> Any:
            h = linen.relu(linen.Dense(30, name="fc1")(x))
            return linen.Dense(4, name="fc2_mean")(h), linen.Dense(4, name="fc2_logvar")(h)

    class Decoder(linen.Module):  # type: ignore[misc]
        @linen.compact
        def __call__(self, z: Any) -> Any:
            return linen.Dense(64, name="fc2")(linen.relu(linen.Dense(25, name="fc1")(z)))

    class Example(linen.Module):  # type: ignore[misc]
        def setup(self) -> None:
            self.encoder, self.decoder = Encoder(), Decoder()

        def __call__(self, x: Any) -> Any:
            mu, logvar = self.encoder(x)
            return linen.sigmoid(self.decoder(mu)), mu, logvar

    module = Example()
    variables = module.init(jax.random.key(0), rows)
    decoded, mu, _ = module.apply(variables, rows)

    vae = VAE.from_torch(variables)

    assert vae.network_ == Network(64, 4, (30,), (25,), activation="relu")
    comp = {"mu": vae.transform(rows), "decoded": vae.reconstruct(rows)}
    differences(comp, {"mu": mu, "decoded": decoded}, {"mu": "mu", "decoded": "out"}, "flax")
    back = module.apply({"params": vae.state_dict("flax")}, rows)
    np.testing.assert_array_equal(back[0], decoded)


def test_the_state_of_an_nnx_module_is_read() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class Side(nnx.Module):  # type: ignore[misc]
        def __init__(self, rngs: Any, **layers: tuple[int, int]) -> None:
            for name, (fan_in, fan_out) in layers.items():
                setattr(self, name, nnx.Linear(fan_in, fan_out, rngs=rngs))

    class Example(nnx.Module):  # type: ignore[misc]
        def __init__(self, rngs: Any) -> None:
            self.encoder = Side(rngs, fc1=(9, 6), fc2=(6, 5), fc3_mean=(5, 2), fc3_logvar=(5, 2))
            self.decoder = Side(rngs, fc1_mean=(2, 9), fc1_logvar=(2, 9))

    module = Example(nnx.Rngs(0))
    comp = VAE.from_torch(nnx.state(module), mean="identity")
    ref = Network(9, 2, (6, 5), (), activation="relu", likelihood="gaussian", mean="identity")
    assert comp.network_ == ref
    np.testing.assert_array_equal(comp.parameters_["decoder.logvar.W"], module.decoder.fc1_logvar.kernel[...])


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize(("hidden", "decoder_hidden"), HIDDEN)
@pytest.mark.parametrize(("likelihood", "mean"), LIKELIHOODS)
def test_every_layout_returns_the_same_model(
    make_vae: Callable[..., VAE],
    tmp_path: Path,
    layout: str,
    hidden: tuple[int, ...],
    decoder_hidden: tuple[int, ...],
    likelihood: str,
    mean: str,
) -> None:
    vae = make_vae(hidden, decoder_hidden, 10, likelihood=likelihood, mean=mean, activation="sigmoid")
    if layout == "pytorch-examples" and (likelihood != "bernoulli" or (len(hidden), len(decoder_hidden)) != (1, 1)):
        with pytest.raises(LayoutError, match=r"fc1, fc21.* use one of fastvae, torch, flax"):
            vae.export(tmp_path / "x.npz", layout=layout)
        return
    functions = {"activation": "sigmoid", "mean": mean, "logvar_floor": -6.0}
    for suffix, options in ((".npz", functions), (".safetensors", {})):
        vae.export(tmp_path / f"x{suffix}", layout=layout)
        comp = from_file(VAE, tmp_path / f"x{suffix}", **options)
        np.testing.assert_array_equal(comp.params_, vae.params_)
        assert comp.network_ == vae.network_
    assert comp.seed_ == vae.seed_
    if LAYOUTS[layout].is_torch:
        pytest.importorskip("torch")
    comp = VAE.from_torch(vae.state_dict(layout), likelihood=likelihood, **functions)
    np.testing.assert_array_equal(comp.params_, vae.params_)


def test_safetensors_are_plain_to_any_reader(make_vae: Callable[..., VAE], tmp_path: Path) -> None:
    vae = make_vae(likelihood="gaussian")
    vae.export(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert set(file.keys()) == set(vae.parameters_)
        for name, ref in vae.parameters_.items():
            np.testing.assert_array_equal(file.get_tensor(name), ref)
        said = file.metadata()
    assert {"likelihood": "gaussian", "activation": "tanh", "logvar_floor": "-6.0"}.items() <= said.items()


# --- a model of imported weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_training_on_imported_weights_is_training_on_ours(tmp_path: Path, dtype: Any) -> None:
    rows: Any = load("digits").train.rows if dtype == np.uint8 else load("digits").train.as_seen()
    options: dict[str, Any] = {"n_epochs": 2, "batch_size": 50, "random_state": 4}
    ref = VAE(3, hidden_dims=(12,), **options).fit(rows)

    start = ref.network_.layout.views(initialise(ref.network_, seed=4))
    comp = VAE.from_torch(start, image_shape=(8, 8), **options)
    assert comp.n_steps_ == 0
    comp.save(tmp_path / "x.safetensors")
    comp = VAE.load(tmp_path / "x.safetensors").resume(rows)

    np.testing.assert_array_equal(comp.params_, ref.params_)
    assert (comp.scale_, comp.integer_data_, comp.n_samples_seen_) == (ref.scale_, ref.integer_data_, len(rows))
    assert comp.image_shape_ == (8, 8)
    for model in (ref, comp):
        model.n_epochs = 3
        model.resume(rows)
        model.fingerprint_ = None
        with pytest.raises(CheckpointError, match="partial_fit has no epochs"):
            model.resume(rows)
        model.partial_fit(rows[:70])
    np.testing.assert_array_equal(comp.params_, ref.params_)
    with pytest.raises(ValueError, match="features"):
        VAE.from_torch(start).resume(rows[:, :50].copy())


def test_scale_is_for_bytes_and_comes_back_from_files(tmp_path: Path) -> None:
    grey = load("digits").train.rows[:100]
    assert isinstance(grey, np.ndarray)
    for x, scale in ((grey, 1 / 16), (grey / 16, None), (grey / 4, 0.25)):
        ref = VAE(2, hidden_dims=(8,), n_epochs=1, scale=scale, random_state=0).fit(x)
        ref.export(tmp_path / "x.safetensors")
        comp = from_file(VAE, tmp_path / "x.safetensors")
        assert (comp.scale_, comp.integer_data_) == (ref.scale_, ref.integer_data_)
        np.testing.assert_array_equal(comp.transform(x), ref.transform(x))
    weights = ref.state_dict("fastvae")
    ref = VAE.from_torch(weights, scale=1 / 16)
    np.testing.assert_array_equal(ref.transform(grey), VAE.from_torch(weights).transform(np.float32(grey) / 16))


# --- ONNX -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "likelihood", "mean"), FUNCTIONS)
def test_onnx_graphs_have_equal_outputs(
    make_vae: Callable[..., VAE], rows: Array, tmp_path: Path, activation: str, likelihood: str, mean: str
) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    vae = make_vae(activation=activation, likelihood=likelihood, mean=mean)
    paths = vae.to_onnx(tmp_path / "new" / "folder")
    encoder, decoder = (runtime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths)
    eps = np.random.default_rng(1).normal(size=(len(rows), 8)).astype(np.float32)
    ref = ours(vae, rows, eps)

    comp = dict(zip(("mu", "logvar"), encoder.run(["mu", "logvar"], {"x": rows}), strict=True))
    outputs = [output.name for output in decoder.get_outputs()]
    comp["decoded"], *more = decoder.run(outputs, {"z": ref.pop("z")})
    assert outputs == (["x", "logvar_x"] if likelihood == "gaussian" else ["x"])
    comp |= dict(zip(outputs[1:], more, strict=True))
    del ref["elbo"]
    differences(comp, ref, {name: RULES[name] for name in ref}, f"onnxruntime, {activation}, {likelihood}, {mean}")

    assert encoder.run(["mu"], {"x": rows[:1]})[0].shape == (1, 8)
    said = decoder.get_modelmeta().custom_metadata_map
    assert (said["likelihood"], said["scale"], said["activation"]) == (likelihood, "1.0", activation)
    assert said["fastvae"]


@pytest.mark.parametrize(("hidden", "decoder_hidden"), HIDDEN)
def test_any_hidden_layers_go_to_torch_and_onnx(
    torch: Any,
    make_vae: Callable[..., VAE],
    rows: Array,
    tmp_path: Path,
    hidden: tuple[int, ...],
    decoder_hidden: tuple[int, ...],
) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    vae = make_vae(hidden, decoder_hidden)
    ref = {"mu": vae.transform(rows), "decoded": vae.reconstruct(rows)}

    with torch.no_grad():
        module = vae.to_torch()
        mu = module.encode(torch.from_numpy(rows))[0]
        by_torch = {"mu": mu, "decoded": module.decode(mu)}
    encoder, decoder = (runtime.InferenceSession(path) for path in vae.to_onnx(tmp_path))
    (mu,) = encoder.run(["mu"], {"x": rows})
    by_onnx = {"mu": mu, "decoded": decoder.run(["x"], {"z": mu})[0]}

    for comp in (by_torch, by_onnx):
        differences(comp, ref, {"mu": "mu", "decoded": "out"}, f"hidden {hidden}, {decoder_hidden}")


# --- errors ---------------------------------------------------------------------------------------------------------


def weights(**changes: Any) -> dict[str, Any]:
    """Weights of a small network in PyTorch's example's layout; a change to None leaves one out."""
    shapes = {"fc1": (6, 9), "fc21": (2, 6), "fc22": (2, 6), "fc3": (5, 2), "fc4": (9, 5)}
    arrays: dict[str, Any] = {}
    for name, shape in shapes.items():
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = np.ones(shape), np.ones(shape[0])
    arrays |= {name.replace("_", "."): value for name, value in changes.items()}
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("state_dict", "text"),
    [
        ({}, "found nothing; expected fastvae: encoder.0.W"),
        ([1], "expected a mapping of names to arrays"),
        ({"conv.weight": np.ones((3, 3))}, r"found weight \(3, 3\); expected .*pytorch-examples: fc1, fc21"),
        (weights(fc3_bias=None), r"not the weights of a known layout: found fc1.weight \(6, 9\), fc1.bias"),
        (weights(fc5_weight=np.ones((1, 1))), r"fc5.weight \(1, 1\); expected"),
        (weights(fc22_bias=np.ones(3)), r"'pytorch-examples' do not fit .*fc22.bias \(3,\).* expected weights \(out"),
        (weights(fc1_weight=np.ones((6, 8))), r"do not fit together: found fc1.weight \(6, 8\)"),
        (weights(fc4_weight=np.ones((9, 6))), r"do not fit together"),
        (weights(fc1_weight=np.ones(54)), r"do not fit together: found fc1.weight \(54,\)"),
        (weights(fc1_bias=np.ones(6) + 1j), "fc1.bias is no array of real numbers"),
        (weights(fc1_bias="none"), "fc1.bias is no array of real numbers"),
        (weights(fc21_bias=np.array([1, np.nan])), "fc21.bias has values that are not finite"),
        (weights(fc1_bias=np.full(6, 1e39)), "encoder.0.b has values beyond float32"),
        ({f"encoder.{i}.W": np.ones((2, 2)) for i in range(99)}, "and 75 more; expected"),
    ],
)
def test_what_is_no_known_layout_is_one_error(state_dict: Any, text: str) -> None:
    with pytest.raises(LayoutError, match=text):
        VAE.from_torch(state_dict)


@pytest.mark.parametrize(
    "kind",
    [lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t + 1j],
    ids=["meta", "sparse", "complex"],
)
def test_tensors_without_dense_real_values_are_refused(torch: Any, kind: Any) -> None:
    with pytest.raises(LayoutError, match=r"fc1.bias is no array of real numbers \(.+\)"):
        VAE.from_torch(weights(fc1_bias=kind(torch.ones(6))))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"likelihood": "gaussian"}, "heads logits is of likelihood='bernoulli', not 'gaussian'"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"algorithm": "mcem"}, "keeps a Markov chain for every row"),
        ({"image_shape": (2, 4)}, r"image_shape \(2, 4\) does not fit rows of 9 columns"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"scale": -1.0}, "scale must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        VAE.from_torch(weights(), **options)


def test_models_without_a_recognition_model_are_refused(rows: Array, tmp_path: Path) -> None:
    vae = VAE(2, hidden_dims=(8,), algorithm="mcem", n_epochs=1, random_state=0).fit(rows)
    for call in (vae.to_torch, vae.state_dict, lambda: vae.export(tmp_path / "x.npz"), lambda: vae.to_onnx(tmp_path)):
        with pytest.raises(ValueError, match="has no recognition model"):
            call()
    with pytest.raises(ValueError, match="no distribution q"):
        VAE(2, hidden_dims=(8,), algorithm="autoencoder", n_epochs=1, random_state=0).fit(rows).to_torch()


@pytest.mark.parametrize(
    ("module", "call", "text"),
    [
        ("torch", lambda vae: vae.to_torch(), r"needs torch: pip install 'fastvae\[torch\]'"),
        ("onnx", lambda vae: vae.to_onnx("x"), r"needs onnx: pip install 'fastvae\[onnx\]'"),
    ],
)
def test_a_missing_library_is_one_line(
    make_vae: Callable[..., VAE], monkeypatch: pytest.MonkeyPatch, module: str, call: Any, text: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fastvae.interop.onnx_graphs", raising=False)
    with pytest.raises(ImportError, match=text):
        call(make_vae())


def test_a_graph_that_no_onnx_file_holds_is_refused(
    make_vae: Callable[..., VAE], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    from fastvae.interop import onnx_graphs

    vae = make_vae(decoder_hidden=(100,))  # 64-60-40-8, of 28 kB, and 8-100-64, of 29 kB
    monkeypatch.setattr(onnx_graphs, "_MAX_BYTES", 29_000)
    with pytest.raises(ValueError, match=r"the decoder has 0.0 GB, and an ONNX file holds 2.1; take safetensors"):
        vae.to_onnx(tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, fastvae.vae; print([name for name in ('torch', 'onnx', 'jax', 'flax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


# --- command line ---------------------------------------------------------------------------------------------------


def test_export_and_import_on_the_command_line(
    fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path
) -> None:
    ref = VAE.load(run_folder)
    for form in ("safetensors", "npz", "torch", "pytorch-examples", "flax"):
        path = tmp_path / f"m-{form}.{'npz' if form == 'npz' else 'safetensors'}"
        result = fastvae("export", run_folder, "--format", form, "--out", path)
        assert (result.code, result.out, result.err) == (0, f"{path}\n", "")
        out = tmp_path / "back.safetensors"
        values = fastvae("import", path, "--out", out, "--json").json()
        assert values["out"] == str(out)
        assert (values["hidden"], values["latent_dim"], values["activation"]) == ([16], 2, "tanh")
        np.testing.assert_array_equal(VAE.load(out).params_, ref.params_)
    bound = fastvae("evaluate", run_folder, "--data", "digits", "--json").json()["elbo"]
    fastvae("import", tmp_path / "m-flax.safetensors", "--out", out)
    assert fastvae("evaluate", out, "--data", "digits", "--json").json()["elbo"] == bound
    assert fastvae("sample", out, "--out", tmp_path / "x.png").code == 0  # the shape of the images came along


def test_onnx_and_image_shape_on_the_command_line(
    fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    values = fastvae("export", run_folder, "--format", "onnx", "--out", tmp_path / "onnx", "--json").json()
    assert [Path(path).name for path in values["out"]] == ["encoder.onnx", "decoder.onnx"]
    assert all(Path(path).is_file() for path in values["out"])

    save_file({name: np.float32(array) for name, array in weights().items()}, tmp_path / "w.safetensors")
    out = tmp_path / "m.safetensors"
    result = fastvae("import", tmp_path / "w.safetensors", "--out", out, "--image-shape", 3, 3)
    assert result.code == 0
    assert dict(line.split() for line in result.out.splitlines()) == {
        "data_dim": "9",
        "latent_dim": "2",
        "hidden": "6",
        "decoder_hidden": "5",
        "activation": "relu",
        "likelihood": "bernoulli",
        "out": str(out),
    }
    assert VAE.load(out).image_shape_ == (3, 3)


def test_errors_of_export_and_import(fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    def refused(*args: Any, code: int = 1, text: str) -> None:
        assert_error(fastvae(*args, "--out", tmp_path / "out.safetensors"), code, text)
        assert not (tmp_path / "out.safetensors").exists()

    for name in ("vae.pt", "vae.pth"):
        (tmp_path / name).write_bytes(b"pickle")
        refused(
            "import", tmp_path / name, text=f'save_file(torch.load("{name}", weights_only=True), "vae.safetensors")'
        )
    for suffix in (".npz", ".safetensors"):
        (tmp_path / f"junk{suffix}").write_bytes(b"no such thing" * 9)
        refused("import", tmp_path / f"junk{suffix}", text=f"cannot be read as {suffix} (")
    np.savez(tmp_path / "objects.npz", fc1=np.array([{}], object))
    refused("import", tmp_path / "objects.npz", text="cannot be read as .npz")
    refused("import", tmp_path / "none.npz", text="No such file")
    refused("import", run_folder, text="is a folder; a run or checkpoint of fastvae needs no import")
    save_file({"a": np.ones(1)}, tmp_path / "a.safetensors", {"sha256": json.dumps({})})
    refused("import", tmp_path / "a.safetensors", text="not the weights of a known layout: found a (1,)")
    save_file({"a": np.ones(1)}, tmp_path / "a.safetensors", {"fastvae": "0.1.0"})
    refused("import", tmp_path / "a.safetensors", text="has damaged metadata of fastvae (KeyError('activation'))")
    checkpoint = next((run_folder / "checkpoints").iterdir())
    refused("import", checkpoint, text="is a checkpoint of fastvae and needs no import")
    refused("export", run_folder, "--format", "npz", code=2, text="must end in .npz for --format npz")
    refused("export", tmp_path, text="holds no checkpoint")
    result = fastvae("export", run_folder, "--out", tmp_path / "none" / "x.safetensors")
    assert_error(result, 2, "does not exist; make it or choose another")
