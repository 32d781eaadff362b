"""Training steps in PyTorch on a GPU, each way as fast as its experts would have it; the rows lie there as bytes.

A step takes nothing from the host: its rows are read through a counter on the device, so that it can be captured whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastvae.bench.cases import Case
from fastvae.bench.peers_torch import TorchModel
from fastvae.data import Dataset
from fastvae.kernels import Array
from fastvae.optimizer import Optimizer

__all__ = ["VARIANTS", "TorchSteps", "set_precision"]

# name -> mode of torch.compile or None, whether the optimizer is in the compiled function, whether whole steps are one
# CUDA graph. "reduce-overhead" makes graphs of forward and backward by itself. What takes long to compile comes last.
VARIANTS: dict[str, tuple[str | None, bool, bool]] = {
    "eager graph": (None, False, True),
    "eager": (None, False, False),
    "compile graph": ("default", True, True),
    "max-autotune graph": ("max-autotune-no-cudagraphs", True, True),
    "reduce-overhead": ("reduce-overhead", False, False),
}
# Steps of one captured graph: what its launch costs is shared by them.
_CAPTURED = 10
_WARM_UP = 3


def set_precision(precision: str) -> None:
    """Let float32 products be float32 ("fp32"), or tf32 ("tf32", "bf16": what autocast leaves in float32)."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


class _Loss(torch.nn.Module):  # type: ignore[misc]
    """The loss as a module, so that it is a function of its parameters."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.encoder, self.decoder, self.model = model.encoder, model.decoder, model

    def forward(self, index: Any, eps: Any) -> Any:
        return self.model.loss(index, eps)


class TorchSteps:
    """Steps with Adagrad, one after another.

    Parameters
    ----------
    case : Case
    data : Dataset
        Dense.
    order : ndarray of shape (T, M), int64
        Rows of each step; after the last the first follows.
    precision : {"fp32", "tf32", "bf16"}
    variant : str
        One of `VARIANTS`.
    device : {"cuda", "cpu"}
        Without a GPU nothing is captured; the steps are the same.
    """

    def __init__(
        self, case: Case, data: Dataset, order: Array, *, precision: str, variant: str, device: str = "cuda"
    ) -> None:
        torch.manual_seed(0)
        set_precision(precision)
        mode, whole, captured = VARIANTS[variant]
        self.model = TorchModel(case, data, bf16=precision == "bf16", device=device)
        self.order, self.at = torch.from_numpy(order).to(device), torch.zeros(1, dtype=torch.int64, device=device)
        self.total, self.n_steps = torch.zeros((), device=device), 0  # of the losses since `bound` was asked
        self.eps: Any = None  # given by tests
        self._mode = mode
        self._move = self._as_one_function(case.optimizer) if whole else self._by_autograd(case.optimizer)
        self._graph = self._captured() if captured and device == "cuda" else None

    def run(self, steps: int) -> int:
        """Queue about so many steps; return how many."""
        each = _CAPTURED if self._graph else 1
        rounds = -(-steps // each)
        once = self._graph.replay if self._graph else self._step
        for _ in range(rounds):
            once()
        self.n_steps += rounds * each
        return rounds * each

    def bound(self) -> float:
        """Return the mean bound of the steps since the last call, in nats."""
        mean = -float(self.total) / max(self.n_steps, 1)
        self.total.zero_()
        self.n_steps = 0
        return mean

    def _step(self) -> None:
        index = self.order.index_select(0, self.at).squeeze(0)
        self.at.add_(1).remainder_(len(self.order))
        self.total.add_(self._move(index))

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self._mode:
            return function
        # else the compiler's own graphs would copy the whole dataset at every step
        torch._dynamo.mark_static_address(self.model.rows)
        torch._dynamo.reset()  # what was compiled for other sizes counts towards a limit, beyond which nothing is
        compiled: Callable[..., Any] = torch.compile(function, mode=self._mode, dynamic=False, fullgraph=True)
        return compiled

    def _by_autograd(self, o: Optimizer) -> Callable[[Any], Any]:
        """Compile the loss with its gradient; the optimizer is PyTorch's."""
        loss_of = self._compiled(self.model.loss)
        optimizer = _adagrad(self.model.parameters, lr=o.learning_rate, eps=o.epsilon)

        def move(index: Any) -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(index, self.eps)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return move

    def _as_one_function(self, o: Optimizer) -> Callable[[Any], Any]:
        """Compile loss, gradients and Adagrad as one function, for the compiler to fuse."""
        module = _Loss(self.model)
        params = {name: p.detach() for name, p in module.named_parameters()}
        squares = {name: torch.zeros_like(p) for name, p in params.items()}

        def step(params: Any, squares: Any, index: Any, eps: Any) -> Any:
            def loss_of(values: Any) -> Any:
                return torch.func.functional_call(module, values, (index, eps))

            grads, loss = torch.func.grad_and_value(loss_of)(params)
            for name, g in grads.items():
                squares[name].addcmul_(g, g)
                params[name].addcdiv_(g, squares[name].sqrt().add_(o.epsilon), value=-o.learning_rate)
            return loss

        compiled = self._compiled(step)
        return lambda index: compiled(params, squares, index, self.eps)

    def _captured(self) -> Any:
        """Several steps as a graph, after a warm-up on another stream, as the documentation of CUDA graphs has it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_CAPTURED):
                self._step()
        return graph


def _adagrad(parameters: list[Any], **constants: float) -> Any:
    """The fused optimizer, or that by lists of tensors where this PyTorch has none fused for the device."""
    trial = torch.zeros_like(parameters[0], requires_grad=True)
    trial.grad = torch.zeros_like(trial)
    try:
        torch.optim.Adagrad([trial], fused=True).step()
    except (RuntimeError, NotImplementedError):
        return torch.optim.Adagrad(parameters, foreach=True, **constants)
    return torch.optim.Adagrad(parameters, fused=True, **constants)
