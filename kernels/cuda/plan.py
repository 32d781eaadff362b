"""One network on a device: checks, memory, and the launches of every operation.

Arrays are canonical outside (contiguous, parameters flat) and padded inside: rows begin at multiples of 64 bytes, and
columns beyond the width are zero. Operations copy in, compute, and copy out; between host and device only what lies on
the host. `train_steps` stays inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.checks import CheckedPlan, check_noise
from fastvae.kernels.cuda import dense, likelihood, paths
from fastvae.kernels.cuda.arrays import DeviceArray, takes_device_arrays
from fastvae.kernels.cuda.dense import Gradient, Layer
from fastvae.kernels.cuda.gather import arrays_of, dataset_at, gather
from fastvae.kernels.cuda.latent import Latent, latent_backward, latent_forward
from fastvae.kernels.cuda.launch import NOWHERE, Device, Launch, Matrix
from fastvae.kernels.cuda.optimizer import update, update_at
from fastvae.kernels.cuda.places import DevicePlace
from fastvae.kernels.cuda.train_steps import Training
from fastvae.kernels.cuda.workspace import Memory, Workspace, aligned, backward, forward, inputs, pack
from fastvae.kernels.turn import Turn
from fastvae.network import Network
from fastvae.optimizer import Optimizer

__all__ = ["PRECISIONS", "CudaPlan"]

_DTYPES = dict.fromkeys(("fp32", "tf32", "bf16"), np.float32)
PRECISIONS = tuple(_DTYPES)


class _Call:
    """The canonical arrays of one operation: on the device already, or one after another in exchange memory there."""

    def __init__(self, device: Device, precision: str, exchange: _Exchange, arrays: Sequence[Any]) -> None:
        self._device, self._precision = device, precision
        self._next = exchange.room(sum(aligned(a.nbytes) for a in arrays if isinstance(a, np.ndarray)))
        self._outputs: list[tuple[Array, int]] = []
        self._uploads = False
        self._launches: list[Launch] = []

    def _place(self, array: Array) -> int:
        address = self._next
        self._next += aligned(array.nbytes)
        return address

    def input(self, array: Any) -> int:
        if isinstance(array, DeviceArray):
            return array.address
        address = self._place(array)
        self._upload(address, array)
        return address

    def output(self, array: Any, *, added_to: bool = False) -> int:
        if isinstance(array, DeviceArray):
            return array.address
        address = self._place(array)
        if added_to:
            self._upload(address, array)
        self._outputs.append((array, address))
        return address

    def _upload(self, address: int, array: Array) -> None:
        self._device.upload(address, array)
        self._uploads = True

    def load(self, array: Array, to: Matrix) -> None:
        """Bring rows to padded memory."""
        columns = array.shape[-1]
        self.launch(dense.copy_rows(Matrix(self.input(array), columns), to, array.size // columns, columns))

    def store(self, source: Matrix, array: Array) -> None:
        """Bring rows from padded memory, at this place in the sequence of launches."""
        columns = array.shape[-1]
        self.launch(dense.copy_rows(source, Matrix(self.output(array), columns), array.size // columns, columns))

    def launch(self, *launches: Launch) -> None:
        self._launches += launches

    def finish(self) -> None:
        """Do it, and fill the outputs; what was given on the host may be changed after it."""
        self._device.run(self._launches, self._precision)
        for array, address in self._outputs:
            self._device.download(array, address)
        if self._uploads and not self._outputs:
            self._device.synchronize()


class _Exchange:
    """Memory through which operations take and give canonical arrays; it grows with the largest call."""

    def __init__(self, device: Device) -> None:
        self._device, self._memory, self._size, self._address = device, Memory(device), 0, 0

    def room(self, size: int) -> int:
        if size > self._size:
            self._device.synchronize()
            self._memory = Memory(self._device)  # the smaller one is freed first
            self._address, self._size = self._memory.bytes(size), size
        return self._address


class CudaPlan(CheckedPlan):
    """The operations on one network and one device.

    Float arrays and dense data may lie on the device already; `arrays.takes_device_arrays` has the rules. `products`
    says who makes the products of `train_steps`, see `paths`.
    """

    def __init__(self, network: Network, *, device: Device, name: str, products: str = "auto", **sizes: Any) -> None:
        super().__init__(network, name=name, dtypes=_DTYPES, **sizes)
        self._device, self._turn = device, Turn()
        self.place = DevicePlace(device, self._turn)
        self._memory = Memory(device)
        self._work = Workspace(network, self._memory, self.rows, self.draws)
        self._exchange, self._products = _Exchange(device), products
        self._training: Training | None = None  # made by the first `train_steps`
        self._options: dict[str, Any] = {"activation": network.activation, "precision": self.precision}

    @property
    def path(self) -> str:
        """Who makes the products of a step on all the plan's rows: "own" kernels, or "cublas"."""
        return self._path(self.rows)

    def _path(self, rows: int) -> str:
        return paths.chosen(self._products, self.network, rows, self.draws, self.precision)

    def _call(self, *arrays: Array | None) -> _Call:
        return _Call(self._device, self.precision, self._exchange, arrays)

    @takes_device_arrays
    def gather(self, *, data: Any, index: Array, scale: float, binarize: str, seed: int, step: int, x: Array) -> None:
        """Fetch a minibatch."""
        self._check_gather(data=data, index=index, scale=scale, binarize=binarize, seed=seed, step=step, x=x)
        rows, count = index, len(index)
        if not isinstance(data, DeviceArray):  # no more than the minibatch crosses over
            data, rows = data[index], np.arange(count)
        with self._turn:
            arrays = arrays_of(data)
            call = self._call(*arrays, rows, index, x)
            call.launch(
                gather(
                    dataset_at([call.input(array) for array in arrays], data),
                    index=call.input(rows),
                    numbers=call.input(index),
                    x=Matrix(call.output(x), x.shape[1]),
                    rows=count,
                    scale=scale,
                    binarize=binarize,
                    seed=seed,
                    step=step,
                )
            )
            call.finish()

    @takes_device_arrays
    def encoder_forward(self, *, params: Array, x: Array, hidden: tuple[Array, ...], mu: Array, logvar: Array) -> None:
        """Recognition model."""
        rows = self._check_x(x)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=True)
        self._check((rows, self.network.latent_dim), output=True, mu=mu, logvar=logvar)
        layers, heads = self._work.encoder, self._work.encoder[-1].y
        with self._turn:
            call = self._call(params, x, *hidden, mu, logvar)
            call.load(x, self._work.x)
            call.launch(*pack(layers, call.input(params), [layer.w for layer in layers]))
            call.launch(*forward(layers, self._work.x, rows, **self._options))
            for layer, h in zip(layers, hidden, strict=False):
                call.store(layer.y, h)
            call.store(heads, mu)
            call.store(heads.columns_from(self.network.latent_dim), logvar)
            call.finish()

    @takes_device_arrays
    def latent_forward(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """Reparameterised sample and KL divergence."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, output=True, z=z)
        self._check(shape[1:2], output=True, kl=kl)
        with self._turn:
            call = self._call(mu, logvar, eps, z, kl)
            sample = self._latent(call, mu, logvar, eps, z=Matrix(call.output(z), shape[2]), kl=call.output(kl))
            call.launch(latent_forward(sample))
            call.finish()

    @takes_device_arrays
    def latent_forward_sampled(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """Reparameterised sample and the KL term of each draw."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, output=True, z=z)
        self._check(shape[:2], output=True, kl=kl)
        with self._turn:
            call = self._call(mu, logvar, eps, z, kl)
            places: dict[str, Any] = {"z": Matrix(call.output(z), shape[2]), "kl": call.output(kl)}
            call.launch(latent_forward(self._latent(call, mu, logvar, eps, sampled=True, **places)))
            call.finish()

    @takes_device_arrays
    def latent_backward(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, kl_scale: float, dmu: Array, dlogvar: Array
    ) -> None:
        """Backprop through the sample and the KL divergence."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, dz=dz)
        self._check(shape[1:], output=True, dmu=dmu, dlogvar=dlogvar)
        with self._turn:
            call = self._call(mu, logvar, eps, dz, dmu, dlogvar)
            gradients = self._latent_gradients(call, dz, dmu, dlogvar)
            call.launch(latent_backward(self._latent(call, mu, logvar, eps, kl_scale=kl_scale, **gradients)))
            call.finish()

    @takes_device_arrays
    def latent_backward_sampled(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, weight: Array, dmu: Array, dlogvar: Array
    ) -> None:
        """Backprop through the sample and the KL term of each draw."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, dz=dz)
        self._check(shape[:2], weight=weight)
        self._check(shape[1:], output=True, dmu=dmu, dlogvar=dlogvar)
        with self._turn:
            call = self._call(mu, logvar, eps, dz, weight, dmu, dlogvar)
            fields = {"weight": call.input(weight), "sampled": True} | self._latent_gradients(call, dz, dmu, dlogvar)
            call.launch(latent_backward(self._latent(call, mu, logvar, eps, **fields)))
            call.finish()

    @staticmethod
    def _latent_gradients(call: _Call, dz: Array, dmu: Array, dlogvar: Array) -> dict[str, Any]:
        places = {"dz": call.input(dz), "dmu": call.output(dmu), "dlogvar": call.output(dlogvar)}
        return {name: Matrix(at, dz.shape[2]) for name, at in places.items()}

    @staticmethod
    def _latent(call: _Call, mu: Array, logvar: Array, eps: Array, **fields: Any) -> Latent:
        draws, rows, n = eps.shape
        heads, at = [Matrix(call.input(array), n) for array in (mu, logvar)], call.input(eps)
        return Latent(heads[0], heads[1], at, draws, rows, n, **fields)

    @takes_device_arrays
    def decoder_forward(self, *, params: Array, z: Array, hidden: tuple[Array, ...], out: Array) -> None:
        """Decoder's heads."""
        rows = self._check_z(z)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.decoder_hidden, output=True)
        self._check((rows, self.network.decoder_dims[-1]), output=True, out=out)
        layers = self._work.decoder
        with self._turn:
            call = self._call(params, z, *hidden, out)
            call.load(z, self._work.z)
            call.launch(*pack(layers, call.input(params), [layer.w for layer in layers]))
            call.launch(*forward(layers, self._work.z, rows, **self._options))
            for layer, y in zip(layers, (*hidden, out), strict=True):
                call.store(layer.y, y)
            call.finish()

    @takes_device_arrays
    def likelihood(self, *, x: Array, out: Array, scale: float, log_px: Array, dout: Array | None) -> None:
        """Log p(x|z) and its gradient."""
        batch = self._check_x(x)
        rows = self._check_out(out, multiple_of=batch)
        self._check((rows,), output=True, log_px=log_px)
        if dout is not None:
            self._check(out.shape, output=True, dout=dout)
        width = out.shape[1]
        with self._turn:
            call = self._call(x, out, log_px, dout)
            call.launch(
                likelihood.likelihood(
                    self.network,
                    x=Matrix(call.input(x), x.shape[1]),
                    x_rows=batch,
                    out=Matrix(call.input(out), width),
                    rows=rows,
                    scale=scale,
                    log_px=call.output(log_px),
                    dout=NOWHERE if dout is None else Matrix(call.output(dout), width),
                )
            )
            call.finish()

    @takes_device_arrays
    def likelihood_mean(self, *, out: Array, mean: Array) -> None:
        """Mean of p(x|z)."""
        rows = self._check_out(out)
        self._check((rows, self.network.data_dim), output=True, mean=mean)
        with self._turn:
            call = self._call(out, mean)
            heads, means = Matrix(call.input(out), out.shape[1]), Matrix(call.output(mean), mean.shape[1])
            call.launch(likelihood.likelihood_mean(self.network, out=heads, mean=means, rows=rows))
            call.finish()

    @takes_device_arrays
    def likelihood_sample(self, *, out: Array, seed: int, step: int, x: Array) -> None:
        """Draw from p(x|z)."""
        rows = self._check_out(out)
        check_noise(seed=seed, step=step)
        self._check((rows, self.network.data_dim), output=True, x=x)
        with self._turn:
            call = self._call(out, x)
            heads, samples = Matrix(call.input(out), out.shape[1]), Matrix(call.output(x), x.shape[1])
            key = {"seed": seed, "step": step}
            call.launch(likelihood.likelihood_sample(self.network, out=heads, x=samples, rows=rows, **key))
            call.finish()

    @takes_device_arrays
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
        layers, work = self._work.decoder, self._work
        with self._turn:
            call = self._call(params, z, *hidden, dout, dz, grad)
            call.load(z, work.z)
            call.load(dout, layers[-1].dy)
            self._backward(call, layers, params, work.z, rows, hidden, grad)
            if dz is not None:
                call.launch(dense.input_gradient(layers[0], work.dz, rows, precision=self.precision))
                call.store(work.dz, dz)
            call.finish()

    @takes_device_arrays
    def encoder_backward(
        self, *, params: Array, x: Array, hidden: tuple[Array, ...], dmu: Array, dlogvar: Array, grad: Array
    ) -> None:
        """Backprop from the encoder's heads to phi."""
        rows = self._check_x(x)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=False)
        self._check((rows, self.network.latent_dim), dmu=dmu, dlogvar=dlogvar)
        self._check(params.shape, output=True, grad=grad)
        layers, work = self._work.encoder, self._work
        with self._turn:
            call = self._call(params, x, *hidden, dmu, dlogvar, grad)
            call.load(x, work.x)
            call.load(dmu, layers[-1].dy)
            call.load(dlogvar, layers[-1].dy.columns_from(self.network.latent_dim))
            self._backward(call, layers, params, work.x, rows, hidden, grad)
            call.finish()

    def _backward(
        self,
        call: _Call,
        layers: Sequence[Layer],
        params: Array,
        x: Matrix,
        rows: int,
        hidden: tuple[Array, ...],
        grad: Array | None,
    ) -> None:
        for layer, h in zip(layers, hidden, strict=False):
            call.load(h, layer.y)
        call.launch(*pack(layers, call.input(params), [layer.w for layer in layers]))
        call.launch(*backward(layers, rows, **self._options))
        if grad is not None:
            at = call.output(grad, added_to=True)
            gradients = [
                Gradient(layer, h, rows, at + 4 * layer.offset)
                for layer, h in zip(layers, inputs(layers, x), strict=True)
            ]
            call.launch(*dense.weight_gradients(gradients, precision=self.precision))

    @takes_device_arrays
    def log_joint(self, *, params: Array, x: Array, z: Array, log_pxz: Array, dz: Array | None) -> None:
        """Log p(x, z) and its gradient in z."""
        batch = self._check_x(x)
        rows = self._check_z(z, multiple_of=batch)
        self._check_params(params)
        self._check((rows,), output=True, log_pxz=log_pxz)
        if dz is not None:
            self._check(z.shape, output=True, dz=dz)
        work, layers = self._work, self._work.decoder
        with self._turn:
            call = self._call(params, x, z, log_pxz, dz)
            call.load(z, work.z)
            call.launch(*pack(layers, call.input(params), [layer.w for layer in layers]))
            call.launch(*forward(layers, work.z, rows, **self._options))
            at = call.output(log_pxz)
            call.launch(
                likelihood.likelihood(
                    self.network,
                    x=Matrix(call.input(x), x.shape[1]),
                    x_rows=batch,
                    out=layers[-1].y,
                    rows=rows,
                    scale=1.0,
                    log_px=at,
                    dout=NOWHERE if dz is None else layers[-1].dy,
                )
            )
            if dz is not None:
                call.launch(*backward(layers, rows, **self._options))
                call.launch(dense.input_gradient(layers[0], work.dz, rows, precision=self.precision))
            to = NOWHERE if dz is None else work.dz
            call.launch(likelihood.add_prior(z=work.z, dz=to, log_pxz=at, rows=rows, latent_dim=z.shape[1]))
            if dz is not None:
                call.store(work.dz, dz)
            call.finish()

    @takes_device_arrays
    def update(
        self, *, optimizer: Optimizer, params: Array, grad: Array, state: Array, step: int, decay: float
    ) -> None:
        """One optimizer step."""
        self._check_params(params, output=True)
        self._check(params.shape, grad=grad)
        self._check((optimizer.n_slots, *params.shape), output=True, state=state)
        constants = update_at(optimizer, step, decay=decay)
        with self._turn:
            call = self._call(params, grad, state)
            w, s0 = call.output(params, added_to=True), call.output(state, added_to=True)
            s1 = s0 + 4 * params.size if optimizer.n_slots > 1 else 0
            call.launch(update(constants, w=w, s0=s0, s1=s1, g=call.input(grad), n=params.size))
            call.finish()

    @takes_device_arrays
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
        done[0] = 0
        if not len(order):
            return
        with self._turn:
            if self._training is None:
                self._training = Training(self.network, self._device, self._work, self.draws, self.precision)
            self._training.run(
                params=params,
                state=state,
                optimizer=optimizer,
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
                path=self._path(order.shape[1]),
            )
