"""The model as a `torch.nn.Module`. PyTorch is imported on top: only `VAE.to_torch` imports this module."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from fastvae.network import Network

__all__ = ["TorchVAE"]

_ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
}


class TorchVAE(torch.nn.Module):  # type: ignore[misc]
    """Variational auto-encoder in PyTorch.

    With M rows, D data and J latent dimensions. Rows x are as the model sees data; images of any shape are flattened.
    All bounds are in nats per datapoint, summed over dimensions. The parameters are named as `VAE.parameters_`, with
    ``weight`` (out, in) and ``bias`` in place of ``W`` and ``b``.

    Parameters
    ----------
    network : Network
    scale : float
        What made the training data the rows that it saw; for the caller's use.
    """

    def __init__(self, network: Network, *, scale: float = 1.0) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.encoder = _side(network.encoder_dims, ("mu", "logvar"))
        self.decoder = _side(network.decoder_dims, network.decoder_heads)

    def _run(self, side: Any, x: Any) -> list[Any]:
        heads = []
        for name, layer in side.items():
            if name.isdigit():
                x = _ACTIVATIONS[self.network.activation](layer(x))
            else:
                heads.append(layer(x))
        return heads

    def encode(self, x: Any) -> tuple[Any, Any]:
        """Return mu and logvar of q(z|x), each (M, J)."""
        mu, logvar = self._run(self.encoder, x.flatten(1))
        return mu, logvar

    def reparameterize(self, mu: Any, logvar: Any, eps: Any = None) -> Any:
        """Return z = mu + exp(logvar / 2) eps, with eps from N(0, I) unless given (section 2.4)."""
        return mu + torch.exp(logvar / 2) * (torch.randn_like(mu) if eps is None else eps)

    def heads(self, z: Any) -> dict[str, Any]:
        """Return the parameters of p(x|z), each (M, D): ``logits``; or ``mean`` and ``logvar``."""
        heads = dict(zip(self.network.decoder_heads, self._run(self.decoder, z), strict=True))
        if self.network.likelihood == "gaussian":
            floor = self.network.logvar_floor
            heads["logvar"] = floor + functional.softplus(heads["logvar"] - floor)
            if self.network.mean == "sigmoid":
                heads["mean"] = torch.sigmoid(heads["mean"])
        return heads

    def decode(self, z: Any) -> Any:
        """Return the mean of p(x|z), (M, D)."""
        heads = self.heads(z)
        return torch.sigmoid(heads["logits"]) if self.network.likelihood == "bernoulli" else heads["mean"]

    def forward(self, x: Any) -> tuple[Any, Any, Any]:
        """Return the mean of p(x|z) at a z drawn from q(z|x), mu and logvar."""
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar

    def log_px(self, x: Any, z: Any) -> Any:
        """Return log p(x|z) of each row in nats."""
        x, heads = x.flatten(1), self.heads(z)
        if self.network.likelihood == "bernoulli":
            a = heads["logits"]
            return (x * a - functional.softplus(a)).sum(-1)
        mean, logvar = heads["mean"], heads["logvar"]
        return -0.5 * (math.log(2 * math.pi) + logvar + (x - mean).square() * torch.exp(-logvar)).sum(-1)

    def elbo(self, x: Any, eps: Any = None) -> Any:
        """Return the bound of each row, (M,): log p(x|z) at one draw less the analytic KL divergence (equation 7).

        Parameters
        ----------
        x : tensor of shape (M, D)
        eps : tensor of shape (M, J), optional
            By default drawn from N(0, I).
        """
        mu, logvar = self.encode(x)
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1)
        return self.log_px(x, self.reparameterize(mu, logvar, eps)) - kl

    def loss(self, x: Any) -> Any:
        """Return minus the mean bound of the rows, which training descends."""
        return -self.elbo(x).mean()


def _side(dims: tuple[int, ...], heads: tuple[str, ...]) -> Any:
    """Return the layers of a side by name: ``0``, ``1``, ..., then its heads."""
    layers = {str(i): torch.nn.Linear(k, n) for i, (k, n) in enumerate(pairwise(dims[:-1]))}
    return torch.nn.ModuleDict(layers | {head: torch.nn.Linear(dims[-2], dims[-1] // len(heads)) for head in heads})
