"""The fused loop: a graph of consecutive steps of Algorithm 1, launched again and again.

Every launch is the same in every step: what changes from step to step (its number, its rows, the constants of the
optimizer and of the KL divergence) lies in device memory, in tables that the `Loop` of common.cuh points into. A step
after the last, and every step after one whose bound is not finite, does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.cuda import dense, likelihood
from fastvae.kernels.cuda.dense import Gradient
from fastvae.kernels.cuda.gather import Dataset, arrays_of, dataset_at, gather
from fastvae.kernels.cuda.latent import Latent, latent_backward, latent_forward
from fastvae.kernels.cuda.launch import LOOP, STEP, Device, Graph, Launch, Matrix
from fastvae.kernels.cuda.optimizer import steps_table
from fastvae.kernels.cuda.workspace import Memory, Workspace, backward, forward, input_gradient, inputs, pack
from fastvae.network import Network
from fastvae.optimizer import Optimizer

__all__ = ["Training"]

# A graph is at most so long: Ctrl-C waits for two of them.
_GRAPH_SECONDS = 0.02
_MAX_GRAPH_STEPS = 128


class _Tables(NamedTuple):
    """Addresses of what the steps of one call read and write."""

    loop: int
    steps: int
    order: int
    stats: int


class Training:
    """Device memory of the fused loop on one plan, and the graph that was recorded last."""

    def __init__(self, network: Network, device: Device, work: Workspace, draws: int, precision: str) -> None:
        self._network, self._device, self._work = network, device, work
        self._draws, self._precision = draws, precision
        self._flat = Memory(device)
        self._params = self._flat.floats(network.layout.size)
        self._state = self._flat.floats(2 * network.layout.size)
        self._slots = [self._slot() for _ in range(2)]
        self._tables_memory, self._tables_size, self._tables = Memory(device), (0, 0), _Tables(0, 0, 0, 0)
        self._graph: tuple[bytes, Graph] | None = None

    def _slot(self) -> list[Matrix]:
        layers = (*self._work.encoder, *self._work.decoder)
        return [self._flat.matrix(layer.fan_in + 1, layer.fan_out) for layer in layers]

    def run(
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
        kl_weight: float,
        kl_warmup: int,
        decay: float,
        stats: Array,
        done: Array,
    ) -> None:
        """Make the steps of `order`; arguments are those of `fastvae.kernels.Plan.train_steps`, checked."""
        n_steps, rows = order.shape
        tables = self._room(n_steps, rows)
        memory = Memory(self._device)
        arrays = arrays_of(data)
        dataset = dataset_at([self._uploaded(memory, array) for array in arrays], data)
        table = steps_table(
            optimizer,
            first=step,
            count=n_steps,
            rows=rows,
            kl_weight=kl_weight,
            kl_warmup=kl_warmup,
            decay=decay,
        )
        loop = np.zeros((), LOOP)
        loop["limit"], loop["first"] = n_steps, step
        self._device.upload(tables.loop, loop)
        self._device.upload(tables.steps, table)
        self._device.upload(tables.order, order)
        launches = list(self._step(tables, dataset, rows, optimizer.n_slots, scale=scale, binarize=binarize, seed=seed))
        length = self._graph_length(n_steps, rows)
        graph = self._recorded(launches, length)
        self._exchange(params, state, store=False)
        try:
            for _ in range(-(-n_steps // length)):
                graph.launch()
                self._device.download(loop, tables.loop)
                if loop["step"] >= loop["limit"]:
                    break
        finally:  # also when a signal handler raises: what was launched is carried out
            self._device.download(loop, tables.loop)
            n_done = int(loop["step"])
            self._exchange(params, state, store=True)
            reported = stats[: min(n_done + 1, n_steps)] if loop["limit"] < n_steps else stats[:n_done]
            self._device.download(reported, tables.stats)
            done[0] = n_done

    def _step(
        self, tables: _Tables, data: Dataset, rows: int, n_slots: int, *, scale: float, binarize: str, seed: int
    ) -> Iterator[Launch]:
        """One step of Algorithm 1 with the estimator SGVB-B."""
        work, network, loop = self._work, self._network, tables.loop
        all_rows, latent_dim = self._draws * rows, network.latent_dim
        options: dict[str, Any] = {"activation": network.activation, "precision": self._precision, "loop": loop}
        plain: dict[str, Any] = {"precision": self._precision, "loop": loop}
        heads, dheads = work.encoder[-1].y, work.encoder[-1].dy
        out, dout = work.decoder[-1].y, work.decoder[-1].dy
        sample = Latent(
            mu=heads,
            logvar=heads.columns_from(latent_dim),
            eps=work.eps,
            draws=self._draws,
            rows=rows,
            latent_dim=latent_dim,
            z=work.z,
            kl=work.kl,
            dz=work.dz,
            dmu=dheads,
            dlogvar=dheads.columns_from(latent_dim),
            seed=seed,
            loop=loop,
        )
        order = {"index": tables.order, "numbers": tables.order}
        yield gather(data, **order, x=work.x, rows=rows, scale=scale, binarize=binarize, seed=seed, loop=loop)
        yield from forward(work.encoder, work.x, rows, **options)
        yield latent_forward(sample)
        yield from forward(work.decoder, work.z, all_rows, **options)
        yield likelihood.likelihood(
            network,
            x=work.x,
            x_rows=rows,
            out=out,
            rows=all_rows,
            scale=1 / all_rows,
            log_px=work.log_px,
            dout=dout,
            loop=loop,
        )
        yield likelihood.statistics(
            log_px=work.log_px,
            kl=work.kl,
            stats=tables.stats,
            steps=tables.steps,
            all_rows=all_rows,
            rows=rows,
            loop=loop,
        )
        yield from backward(work.decoder, all_rows, **options)
        yield input_gradient(work.decoder, work.dz, all_rows, **plain)
        yield latent_backward(sample)
        yield from backward(work.encoder, rows, **options)
        yield from dense.weight_gradients(self._gradients(rows, n_slots), **plain)

    def _gradients(self, rows: int, n_slots: int) -> Iterator[Gradient]:
        work = self._work
        encoder = [(layer, x, rows) for layer, x in zip(work.encoder, inputs(work.encoder, work.x), strict=True)]
        decoder = [
            (layer, x, self._draws * rows) for layer, x in zip(work.decoder, inputs(work.decoder, work.z), strict=True)
        ]
        for (layer, x, count), s0, s1 in zip(encoder + decoder, *self._slots, strict=True):
            yield Gradient(layer, x, count, state=(s0.p, s1.p if n_slots > 1 else 0))

    def _recorded(self, launches: list[Launch], length: int) -> Graph:
        """The graph of `length` steps; the last one again when nothing in it has changed."""
        key = b"".join(launch.arguments.tobytes() for launch in launches) + bytes([length])
        if self._graph is None or self._graph[0] != key:
            self._graph = key, self._device.graph(launches * length, self._precision)
        return self._graph[1]

    def _graph_length(self, n_steps: int, rows: int) -> int:
        """Steps of a graph: a power of two, so that chunks of similar length share one."""
        layers = (*self._work.encoder, *self._work.decoder)
        work = 6 * self._draws * rows * sum(layer.fan_in * layer.fan_out for layer in layers)
        most = min(n_steps, _MAX_GRAPH_STEPS, max(1, int(_GRAPH_SECONDS * self._device.rate / work)))
        return 1 << most.bit_length() - 1

    def _room(self, n_steps: int, rows: int) -> _Tables:
        """Tables for so many steps: those of an earlier call where they are large enough, so that graphs hold."""
        if n_steps > self._tables_size[0] or n_steps * rows > self._tables_size[1]:
            self._device.synchronize()
            memory = Memory(self._device)
            self._tables = _Tables(
                loop=memory.bytes(LOOP.itemsize),
                steps=memory.bytes(STEP.itemsize * n_steps),
                order=memory.bytes(8 * n_steps * rows),
                stats=memory.bytes(16 * n_steps),
            )
            self._tables_memory, self._tables_size = memory, (n_steps, n_steps * rows)
        return self._tables

    def _uploaded(self, memory: Memory, array: Array) -> int:
        address = memory.bytes(array.nbytes)
        self._device.upload(address, array)
        return address

    def _exchange(self, params: Array, state: Array, *, store: bool) -> None:
        """Parameters and state between the caller's arrays and the packed ones."""
        layers = (*self._work.encoder, *self._work.decoder)
        if not store:
            self._device.upload(self._params, params)
            self._device.upload(self._state, state)
        launches = list(pack(layers, self._params, [layer.w for layer in layers], store=store))
        for i in range(len(state)):
            launches += pack(layers, self._state + 4 * i * params.size, self._slots[i], store=store)
        self._device.run(launches, self._precision)
        if store:
            self._device.download(params, self._params)
            self._device.download(state, self._state)
