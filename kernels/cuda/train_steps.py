"""The fused loop: a graph of consecutive training steps, launched again and again.

Every launch is the same in every step: what changes from step to step (its number, its rows, the constants of the
optimizer and of the KL divergence) lies in device memory, in tables that the `Loop` of common.cuh points into. A step
after the last, and every step after one whose bound is not finite, does nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.cuda import phases
from fastvae.kernels.cuda.arrays import DeviceArray
from fastvae.kernels.cuda.cublas_step import CublasStep, Operands
from fastvae.kernels.cuda.gather import arrays_of, dataset_at
from fastvae.kernels.cuda.launch import LOOP, STEP, Device, Graph, Launch, Matrix
from fastvae.kernels.cuda.likelihood import Importance
from fastvae.kernels.cuda.optimizer import steps_table
from fastvae.kernels.cuda.paths import step_flops
from fastvae.kernels.cuda.source import Resident, Streamed
from fastvae.kernels.cuda.step import Dreams, Step, Tables
from fastvae.kernels.cuda.workspace import Memory, Workspace, pack
from fastvae.network import Network
from fastvae.optimizer import Optimizer

__all__ = ["Training"]

# A graph is at most so long: Ctrl-C waits for two of them.
_GRAPH_SECONDS = 0.02
_MAX_GRAPH_STEPS = 256
_MANY_GRAPHS = 32  # of so many in a call, what is left over in the last is little
_GRAPHS_KEPT = 4  # calls of a few lengths follow each other: whole chunks, and the rest of an epoch
# How much quicker products are than float32's, roughly: between two graphs the device waits for the host.
_SPEED = {"fp32": 1, "tf32": 4, "bf16": 8}


class Training:
    """Device memory of the fused loop on one plan, and the graphs that were recorded last."""

    def __init__(self, network: Network, device: Device, work: Workspace, draws: int, precision: str) -> None:
        self._network, self._device, self._work = network, device, work
        self._draws, self._precision = draws, precision
        self._flat = Memory(device)
        self._params = self._flat.floats(network.layout.size)
        self._state = self._flat.floats(2 * network.layout.size)
        self._slots = [self._slot() for _ in range(2)]
        self._terms = self._flat.floats(phases.most_terms(network, work.rows * draws))
        self._tables_memory, self._tables_size, self._tables = Memory(device), (0, 0), Tables(0, 0, 0, 0)
        self._data_memory, self._data_places, self._data_sizes = Memory(device), list[int](), tuple[int, ...]()
        self._graphs: dict[tuple[Any, ...], Graph] = {}  # the last few, by what their steps depend on
        self._operands: Operands | None = None  # made by the first step whose products are cuBLAS's
        # made by the first step of the estimator that wants them
        self._importance: Importance | None = None
        self._dreams: Dreams | None = None

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
        estimator: str,
        kl_weight: float,
        kl_warmup: int,
        decay: float,
        stats: Array,
        done: Array,
        path: str,
    ) -> None:
        """Make the steps of `order`.

        `path` is one of `paths.PATHS`; the other arguments are those of `fastvae.kernels.Plan.train_steps`, checked.
        """
        n_steps, rows = order.shape
        sampled = estimator in ("sgvb-a", "iwae")
        tables = self._room(n_steps, rows)
        length = self._graph_length(n_steps, rows)
        source = self._source(data, order, tables.order, length)
        table = steps_table(
            optimizer,
            first=step,
            count=n_steps,
            kl_terms=self._draws * rows if sampled else rows,
            kl_weight=kl_weight,
            kl_warmup=kl_warmup,
            decay=decay,
        )
        loop = np.zeros((), LOOP)
        loop["limit"], loop["first"] = n_steps, step
        self._device.upload(tables.loop, loop)
        self._device.upload(tables.steps, table)
        self._device.upload(tables.order, order)
        fields: dict[str, Any] = {
            "tables": tables,
            "data": source.data,
            "index": source.index,
            "rows": rows,
            "n_slots": optimizer.n_slots,
            "scale": scale,
            "binarize": binarize,
            "seed": seed,
            "sampled": sampled,
            "importance": self._importance_of(estimator),
            "dreams": self._dreams_of(estimator),
        }
        operands = self._operands_of(path)
        graph = self._recorded(fields, operands, length)
        self._exchange(params, state, store=False)
        if operands:
            self._device.run(list(operands.load()), self._precision)
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

    def _report(self, params: Array, state: Array, tables: Tables, stats: Array, done: Array) -> None:
        """Bring the caller's arrays to where the loop stands; all of it again gives the same."""
        loop = np.zeros((), LOOP)
        self._device.download(loop, tables.loop)
        n_done, stopped = int(loop["step"]), bool(loop["limit"] < len(stats))
        self._exchange(params, state, store=True)
        self._device.download(stats[: n_done + stopped], tables.stats)
        done[0] = n_done

    def _operands_of(self, path: str) -> Operands | None:
        if path == "cublas" and self._operands is None:
            self._operands = Operands(self._network, self._flat, self._work, self._draws, self._precision)
        return self._operands if path == "cublas" else None

    def _importance_of(self, estimator: str) -> Importance | None:
        if estimator == "iwae" and self._importance is None:
            rows = self._work.rows
            self._importance = Importance(*(self._flat.floats(n) for n in (self._draws * rows, rows, rows)))
        return self._importance if estimator == "iwae" else None

    def _dreams_of(self, estimator: str) -> Dreams | None:
        if estimator == "wake-sleep" and self._dreams is None:
            widths = self._network.latent_dim, self._network.data_dim
            self._dreams = Dreams(*(self._flat.matrix(self._work.rows, width) for width in widths))
        return self._dreams if estimator == "wake-sleep" else None

    def _recorded(self, fields: dict[str, Any], operands: Operands | None, length: int) -> Graph:
        """The graph of `length` steps; one that is kept where nothing in it has changed."""
        key = (*fields.values(), operands is None, length)
        graph = self._graphs.pop(key, None) or self._device.graph(
            [*self._step(fields, operands).launches()] * length, self._precision
        )
        self._graphs[key] = graph
        if len(self._graphs) > _GRAPHS_KEPT:
            del self._graphs[next(iter(self._graphs))]
        return graph

    def _step(self, fields: dict[str, Any], operands: Operands | None) -> Step:
        fields = fields | {
            "network": self._network,
            "work": self._work,
            "slots": self._slots,
            "terms": self._terms,
            "precision": self._precision,
            "draws": self._draws,
            "shared_bytes": self._device.shared_bytes,
        }
        return CublasStep(**fields, operands=operands) if operands else Step(**fields)

    def _graph_length(self, n_steps: int, rows: int) -> int:
        """Steps of a graph: so many that few are left over, for those take nearly as long as others.

        The same for all calls that are long: their lengths differ, and a graph takes long to record.
        """
        rate = self._device.rate * _SPEED[self._precision]
        seconds = step_flops(self._network, rows, self._draws) / rate
        most = min(_MAX_GRAPH_STEPS, max(1, int(_GRAPH_SECONDS / seconds)))
        return most if n_steps >= _MANY_GRAPHS * most else -(-n_steps // -(-n_steps // most))

    def _room(self, n_steps: int, rows: int) -> Tables:
        """Tables for so many steps: those of an earlier call where they are large enough, so that graphs hold."""
        if n_steps > self._tables_size[0] or n_steps * rows > self._tables_size[1]:
            self._device.synchronize()
            memory = Memory(self._device)
            self._tables = Tables(
                loop=memory.bytes(LOOP.itemsize),
                steps=memory.bytes(STEP.itemsize * n_steps),
                order=memory.bytes(8 * n_steps * rows),
                stats=memory.bytes(16 * n_steps),
            )
            self._tables_memory, self._tables_size = memory, (n_steps, n_steps * rows)
        return self._tables

    def _source(self, data: Any, order: Array, order_at: int, length: int) -> Resident | Streamed:
        """Bring the dataset to the device, to where the last one of these sizes was, so that graphs hold.

        Rows for which the device has no room are brought in graph by graph.
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
                self._data_memory = Memory(self._device)  # what there was room for is freed too
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
