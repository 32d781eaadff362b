"""A case in PyTorch, written as its experts would: rows resident as uint8, fused optimizer, nothing needless.

PyTorch is imported on top: only a worker that has asked for it imports this module.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fastvae.bench.cases import Case
from fastvae.data import Dataset
from fastvae.kernels import Array
from fastvae.network import Dense, initialise

__all__ = ["TorchModel", "make"]

_ACTIVATIONS = {
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
    "softplus": torch.nn.Softplus,
    "sigmoid": torch.nn.Sigmoid,
}

# Rows of one batch of a pass over all rows; 500 to 2000 take the same time.
_PASS_ROWS = 1000


def make(
    case: Case, data: Dataset, *, n_threads: int, compiled: bool = False, mode: str | None = None, bf16: bool = False
) -> _Training | _Inference:
    """Return the runner of a case: eager or compiled, float32 or bfloat16 by autocast."""
    torch.manual_seed(0)
    torch.set_num_threads(n_threads)
    model = TorchModel(case, data, bf16=bf16)
    runner = _Training(case, model) if case.kind == "train" else _Inference(case, model)
    if compiled:
        runner.function = torch.compile(runner.function, mode=mode, dynamic=False)
    return runner


class _FromNonzeros(torch.nn.Module):  # type: ignore[misc]
    """An affine layer whose input is (columns, values) of each row's nonzeros: a sum of rows of W, shape (in, out)."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(fan_in, fan_out))
        self.bias = torch.nn.Parameter(torch.empty(fan_out))

    def forward(self, nonzeros: Any) -> Any:
        columns, values = nonzeros
        return functional.embedding_bag(columns, self.weight, per_sample_weights=values, mode="sum") + self.bias


def _padded(csr: Any) -> tuple[Any, Any]:
    """Return columns and values of the nonzeros of every row, as many as the fullest row has, filled up with zeros."""
    counts = np.diff(csr.indptr)
    used = np.arange(counts.max()) < counts[:, np.newaxis]
    columns, values = np.zeros(used.shape, np.int32), np.zeros(used.shape, csr.dtype)
    columns[used], values[used] = csr.indices, csr.data
    return torch.from_numpy(columns), torch.from_numpy(values)


def _weight(module: Any) -> Any:
    """View of W as our layout has it, shape (in, out)."""
    return module.weight if isinstance(module, _FromNonzeros) else module.weight.T


class TorchModel:
    """Encoder, decoder and bound.

    Sparse rows go through the first layer by their nonzeros; in the likelihood they are dense. For wide-sparse on two
    AVX-512 cores that took 93 ms, a dense first layer 116, one by ``torch.sparse.mm`` 108, with sparse gradients 146.
    """

    def __init__(self, case: Case, data: Dataset, *, bf16: bool, device: str = "cpu") -> None:
        self.network, self.bf16, self.scale, self.device = case.network, bf16, data.scale, device
        stored: Any = data.rows
        # Bytes made into floats are quicker than floats fetched: a minibatch of MNIST in 20 us against 24.
        self.rows = torch.from_numpy(stored.toarray() if data.is_sparse else stored).to(device)
        self.nonzeros = _padded(stored) if data.is_sparse else None
        self.encoder, self.decoder = self._chain(case.network.encoder_dims), self._chain(case.network.decoder_dims)
        if data.is_sparse:
            self.encoder[0] = _FromNonzeros(*case.network.encoder_dims[:2])
        for side in (self.encoder, self.decoder):
            side.to(device)
        self.load()

    def _chain(self, dims: tuple[int, ...]) -> Any:
        activation = _ACTIVATIONS[self.network.activation]
        layers = [m for k, n in pairwise(dims) for m in (torch.nn.Linear(k, n), activation())]
        return torch.nn.Sequential(*layers[:-1])

    @property
    def parameters(self) -> list[Any]:
        """Weights and biases of every layer."""
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def _linears(self) -> list[tuple[Dense, Any]]:
        linears = [m for m in (*self.encoder, *self.decoder) if hasattr(m, "weight")]
        return list(zip(self.network.layout.layers, linears, strict=True))

    def load(self) -> None:
        """Start from the parameters that everybody starts from."""
        flat = initialise(self.network, seed=0)
        with torch.no_grad():
            for layer, linear in self._linears():
                _weight(linear).copy_(torch.from_numpy(layer.weight(flat)))
                linear.bias.copy_(torch.from_numpy(layer.bias(flat)))

    def flat(self) -> Array:
        """Return the parameters as our flat buffer."""
        flat = np.empty(self.network.layout.size, np.float32)
        for layer, linear in self._linears():
            layer.weight(flat)[:] = _weight(linear).detach().cpu().numpy()
            layer.bias(flat)[:] = linear.bias.detach().cpu().numpy()
        return flat

    def _scaled(self, stored: Any, index: Any) -> Any:
        return stored.index_select(0, index).float().mul_(self.scale)

    def fetch(self, index: Any) -> tuple[Any, Any]:
        """Return x, and what the encoder takes for it."""
        x = self._scaled(self.rows, index)
        if self.nonzeros is None:
            return x, x
        columns, values = self.nonzeros
        return x, (columns.index_select(0, index), self._scaled(values, index))

    def encode(self, x: Any) -> Any:
        """Return mu and logvar."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            heads = self.encoder(x)
        return heads.float().chunk(2, dim=1)

    def decode(self, z: Any) -> Any:
        """Return the decoder's heads."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            out = self.decoder(z)
        return out.float()

    def log_px(self, x: Any, out: Any, *, reduction: str) -> Any:
        """Log p(x|z), summed over all or per element."""
        if self.network.likelihood == "bernoulli":
            return -functional.binary_cross_entropy_with_logits(out, x, reduction=reduction)
        mean, raw = out.chunk(2, dim=1)
        if self.network.mean == "sigmoid":
            mean = torch.sigmoid(mean)
        logvar = self.network.logvar_floor + functional.softplus(raw - self.network.logvar_floor)
        terms = -0.5 * (np.log(2 * np.pi) + logvar + (x - mean).square() * torch.exp(-logvar))
        return terms.sum() if reduction == "sum" else terms

    def loss(self, index: Any, eps: Any = None) -> Any:
        """Minus the bound of a minibatch with one draw, eps of shape (M, J) or drawn here: its mean over the rows."""
        x, encoder_input = self.fetch(index)
        mu, logvar = self.encode(encoder_input)
        z = mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) if eps is None else eps)
        log_px = self.log_px(x, self.decode(z), reduction="sum")
        return (_kl(mu, logvar).sum() - log_px) / len(index)


def _kl(mu: Any, logvar: Any) -> Any:
    return -0.5 * (1 + logvar - mu.square() - logvar.exp())


class _Training:
    """Steps of fetch, loss, backprop and fused optimizer; what is compiled is the loss with its gradient."""

    def __init__(self, case: Case, model: TorchModel) -> None:
        self.optimizer_settings, self.model = case.optimizer, model
        self.function = model.loss
        self.optimizer: Any = None
        self.reset()

    def reset(self) -> None:
        self.model.load()
        o = self.optimizer_settings
        if o.name == "adagrad":
            self.optimizer = torch.optim.Adagrad(self.model.parameters, lr=o.learning_rate, eps=o.epsilon, fused=True)
        elif o.name == "adam":
            self.optimizer = torch.optim.Adam(
                self.model.parameters, lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.epsilon, fused=True
            )
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters, lr=o.learning_rate, momentum=o.momentum, fused=True)

    def run(self, order: Array) -> None:
        for index in torch.from_numpy(order):
            self.optimizer.zero_grad(set_to_none=True)
            self.function(index).backward()
            self.optimizer.step()

    def params(self) -> Array:
        return self.model.flat()


class _Inference:
    """Passes over all rows in batches."""

    def __init__(self, case: Case, model: TorchModel) -> None:
        self.model = model
        self.function = self._encode if case.kind == "encode" else self._bound
        self.batches = torch.arange(len(model.rows)).split(_PASS_ROWS)

    def _encode(self, index: Any) -> Any:
        return torch.cat(self.model.encode(self.model.fetch(index)[1]), dim=1)

    def _bound(self, index: Any) -> Any:
        x, encoder_input = self.model.fetch(index)
        mu, logvar = self.model.encode(encoder_input)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.model.log_px(x, self.model.decode(z), reduction="none").sum(1) - _kl(mu, logvar).sum(1)

    def run(self, order: Array) -> None:
        with torch.inference_mode():
            for _ in order:
                torch.cat([self.function(index) for index in self.batches])
