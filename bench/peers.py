"""The same training step in PyTorch as its users write it: data resident as float32, one process, no loader."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from fastvae.bench.cases import Case
from fastvae.data import Dataset
from fastvae.rng import epoch_order

__all__ = ["torch_runner"]


def torch_runner(case: Case, data: Dataset, *, n_threads: int, fused: bool) -> Callable[[int], None]:
    """Return ``run(n_steps)`` of eager PyTorch with its own, or its fused, Adagrad.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    """
    import torch
    from torch.nn import functional

    if case.network.activation != "tanh" or case.network.likelihood != "bernoulli" or case.optimizer.name != "adagrad":
        raise ValueError(f"case {case.name!r} has no PyTorch peer")
    torch.manual_seed(0)
    torch.set_num_threads(n_threads)

    def chain(dims: tuple[int, ...]) -> torch.nn.Sequential:
        layers = [m for k, n in itertools.pairwise(dims) for m in (torch.nn.Linear(k, n), torch.nn.Tanh())]
        return torch.nn.Sequential(*layers[:-1])

    encoder, decoder = chain(case.network.encoder_dims), chain(case.network.decoder_dims)
    optimizer = torch.optim.Adagrad(
        [*encoder.parameters(), *decoder.parameters()],
        lr=case.optimizer.learning_rate,
        eps=case.optimizer.epsilon,
        fused=fused,
    )
    rows = torch.from_numpy(data.rows).float() * data.scale
    order = torch.from_numpy(epoch_order(data.n_rows, seed=0, epoch=0)).split(case.batch_size)

    def run(n_steps: int) -> None:
        for index in order[:n_steps]:
            x = rows[index]
            mu, logvar = encoder(x).chunk(2, dim=1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            log_px = -functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
            optimizer.zero_grad(set_to_none=True)
            ((kl - log_px) / len(index)).backward()
            optimizer.step()

    return run
