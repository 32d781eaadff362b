"""The fused loop: a graph of consecutive steps of Algorithm 1, launched again and again.

Every launch is the same in every step: what changes from step to step (its number, its rows, the constants of the
optimizer and of the KL divergence) lies in device memory, in tables that the `Loop` of common.cuh points into. A step
after the last, and every step after one whose bound is not finite, does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.cuda import dense, phases
from fastvae.kernels.cuda.arrays import DeviceArray
from fastvae.kernels.cuda.dense import Gradient, Layer
from fastvae.kernels.cuda.gather import Dataset, arrays_of, dataset_at, gather
from fastvae.kernels.cuda.latent import Latent, latent_backward, latent_forward
from fastvae.kernels.cuda.launch import LOOP, NOWHERE, STEP, Device, Graph, Launch, Matrix
from fastvae.kernels.cuda.likelihood import Statistics, likelihood
from fastvae.kernels.cuda.optimizer import steps_table
from fastvae.kernels.cuda.source import Resident, Streamed
from fastvae.kernels.cuda.workspace import Memory, Workspace, backward, inputs, pack
from fastvae.network import Network
from fastvae.optimizer import Optimizer

__all__ = ["Training"]

# A graph is at most so long: Ctrl-C waits for two of them.
_GRAPH_SECONDS = 0.02
_MAX_GRAPH_STEPS = 256


class _Tables(NamedTuple):
    """Addresses of what the steps of one call read and write."""

    loop: int
    steps: int
    order: int
    stats: int


@dataclass(frozen=True)
class _Step:
    """One step of Algorithm 1 on device memory; M is `rows`.

    Where they fit, the phases of ``phases.cu`` stand for several operations at once: a step of the paper's network is
    six launches.
    """

    network: Network
    work: Workspace
    slots: Sequence[Sequence[Matrix]]  # of the optimizer's state, laid out as the layers' w
    terms: int  # address of log p(x|z) in parts
    tables: _Tables
    precision: str
    draws: int
    data: Dataset
    index: int  # address of the rows in `data`; tables.order has their numbers
    rows: int
    n_slots: int
    scale: float
    binarize: str
    seed: int

    def launches(self) -> Iterator[Launch]:
        """Gather, encode, sample, decode, compare; back again; and update."""
        encoder, decoder, all_rows = self.work.encoder, self.work.decoder, self.draws * self.rows
        # how many layers the first launch does, and how many of the decoder the launch does that samples
        first = int(len(encoder) > 1 and phases.first_layer_fits(self.data, encoder[0], self.rows))
        together = int(phases.sample_fits(encoder, decoder, self.rows, self.draws))
        sides = {"heads": encoder[-1], "below": encoder[-2], "above": decoder[0]} if together else {}

        yield self._first_layer() if first else self._gather()
        yield from self._forward(encoder[first:-1], inputs(encoder, self.work.x)[first:], self.rows)
        if together:
            yield phases.sample_rows(self._sample, activation=self.network.activation, **sides)
        else:
            yield from self._forward(encoder[-1:], inputs(encoder, self.work.x)[-1:], self.rows)
            yield latent_forward(self._sample)
        yield from self._forward(decoder[together:-1], inputs(decoder, self.work.z)[together:], all_rows)
        yield from self._compare()

        yield self._output_backward()
        yield from backward(decoder[:-1], all_rows, activation=self.network.activation, **self._plain)
        if together:
            yield phases.sample_backward(self._sample, activation=self.network.activation, **sides)
        else:
            if len(decoder) > 1:
                yield dense.input_gradient(decoder[0], self.work.dz, all_rows, **self._plain)
            yield latent_backward(self._sample)
        rest = encoder[:-1] if together else encoder
        yield from backward(rest, self.rows, activation=self.network.activation, **self._plain)
        yield from dense.weight_gradients(self._gradients(), **self._plain)

    @property
    def _plain(self) -> dict[str, Any]:
        return {"precision": self.precision, "loop": self.tables.loop}

    @property
    def _sample(self) -> Latent:
        work, latent_dim = self.work, self.network.latent_dim
        heads, dheads = work.encoder[-1].y, work.encoder[-1].dy
        return Latent(
            mu=heads,
            logvar=heads.columns_from(latent_dim),
            eps=work.eps,
            draws=self.draws,
            rows=self.rows,
            latent_dim=latent_dim,
            z=work.z,
            kl=work.kl,
            dz=work.dz,
            dmu=dheads,
            dlogvar=dheads.columns_from(latent_dim),
            seed=self.seed,
            loop=self.tables.loop,
        )

    def _gather(self) -> Launch:
        constants: dict[str, Any] = {"scale": self.scale, "binarize": self.binarize, "seed": self.seed}
        places: dict[str, Any] = {"index": self.index, "numbers": self.tables.order, "x": self.work.x}
        return gather(self.data, rows=self.rows, loop=self.tables.loop, **places, **constants)

    def _first_layer(self) -> Launch:
        return phases.first_layer(
            self.data,
            self.work.encoder[0],
            index=self.index,
            numbers=self.tables.order,
            x=self.work.x,
            rows=self.rows,
            scale=self.scale,
            binarize=self.binarize,
            seed=self.seed,
            activation=self.network.activation,
            loop=self.tables.loop,
        )

    def _forward(self, layers: Sequence[Layer], xs: Sequence[Matrix], rows: int) -> Iterator[Launch]:
        last = (self.work.encoder[-1], self.work.decoder[-1])
        for layer, x in zip(layers, xs, strict=False):
            yield dense.forward(
                layer, x, rows, activation="none" if layer in last else self.network.activation, **self._plain
            )

    def _compare(self) -> Iterator[Launch]:
        """The decoder's heads and the likelihood."""
        work, all_rows, layer = self.work, self.draws * self.rows, self.work.decoder[-1]
        h = inputs(work.decoder, work.z)[-1]
        shared: dict[str, Any] = {"x": work.x, "x_rows": self.rows, "rows": all_rows, "scale": 1 / all_rows}
        shared |= {"log_px": self.terms, "loop": self.tables.loop}
        if phases.output_layer_fits(self.network):
            yield phases.output_layer(self.network, layer, h=h, precision=self.precision, **shared)
        else:
            yield from self._forward([layer], [h], all_rows)
            yield likelihood(self.network, out=layer.y, dout=layer.dy, **shared)

    def _output_backward(self) -> Launch:
        """Gradient below the decoder's heads, and the statistics."""
        work, all_rows = self.work, self.draws * self.rows
        parts = phases.output_tiles(self.network, all_rows) if phases.output_layer_fits(self.network) else 1
        statistics = Statistics(
            log_px=self.terms,
            kl=work.kl,
            stats=self.tables.stats,
            steps=self.tables.steps,
            terms=parts * all_rows,
            all_rows=all_rows,
            rows=self.rows,
            loop=self.tables.loop,
        )
        below = work.decoder[-2] if len(work.decoder) > 1 else None
        return phases.output_backward(
            work.decoder[-1],
            below.dy if below else work.dz,
            all_rows,
            statistics,
            h=below.y if below else NOWHERE,
            activation=self.network.activation,
            precision=self.precision,
        )

    def _gradients(self) -> Iterator[Gradient]:
        work = self.work
        encoder = zip(work.encoder, inputs(work.encoder, work.x), strict=True)
        decoder = zip(work.decoder, inputs(work.decoder, work.z), strict=True)
        sides = [(*pair, self.rows) for pair in encoder] + [(*pair, self.draws * self.rows) for pair in decoder]
        for (layer, x, rows), s0, s1 in zip(sides, *self.slots, strict=True):
            yield Gradient(layer, x, rows, state=(s0.p, s1.p if self.n_slots > 1 else 0))


class Training:
    """Device memory of the fused loop on one plan, and the graph that was recorded last."""

    def __init__(self, network: Network, device: Device, work: Workspace, draws: int, precision: str) -> None:
        self._network, self._device, self._work = network, device, work
        self._draws, self._precision = draws, precision
        self._flat = Memory(device)
        self._params = self._flat.floats(network.layout.size)
        self._state = self._flat.floats(2 * network.layout.size)
        self._slots = [self._slot() for _ in range(2)]
        self._terms = self._flat.floats(phases.most_terms(network, work.rows * draws))
        self._tables_memory, self._tables_size, self._tables = Memory(device), (0, 0), _Tables(0, 0, 0, 0)
        self._data_memory, self._data_places, self._data_sizes = Memory(device), list[int](), tuple[int, ...]()
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
        length = self._graph_length(n_steps, rows)
        source = self._source(data, order, tables.order, length)
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
        step_launches = _Step(
            network=self._network,
            work=self._work,
            slots=self._slots,
            terms=self._terms,
            tables=tables,
            precision=self._precision,
            draws=self._draws,
            data=source.data,
            index=source.index,
            rows=rows,
            n_slots=optimizer.n_slots,
            scale=scale,
            binarize=binarize,
            seed=seed,
        ).launches()
        graph = self._recorded(list(step_launches), length)
        self._exchange(params, state, store=False)
        try:
            source.bring(0)
            for i in range(-(-n_steps // length)):
                graph.launch()
                source.bring(i + 1)
                self._device.download(loop, tables.loop)
                if loop["step"] >= loop["limit"]:
                    break
        finally:  # also when a signal handler raises: what was launched is carried out
            try:
                self._report(params, state, tables, stats, done)
            except BaseException:  # a signal handler's, in the middle of it: once more, whole
                self._report(params, state, tables, stats, done)
                raise

    def _report(self, params: Array, state: Array, tables: _Tables, stats: Array, done: Array) -> None:
        """Bring the caller's arrays to where the loop stands; all of it again gives the same."""
        loop = np.zeros((), LOOP)
        self._device.download(loop, tables.loop)
        n_done, stopped = int(loop["step"]), bool(loop["limit"] < len(stats))
        self._exchange(params, state, store=True)
        self._device.download(stats[: n_done + stopped], tables.stats)
        done[0] = n_done

    def _recorded(self, launches: list[Launch], length: int) -> Graph:
        """The graph of `length` steps; the last one again when nothing in it has changed."""
        key = b"".join(launch.kernel.encode() + launch.arguments.tobytes() for launch in launches)
        key += length.to_bytes(4, "little")
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

    def _source(self, data: Any, order: Array, order_at: int, length: int) -> Resident | Streamed:
        """Bring the dataset to the device, to where the last one of these sizes was, so that graphs hold.

        Dense rows for which the device has no room are brought in graph by graph.
        """
        if isinstance(data, DeviceArray):
            return Resident(dataset_at([data.address], data), order_at)
        arrays = arrays_of(data)
        sizes = tuple(array.nbytes for array in arrays)
        if sizes != self._data_sizes:
            self._device.synchronize()
            self._data_memory, self._data_sizes = Memory(self._device), ()  # the last one is freed first
            try:
                self._data_places, self._data_sizes = [self._data_memory.bytes(size) for size in sizes], sizes
            except MemoryError:
                if len(arrays) > 1:
                    raise
                return Streamed(self._device, data, order, length)
        for address, array in zip(self._data_places, arrays, strict=True):
            self._device.upload(address, array)
        return Resident(dataset_at(self._data_places, data), order_at)

    def _exchange(self, params: Any, state: Any, *, store: bool) -> None:
        """Parameters and state between the caller's arrays and the packed ones."""
        layers, places, launches = (*self._work.encoder, *self._work.decoder), [], list[Launch]()
        for array, place in ((params, self._params), (state, self._state)):
            on_device = isinstance(array, DeviceArray)
            places.append(array.address if on_device else place)
            if not store and not on_device:
                self._device.upload(place, array)
        launches += pack(layers, places[0], [layer.w for layer in layers], store=store)
        for i in range(len(state)):
            launches += pack(layers, places[1] + 4 * i * params.size, self._slots[i], store=store)
        self._device.run(launches, self._precision)
        for array, place in ((params, self._params), (state, self._state)):
            if store and not isinstance(array, DeviceArray):
                self._device.download(array, place)
