"""The packed form of the parameters, and the phases that every operation is made of, each shared out over a team."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastvae.kernels.numba_cpu.compile import FLOAT, PANEL, compiled, floats, int64s
from fastvae.kernels.numba_cpu.dense import (
    NONE,
    Affine,
    WeightGradient,
    ceil_div,
    dense_affine_task,
    dense_affine_tasks,
    dense_weight_task,
    dense_weight_tasks,
    transpose_rows,
)
from fastvae.kernels.numba_cpu.likelihood import Density
from fastvae.kernels.numba_cpu.optimizer import Update
from fastvae.kernels.numba_cpu.rng import key_of, normal_block
from fastvae.kernels.numba_cpu.sparse import (
    Nonzeros,
    sparse_affine_task,
    sparse_affine_tasks,
    sparse_weight_task,
    sparse_weight_tasks,
)
from fastvae.kernels.numba_cpu.thread_pool import Team, begin, due, end, proceed

__all__ = [
    "Chain",
    "Layer",
    "Matrix",
    "Work",
    "add_gradients",
    "backward",
    "copy_rows",
    "draw_normals",
    "forward",
    "input_gradient",
    "layer_at",
    "pack",
    "pack_state",
    "scratch_of",
    "unpack",
    "weight_gradients",
]


class Matrix(NamedTuple):
    """Row-major activations whose leading dimension covers whole panels."""

    at: int
    ld: int


class Layer(NamedTuple):
    """One affine layer: sizes, its place in the flat parameters, and the addresses of its packed arrays.

    wt is 0 where no input gradient is taken. y is the layer's output, dy the gradient of its affine part.
    """

    fan_in: int
    fan_out: int
    panels: int
    offset: int
    w: int
    b: int
    wt: int
    ws0: int
    ws1: int
    bs0: int
    bs1: int
    gw: int
    gb: int
    y: int
    y_ld: int
    dy: int
    dy_ld: int


_FIELDS = len(Layer._fields)


class Chain(NamedTuple):
    """Encoder or decoder: the address of its table of layers, their number, and the hidden layers' activation."""

    table: int
    layers: int
    activation: int


class Work(NamedTuple):
    """A plan's workspace: z, dz and log_px have a row per draw and datapoint; scratch is `stride` floats per member.

    The rows of dream_x and dream_z, a dream's x and z, lie without gaps, as the noise that they are made of. weights
    are the draws' normalised importance weights times 1 / M; weighed, float64, the two statistics of each datapoint.
    Where these are not written they take no memory.
    """

    encoder: Chain
    decoder: Chain
    density: Density
    draws: int
    latent_dim: int
    size: int
    x: Matrix
    z: Matrix
    dz: Matrix
    eps: int
    dream_x: Matrix
    dream_z: Matrix
    kl: int
    log_px: int
    weights: int
    weighed: int
    nonzeros: Nonzeros
    scratch: int
    stride: int


@compiled
def scratch_of(team: Team, work: Work) -> int:
    """Address of this member's scratch."""
    return work.scratch + FLOAT * team.member * work.stride


@compiled
def layer_at(chain: Chain, i: int) -> Layer:
    """Layer i of a chain."""
    f = int64s(chain.table + 8 * _FIELDS * i, _FIELDS)
    return Layer(
        f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11], f[12], f[13], f[14], f[15], f[16]
    )


@compiled
def draw_normals(team: Team, seed: Any, step: Any, stream: int, out: int, n: int) -> None:
    """Fill n floats with a stream's normals; seed and step are uint64."""
    key, blocks = key_of(seed, step, stream), ceil_div(n, 4)
    for block in range(begin(team, blocks), end(team, blocks)):
        normal_block(key, block, out, 0, n)


@compiled
def copy_rows(team: Team, source: int, source_ld: int, to: int, to_ld: int, rows: int, columns: int) -> None:
    """Copy rows x columns between two leading dimensions."""
    for r in range(begin(team, rows), end(team, rows)):
        a, b = floats(source + FLOAT * r * source_ld, columns), floats(to + FLOAT * r * to_ld, columns)
        for j in range(columns):
            b[j] = a[j]


@compiled
def _copy(source: int, to: int, n: int) -> None:
    a, b = floats(source, n), floats(to, n)
    for j in range(n):
        b[j] = a[j]


@compiled
def _exchange(team: Team, layer: Layer, w: int, b: int, flat: int, pack: bool) -> None:
    """Copy W and b, this member's share of the panels, from the flat form to the packed one or back."""
    for p in range(begin(team, layer.panels), end(team, layer.panels)):
        columns = min(PANEL, layer.fan_out - p * PANEL)
        for k in range(layer.fan_in + 1):  # b lies after the last row of W
            packed = w + FLOAT * (p * layer.fan_in + k) * PANEL if k < layer.fan_in else b + FLOAT * p * PANEL
            place = flat + FLOAT * (layer.offset + k * layer.fan_out + p * PANEL)
            if pack:
                _copy(place, packed, columns)
            else:
                _copy(packed, place, columns)


@compiled
def pack(team: Team, chain: Chain, params: int, transposed: bool) -> None:
    """Pack the parameters, and refresh the transposes."""
    for i in range(chain.layers):
        g = layer_at(chain, i)
        _exchange(team, g, g.w, g.b, params, True)
        if transposed and g.wt:
            for p in range(begin(team, g.panels), end(team, g.panels)):
                transpose_rows(g.w, g.wt, g.fan_in, g.panels, p, 0, g.fan_in)


@compiled
def pack_state(team: Team, chain: Chain, state: int, slots: int, size: int) -> None:
    """Pack the optimizer's state."""
    for i in range(chain.layers):
        g = layer_at(chain, i)
        _exchange(team, g, g.ws0, g.bs0, state, True)
        if slots == 2:
            _exchange(team, g, g.ws1, g.bs1, state + FLOAT * size, True)


@compiled
def unpack(team: Team, chain: Chain, params: int, state: int, slots: int, size: int) -> None:
    """Write parameters and state back to their flat form."""
    for i in range(chain.layers):
        g = layer_at(chain, i)
        _exchange(team, g, g.w, g.b, params, False)
        _exchange(team, g, g.ws0, g.bs0, state, False)
        if slots == 2:
            _exchange(team, g, g.ws1, g.bs1, state + FLOAT * size, False)


@compiled
def _affine(team: Team, work: Work, g: Affine, few: bool) -> bool:
    """Run a product, and end its phase."""
    scratch = scratch_of(team, work)
    tasks = sparse_affine_tasks(g) if few else dense_affine_tasks(g)
    for task in range(begin(team, tasks), end(team, tasks)):
        if due(team):
            break
        if few:
            sparse_affine_task(g, work.nonzeros, task, scratch)
        else:
            dense_affine_task(g, task, scratch)
    return proceed(team)


@compiled
def forward(team: Team, work: Work, chain: Chain, x: Matrix, rows: int, few: bool) -> bool:
    """y_i = f(y_{i-1} W_i + b_i), the last layer affine; the first from nonzeros when they are few."""
    a, a_ld = x.at, x.ld
    for i in range(chain.layers):
        f = layer_at(chain, i)
        activation = chain.activation if i + 1 < chain.layers else NONE
        g = Affine(a, a_ld, f.w, f.fan_in, f.b, 0, 0, activation, f.y, f.y_ld, rows, f.fan_in, f.panels)
        if not _affine(team, work, g, few and i == 0):
            return False
        a, a_ld = f.y, f.y_ld
    return True


@compiled
def input_gradient(team: Team, work: Work, f: Layer, rows: int, h: Matrix, activation: int, dx: Matrix) -> bool:
    """Dx = dy W^T, times f'(h) where h is given."""
    panels, b_rows = ceil_div(f.fan_in, PANEL), f.panels * PANEL
    g = Affine(f.dy, f.dy_ld, f.wt, b_rows, 0, h.at, h.ld, activation, dx.at, dx.ld, rows, f.fan_out, panels)
    return _affine(team, work, g, False)


@compiled
def backward(team: Team, work: Work, chain: Chain, rows: int) -> bool:
    """Dy of every layer from dy of the last."""
    for i in range(chain.layers - 1, 0, -1):
        below = layer_at(chain, i - 1)
        h, dx = Matrix(below.y, below.y_ld), Matrix(below.dy, below.dy_ld)
        if not input_gradient(team, work, layer_at(chain, i), rows, h, chain.activation, dx):
            return False
    return True


@compiled
def weight_gradients(
    team: Team, work: Work, chain: Chain, x: Matrix, rows: int, store: bool, u: Update, few: bool
) -> None:
    """DW and db of every layer: stored in gw and gb, or each tile applied where it stands."""
    scratch, at, ld = scratch_of(team, work), x.at, x.ld
    for i in range(chain.layers):
        f = layer_at(chain, i)
        gw, gb = (f.gw, f.gb) if store else (0, 0)
        g = WeightGradient(
            at, ld, f.dy, f.dy_ld, rows, f.fan_in, f.panels, f.w, f.b, f.wt, f.ws0, f.ws1, f.bs0, f.bs1, gw, gb
        )
        sparse = few and i == 0
        tasks = sparse_weight_tasks(g) if sparse else dense_weight_tasks(g)
        for task in range(begin(team, tasks), end(team, tasks)):
            if sparse:
                sparse_weight_task(g, work.nonzeros, u, task, scratch)
            else:
                dense_weight_task(g, u, task, scratch)
        at, ld = f.y, f.y_ld


@compiled
def add_gradients(team: Team, chain: Chain, grad: int) -> None:
    """Add the stored gradients to the flat ones."""
    for i in range(chain.layers):
        layer = layer_at(chain, i)
        for p in range(begin(team, layer.panels), end(team, layer.panels)):
            columns = min(PANEL, layer.fan_out - p * PANEL)
            for k in range(layer.fan_in + 1):
                at = (
                    layer.gw + FLOAT * (p * layer.fan_in + k) * PANEL
                    if k < layer.fan_in
                    else layer.gb + FLOAT * p * PANEL
                )
                packed = floats(at, columns)
                flat = floats(grad + FLOAT * (layer.offset + k * layer.fan_out + p * PANEL), columns)
                for j in range(columns):
                    flat[j] += packed[j]
