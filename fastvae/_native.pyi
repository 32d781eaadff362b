"""Types of the compiled C++ engine; `fastvae.kernels` describes every argument."""

from typing import Any

from fastvae.kernels import Array
from fastvae.network import Network
from fastvae.optimizer import Optimizer

NAME: str
PRECISIONS: tuple[str, ...]

class Plan:
    network: Network
    rows: int
    draws: int
    precision: str
    n_threads: int
    phase_seconds: dict[str, float]

    def gather(
        self, *, data: Any, index: Array, scale: float, binarize: str, seed: int, step: int, x: Array
    ) -> None: ...
    def encoder_forward(
        self, *, params: Array, x: Array, hidden: tuple[Array, ...], mu: Array, logvar: Array
    ) -> None: ...
    def latent_forward(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None: ...
    def latent_forward_sampled(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None: ...
    def decoder_forward(self, *, params: Array, z: Array, hidden: tuple[Array, ...], out: Array) -> None: ...
    def likelihood(self, *, x: Array, out: Array, scale: float, log_px: Array, dout: Array | None) -> None: ...
    def likelihood_mean(self, *, out: Array, mean: Array) -> None: ...
    def likelihood_sample(self, *, out: Array, seed: int, step: int, x: Array) -> None: ...
    def decoder_backward(
        self, *, params: Array, z: Array, hidden: tuple[Array, ...], dout: Array, dz: Array | None, grad: Array | None
    ) -> None: ...
    def latent_backward(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, kl_scale: float, dmu: Array, dlogvar: Array
    ) -> None: ...
    def latent_backward_sampled(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, weight: Array, dmu: Array, dlogvar: Array
    ) -> None: ...
    def encoder_backward(
        self, *, params: Array, x: Array, hidden: tuple[Array, ...], dmu: Array, dlogvar: Array, grad: Array
    ) -> None: ...
    def log_joint(self, *, params: Array, x: Array, z: Array, log_pxz: Array, dz: Array | None) -> None: ...
    def update(
        self, *, optimizer: Optimizer, params: Array, grad: Array, state: Array, step: int, decay: float
    ) -> None: ...
    def train_steps(
        self,
        *,
        params: Array,
        state: Array,
        optimizer: Optimizer,
        data: Any,
        order: Array,
        scale: float,
        binarize: str,
        seed: int,
        step: int,
        estimator: str,
        kl_weight: float,
        kl_warmup: int,
        decay: float,
        stats: Array,
        done: Array,
    ) -> None: ...

def plan(network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> Plan: ...
def philox(*, counter: Array, key: Array, out: Array) -> None: ...
def normal(*, seed: int, step: int, stream: int, out: Array) -> None: ...
def epoch_order(*, seed: int, epoch: int, out: Array) -> None: ...
def stable_order(*, keys: Array, out: Array) -> None: ...
def isa_level() -> str: ...
def isa_levels() -> list[str]: ...
