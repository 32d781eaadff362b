"""One network with its workspace: checks, addresses, and the compiled operations run by a team of threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.kernels import STEP_ESTIMATORS, Array
from fastvae.kernels.checks import CheckedPlan, check_noise
from fastvae.kernels.numba_cpu import operations
from fastvae.kernels.numba_cpu.compile import PANEL, TILE_ROWS, f32
from fastvae.kernels.numba_cpu.dense import ACTIVATIONS
from fastvae.kernels.numba_cpu.gather import gather_of, hold
from fastvae.kernels.numba_cpu.latent import Latent
from fastvae.kernels.numba_cpu.likelihood import BERNOULLI, GAUSSIAN, Density
from fastvae.kernels.numba_cpu.optimizer import rule_of
from fastvae.kernels.numba_cpu.phases import Chain, Layer, Matrix, Work
from fastvae.kernels.numba_cpu.sparse import SCRATCH, Nonzeros
from fastvae.kernels.numba_cpu.thread_pool import run_team
from fastvae.kernels.numba_cpu.train_steps import Training, train_steps
from fastvae.kernels.turn import Turn
from fastvae.network import Dense, Network
from fastvae.optimizer import Optimizer

__all__ = ["NAME", "PRECISIONS", "NumbaPlan"]

NAME = "numba"
_DTYPES = {"fp32": np.float32}
PRECISIONS = tuple(_DTYPES)
# Elements of x up to which lists of nonzeros are kept: 64 MB of them.
_MOST_LISTED = 2**22
_NO_RULE = rule_of(Optimizer(), 0.0)


def _address(array: Array | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


class _Memory:
    """Zeroed arrays, aligned to a cache line, kept alive. Pages that are never written cost nothing."""

    def __init__(self) -> None:
        self.kept: list[Array] = []

    def words(self, count: int, dtype: Any = np.float32) -> int:
        """Return the address of `count` numbers."""
        itemsize = np.dtype(dtype).itemsize
        array = np.zeros(max(count, 1) + 64 // itemsize, dtype)
        self.kept.append(array)
        return -(-_address(array) // 64) * 64

    def table(self, rows: list[Any]) -> int:
        """Return the address of integers."""
        self.kept.append(np.array(rows, np.int64))
        return _address(self.kept[-1])

    def matrix(self, rows: int, columns: int) -> Matrix:
        """Activations; rows a multiple of 1 KB apart would fall into few sets of the L1 cache."""
        ld = -(-columns // PANEL) * PANEL
        ld += 16 if ld % 256 == 0 else 0
        return Matrix(self.words(rows * ld), ld)


class NumbaPlan(CheckedPlan):
    """The operations on one network."""

    def __init__(self, network: Network, **sizes: Any) -> None:
        super().__init__(network, name=NAME, dtypes=_DTYPES, **sizes)
        self._memory = memory = _Memory()
        rows, all_rows = self.rows, self.rows * self.draws
        data_dim, latent_dim = network.data_dim, network.latent_dim
        kind = BERNOULLI if network.likelihood == "bernoulli" else GAUSSIAN
        stride = max(SCRATCH, TILE_ROWS * PANEL, 3 * data_dim, 2 * latent_dim) + PANEL
        self._work = Work(
            encoder=self._chain(network.layout.encoder, rows, input_gradient=False),
            decoder=self._chain(network.layout.decoder, all_rows, input_gradient=True),
            density=Density(kind, int(network.mean == "sigmoid"), f32(network.logvar_floor), data_dim),
            draws=self.draws,
            latent_dim=latent_dim,
            size=network.layout.size,
            x=memory.matrix(rows, data_dim),
            z=memory.matrix(all_rows, latent_dim),
            dz=memory.matrix(all_rows, latent_dim),
            eps=memory.words(all_rows * latent_dim),
            dream_x=Matrix(memory.words(rows * data_dim), data_dim),
            dream_z=Matrix(memory.words(rows * latent_dim), latent_dim),
            kl=memory.words(all_rows),
            log_px=memory.words(all_rows),
            weights=memory.words(all_rows),
            weighed=memory.words(2 * rows, np.float64),
            nonzeros=self._nonzeros(),
            scratch=memory.words(self.n_threads * stride),
            stride=stride,
        )
        self._turn = Turn()

    def _chain(self, layers: tuple[Dense, ...], rows: int, *, input_gradient: bool) -> Chain:
        memory, table = self._memory, []
        for i, layer in enumerate(layers):
            panels = -(-layer.fan_out // PANEL)
            weights, biases = panels * PANEL * layer.fan_in, panels * PANEL
            transposed = panels * PANEL * (-(-layer.fan_in // PANEL) * PANEL)
            y, dy = memory.matrix(rows, layer.fan_out), memory.matrix(rows, layer.fan_out)
            table.append(
                Layer(
                    fan_in=layer.fan_in,
                    fan_out=layer.fan_out,
                    panels=panels,
                    offset=layer.offset,
                    w=memory.words(weights),
                    b=memory.words(biases),
                    wt=memory.words(transposed) if i or input_gradient else 0,
                    ws0=memory.words(weights),
                    ws1=memory.words(weights),
                    bs0=memory.words(biases),
                    bs1=memory.words(biases),
                    gw=memory.words(weights),
                    gb=memory.words(biases),
                    y=y.at,
                    y_ld=y.ld,
                    dy=dy.at,
                    dy_ld=dy.ld,
                )
            )
        return Chain(memory.table(table), len(layers), ACTIVATIONS[self.network.activation])

    def _nonzeros(self) -> Nonzeros:
        rows, data_dim = self.rows, self.network.data_dim
        if rows * data_dim > _MOST_LISTED:
            return Nonzeros(*(0,) * len(Nonzeros._fields))
        words = self._memory.words
        return Nonzeros(
            ld=data_dim,
            row_index=words(rows * data_dim, np.int32),
            row_value=words(rows * data_dim),
            row_count=words(rows, np.int32),
            column_ld=rows,
            column_index=words(rows * data_dim, np.int32),
            column_value=words(rows * data_dim),
            column_count=words(data_dim, np.int32),
        )

    def _run(self, function: Any, *arguments: Any) -> None:
        with self._turn:
            run_team(self.n_threads, function, *arguments)

    def gather(self, *, data: Any, index: Array, scale: float, binarize: str, seed: int, step: int, x: Array) -> None:
        """Fetch a minibatch."""
        data = hold(data)
        self._check_gather(data=data, index=index, scale=scale, binarize=binarize, seed=seed, step=step, x=x)
        constants = gather_of(data, scale, binarize, seed)
        self._run(operations.gather, constants, _address(index), np.uint64(step), len(index), _address(x))

    def encoder_forward(self, *, params: Array, x: Array, hidden: tuple[Array, ...], mu: Array, logvar: Array) -> None:
        """Recognition model."""
        rows = self._check_x(x)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=True)
        self._check((rows, self.network.latent_dim), output=True, mu=mu, logvar=logvar)
        self._forward(self._work.encoder, params, x, (*hidden, mu, logvar), heads=2)

    def decoder_forward(self, *, params: Array, z: Array, hidden: tuple[Array, ...], out: Array) -> None:
        """Decoder's heads."""
        rows = self._check_z(z)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.decoder_hidden, output=True)
        self._check((rows, self.network.decoder_dims[-1]), output=True, out=out)
        self._forward(self._work.decoder, params, z, (*hidden, out), heads=1)

    def _forward(self, chain: Chain, params: Array, x: Array, arrays: tuple[Array, ...], *, heads: int) -> None:
        table, rows, matrix = np.array([_address(array) for array in arrays]), len(x), Matrix(_address(x), x.shape[1])
        self._run(operations.chain_forward, self._work, chain, _address(params), matrix, rows, _address(table), heads)

    def latent_forward(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """Reparameterised sample and KL divergence."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, output=True, z=z)
        self._check(shape[1:2], output=True, kl=kl)
        self._run(operations.latent_forward, self._work, self._latent(mu, logvar, eps, z=z, kl=kl))

    def latent_forward_sampled(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """Reparameterised sample and the KL term of each draw."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, output=True, z=z)
        self._check(shape[:2], output=True, kl=kl)
        self._run(operations.latent_forward_sampled, self._work, self._latent(mu, logvar, eps, z=z, kl=kl))

    def latent_backward(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, kl_scale: float, dmu: Array, dlogvar: Array
    ) -> None:
        """Backprop through the sample and the KL divergence."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, dz=dz)
        self._check(shape[1:], output=True, dmu=dmu, dlogvar=dlogvar)
        latent = self._latent(mu, logvar, eps, dz=dz, kl_scale=kl_scale, dmu=dmu, dlogvar=dlogvar)
        self._run(operations.latent_backward, self._work, latent)

    def latent_backward_sampled(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, weight: Array, dmu: Array, dlogvar: Array
    ) -> None:
        """Backprop through the sample and the KL term of each draw."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, dz=dz)
        self._check(shape[:2], weight=weight)
        self._check(shape[1:], output=True, dmu=dmu, dlogvar=dlogvar)
        latent = self._latent(mu, logvar, eps, dz=dz, weight=weight, dmu=dmu, dlogvar=dlogvar)
        self._run(operations.latent_backward_sampled, self._work, latent)

    def _latent(
        self,
        mu: Array,
        logvar: Array,
        eps: Array,
        *,
        z: Array | None = None,
        kl: Array | None = None,
        dz: Array | None = None,
        kl_scale: float = 0.0,
        weight: Array | None = None,
        dmu: Array | None = None,
        dlogvar: Array | None = None,
    ) -> Latent:
        draws, rows, n = eps.shape
        return Latent(
            _address(mu),
            _address(logvar),
            n,
            _address(eps),
            draws,
            rows,
            n,
            _address(z),
            n,
            _address(kl),
            _address(dz),
            n,
            f32(kl_scale),
            _address(weight),
            _address(dmu),
            _address(dlogvar),
            n,
        )

    def likelihood(self, *, x: Array, out: Array, scale: float, log_px: Array, dout: Array | None) -> None:
        """Log p(x|z) and its gradient."""
        batch = self._check_x(x)
        rows = self._check_out(out, multiple_of=batch)
        self._check((rows,), output=True, log_px=log_px)
        if dout is not None:
            self._check(out.shape, output=True, dout=dout)
        arrays = _address(x), batch, _address(out), rows, f32(scale), _address(log_px), _address(dout)
        self._run(operations.likelihood, self._work, *arrays)

    def likelihood_mean(self, *, out: Array, mean: Array) -> None:
        """Mean of p(x|z)."""
        rows = self._check_out(out)
        self._check((rows, self.network.data_dim), output=True, mean=mean)
        self._run(operations.likelihood_mean, self._work, _address(out), rows, _address(mean))

    def likelihood_sample(self, *, out: Array, seed: int, step: int, x: Array) -> None:
        """Draw from p(x|z)."""
        rows = self._check_out(out)
        check_noise(seed=seed, step=step)
        self._check((rows, self.network.data_dim), output=True, x=x)
        key = np.uint64(seed), np.uint64(step)
        self._run(operations.likelihood_sample, self._work, _address(out), rows, *key, _address(x))

    def decoder_backward(
        self, *, params: Array, z: Array, hidden: tuple[Array, ...], dout: Array, dz: Array | None, grad: Array | None
    ) -> None:
        """Backprop from the heads to z and to theta."""
        rows = self._check_z(z)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.decoder_hidden, output=False)
        self._check((rows, self.network.decoder_dims[-1]), dout=dout)
        if dz is not None:
            self._check(z.shape, output=True, dz=dz)
        if grad is not None:
            self._check(params.shape, output=True, grad=grad)
        self._backward(self._work.decoder, params, z, (*hidden, dout), 1, dz, grad)

    def encoder_backward(
        self, *, params: Array, x: Array, hidden: tuple[Array, ...], dmu: Array, dlogvar: Array, grad: Array
    ) -> None:
        """Backprop from the encoder's heads to phi."""
        rows = self._check_x(x)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=False)
        self._check((rows, self.network.latent_dim), dmu=dmu, dlogvar=dlogvar)
        self._check(params.shape, output=True, grad=grad)
        self._backward(self._work.encoder, params, x, (*hidden, dmu, dlogvar), 2, None, grad)

    def _backward(
        self,
        chain: Chain,
        params: Array,
        x: Array,
        arrays: tuple[Array, ...],
        heads: int,
        dx: Array | None,
        grad: Array | None,
    ) -> None:
        table, rows, matrix = np.array([_address(array) for array in arrays]), len(x), Matrix(_address(x), x.shape[1])
        self._run(
            operations.chain_backward,
            self._work,
            chain,
            _address(params),
            matrix,
            rows,
            _address(table),
            heads,
            _address(dx),
            _address(grad),
            _NO_RULE,
        )

    def log_joint(self, *, params: Array, x: Array, z: Array, log_pxz: Array, dz: Array | None) -> None:
        """Log p(x, z) and its gradient in z."""
        batch = self._check_x(x)
        rows = self._check_z(z, multiple_of=batch)
        self._check_params(params)
        self._check((rows,), output=True, log_pxz=log_pxz)
        if dz is not None:
            self._check(z.shape, output=True, dz=dz)
        matrix = Matrix(_address(z), z.shape[1])
        arrays = _address(params), _address(x), batch, matrix, rows, _address(log_pxz), _address(dz)
        self._run(operations.log_joint, self._work, *arrays)

    def update(
        self, *, optimizer: Optimizer, params: Array, grad: Array, state: Array, step: int, decay: float
    ) -> None:
        """One optimizer step."""
        self._check_params(params, output=True)
        self._check(params.shape, grad=grad)
        self._check((optimizer.n_slots, *params.shape), output=True, state=state)
        arrays = _address(params), _address(grad), _address(state)
        self._run(operations.update_all, params.size, rule_of(optimizer, decay), np.uint64(step), *arrays)

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
    ) -> None:
        """Consecutive steps of AEVB, the importance-weighted bound or wake-sleep."""
        data = hold(data)
        self._check_train_steps(
            params=params,
            state=state,
            n_slots=optimizer.n_slots,
            data=data,
            order=order,
            scale=scale,
            binarize=binarize,
            seed=seed,
            step=step,
            estimator=estimator,
            kl_weight=kl_weight,
            kl_warmup=kl_warmup,
            decay=decay,
            stats=stats,
            done=done,
        )
        training = Training(
            params=_address(params),
            state=_address(state),
            rule=rule_of(optimizer, decay),
            gather=gather_of(data, scale, binarize, seed),
            order=_address(order),
            steps=order.shape[0],
            rows=order.shape[1],
            first_step=np.uint64(step),
            estimator=STEP_ESTIMATORS.index(estimator),
            kl_weight=float(kl_weight),
            kl_warmup=float(kl_warmup),
            stats=_address(stats),
            done=_address(done),
        )
        done[0] = 0
        self._run(train_steps, self._work, training)
