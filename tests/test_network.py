"""Network, its flat layout with named views, and its initial values."""

from __future__ import annotations

import dataclasses
from typing import Any

import naive
import numpy as np
import pytest

from fastvae.network import ACTIVATIONS, LIKELIHOODS, MEANS, Network, initialise

NETWORKS = [
    Network(5, 2, encoder_hidden=(4, 3), decoder_hidden=(6,)),
    Network(7, 3, encoder_hidden=(), decoder_hidden=(), likelihood="gaussian"),
    Network(1, 1, encoder_hidden=(1,), decoder_hidden=(1, 1, 1), likelihood="gaussian", mean="identity"),
]


def test_the_papers_mnist_network() -> None:
    network = Network(784, 20)
    assert network.encoder_dims == (784, 500, 40)
    assert network.decoder_dims == (20, 500, 784)
    assert network.layout.size == 785 * 500 + 501 * 40 + 21 * 500 + 501 * 784
    shapes = {name: view.shape for name, view in network.layout.views(np.zeros(network.layout.size)).items()}
    assert shapes == {
        "encoder.0.W": (784, 500),
        "encoder.0.b": (500,),
        "encoder.mu.W": (500, 20),
        "encoder.mu.b": (20,),
        "encoder.logvar.W": (500, 20),
        "encoder.logvar.b": (20,),
        "decoder.0.W": (20, 500),
        "decoder.0.b": (500,),
        "decoder.logits.W": (500, 784),
        "decoder.logits.b": (784,),
    }


def test_gaussian_heads() -> None:
    network = Network(7, 2, decoder_hidden=(), likelihood="gaussian")
    assert network.decoder_heads == ("mean", "logvar")
    assert network.decoder_dims == (2, 14)
    views = network.layout.views(np.zeros(network.layout.size))
    assert views["decoder.mean.W"].shape == views["decoder.logvar.W"].shape == (2, 7)


@pytest.mark.parametrize("network", NETWORKS)
def test_views_cover_the_buffer_once(network: Network) -> None:
    """Writing each view writes each entry of the buffer exactly once."""
    flat = np.zeros(network.layout.size)
    for view in network.layout.views(flat).values():
        view += 1
    np.testing.assert_array_equal(flat, 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_equal_the_loops(network: Network) -> None:
    """Layer by layer: W row by row, then b, encoder before decoder."""
    flat = np.arange(network.layout.size, dtype=np.float64)
    encoder, decoder = naive.unflatten(network, flat)
    for layer, (weight, bias) in zip(network.layout.layers, encoder + decoder, strict=True):
        np.testing.assert_array_equal(layer.weight(flat), weight)
        np.testing.assert_array_equal(layer.bias(flat), bias)


@pytest.mark.parametrize("network", NETWORKS)
def test_heads_lie_side_by_side(network: Network) -> None:
    flat = np.arange(network.layout.size)
    views, heads = network.layout.views(flat), network.layout.encoder[-1]
    together = np.hstack([views["encoder.mu.W"], views["encoder.logvar.W"]])
    np.testing.assert_array_equal(heads.weight(flat), together)
    together = np.hstack([views["encoder.mu.b"], views["encoder.logvar.b"]])
    np.testing.assert_array_equal(heads.bias(flat), together)


@pytest.mark.parametrize("shape", [(3,), (1, 56)])
def test_views_refuse_another_buffer(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="flat buffer of shape"):
        NETWORKS[0].layout.views(np.zeros(shape))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_dim", 0),
        ("data_dim", -3),
        ("data_dim", 2.0),
        ("data_dim", True),
        ("data_dim", "7"),
        ("data_dim", 2**24 + 1),
        ("latent_dim", 0),
        ("latent_dim", None),
        ("encoder_hidden", (4, 0)),
        ("encoder_hidden", (4.5,)),
        ("decoder_hidden", (True,)),
        ("activation", "elu"),
        ("likelihood", "poisson"),
        ("mean", "tanh"),
        ("logvar_floor", float("nan")),
        ("logvar_floor", -81.0),
        ("logvar_floor", float("inf")),
    ],
)
def test_bad_fields_are_refused(field: str, value: Any) -> None:
    fields: dict[str, Any] = {"data_dim": 5, "latent_dim": 2, field: value}
    with pytest.raises(ValueError, match=field):
        Network(**fields)


def test_numpy_integers_and_lists_become_plain() -> None:
    network = Network(np.int64(5), np.int32(2), encoder_hidden=[np.int16(4)])  # type: ignore[arg-type]
    assert network == Network(5, 2, encoder_hidden=(4,))
    assert hash(network) == hash(Network(5, 2, encoder_hidden=(4,)))
    assert [type(width) for width in (network.data_dim, network.latent_dim, *network.encoder_hidden)] == [int] * 3


def test_a_network_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NETWORKS[0].data_dim = 3  # type: ignore[misc]


@pytest.mark.parametrize("network", NETWORKS)
def test_fields_survive_a_dictionary(network: Network) -> None:
    assert Network.from_dict(network.to_dict()) == network


def test_names_are_the_contracts() -> None:
    assert ACTIVATIONS == ("tanh", "relu", "softplus", "sigmoid")
    assert LIKELIHOODS == ("bernoulli", "gaussian")
    assert MEANS == ("sigmoid", "identity")


# --- initial values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["fan_in", 0.1, 0.01])
def test_initial_values(init: str | float) -> None:
    """Zero biases; weights of mean 0 and the asked standard deviation, within five standard errors."""
    network = Network(100, 30, encoder_hidden=(200,), decoder_hidden=(150,))
    params = initialise(network, seed=3, init=init)
    assert params.dtype == np.float32
    for layer in network.layout.layers:
        weight = layer.weight(params).astype(np.float64)
        sd = layer.fan_in**-0.5 if init == "fan_in" else init
        assert isinstance(sd, float)
        assert not layer.bias(params).any()
        assert abs(weight.mean()) < 5 * sd / np.sqrt(weight.size)
        assert abs(weight.std() / sd - 1) < 5 / np.sqrt(2 * weight.size)


def test_initial_values_are_the_streams() -> None:
    """Layer i is stream INIT at step i, scaled."""
    network = Network(4, 2, encoder_hidden=(3,), decoder_hidden=())
    params = initialise(network, seed=8, init=0.5)
    for step, layer in enumerate(network.layout.layers):
        expected = [0.5 * naive.normal(i, seed=8, step=step, stream=3) for i in range(layer.fan_in * layer.fan_out)]
        np.testing.assert_allclose(layer.weight(params).reshape(-1), expected, rtol=1e-6)


def test_initial_values_depend_on_the_seed_alone() -> None:
    first, again, other = (initialise(NETWORKS[0], seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("init", [0, -0.1, float("nan"), float("inf"), "xavier", None])
def test_bad_init_is_refused(init: Any) -> None:
    with pytest.raises(ValueError, match="init"):
        initialise(NETWORKS[0], seed=0, init=init)
