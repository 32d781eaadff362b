"""Matrix products on packed panels: the layers forward, their input gradients, and their weight gradients.

A weight matrix (fan_in, fan_out) is held in panels of `PANEL` columns, each (fan_in, PANEL) row-major, padded with zero
columns. One register tile of at most `TILE_ROWS` rows by one panel runs over the whole depth in order, so an output
element's sum has one order whatever the tile, the thread or the rows beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastvae.kernels.numba_cpu.compile import FLOAT, PANEL, TILE_ROWS, VECTOR, compiled, f32, floats, pointer_at
from fastvae.kernels.numba_cpu.compile import vector_type as vector
from fastvae.kernels.numba_cpu.optimizer import Update, update
from fastvae.kernels.numba_cpu.vec import one_minus_exp, relu, sigmoid, softplus, tanh

__all__ = ["ACTIVATIONS", "NONE", "Affine", "WeightGradient", "bias_gradient", "ceil_div", "dense_affine_task"]

NONE, TANH, RELU, SOFTPLUS, SIGMOID = range(5)
ACTIVATIONS = {"tanh": TANH, "relu": RELU, "softplus": SOFTPLUS, "sigmoid": SIGMOID}
WEIGHT_BLOCK = 64  # rows of W in one task: a multiple of every panel; 64 columns of x and 100 rows of dy stay in L1


class Affine(NamedTuple):
    """c = f(a b + bias), or (a b) f'(h) when h is given: rows of `a`, packed panels of `b` with b_rows rows each."""

    a: int
    a_ld: int
    b: int
    b_rows: int
    bias: int
    h: int
    h_ld: int
    activation: int
    c: int
    c_ld: int
    rows: int
    depth: int
    panels: int


class WeightGradient(NamedTuple):
    """dW = x^T dy and db = sum dy over rows: stored in gw and gb, or applied to w, b and their state when gw is 0."""

    x: int
    x_ld: int
    dy: int
    dy_ld: int
    rows: int
    fan_in: int
    panels: int
    w: int
    b: int
    wt: int
    ws0: int
    ws1: int
    bs0: int
    bs1: int
    gw: int
    gb: int


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """A b + c, fused where the machine has it."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def splat(builder: Any, scalar: Any) -> Any:
    """Vector of one value."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), None))


def integer(value: int) -> Any:
    """Constant int64."""
    return ir.Constant(ir.IntType(64), value)


def place(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    """Pointer to a `kind` at float `index` after a pointer."""
    floats = builder.bitcast(pointer, ir.PointerType(ir.FloatType()))
    return builder.bitcast(builder.gep(floats, [index], source_etype=ir.FloatType()), ir.PointerType(kind))


def load(builder: Any, pointer: Any, index: Any, kind: Any = vector) -> Any:
    """Unaligned vector, or a `kind` of four bytes, at float `index` after a pointer."""
    return builder.load(place(builder, pointer, index, kind), align=4, typ=kind)


def store(builder: Any, value: Any, pointer: Any, index: Any) -> None:
    """Store a vector where `load` finds it."""
    builder.store(value, place(builder, pointer, index, vector), align=4)


def generate_tile(
    builder: Any, tile: int, a: Any, a_row: Any, a_depth: Any, b: Any, b_ld: Any, depth: Any, c: Any
) -> None:
    """Emit c[i][:] = sum_k a[i * a_row + k * a_depth] * b[k * b_ld + :] for `tile` rows, accumulated in registers."""
    a, b, c = (pointer_at(builder, address) for address in (a, b, c))
    before, loop, after = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("store")
    offsets = [builder.mul(a_row, integer(i)) for i in range(tile)]
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(ir.IntType(64))
    k.add_incoming(integer(0), before)
    zero = ir.Constant(vector, None)
    sums = [[builder.phi(vector) for _ in range(2)] for _ in range(tile)]
    from_b, from_a = builder.mul(k, b_ld), builder.mul(k, a_depth)
    columns = [load(builder, b, builder.add(from_b, integer(v * VECTOR))) for v in range(2)]
    for i in range(tile):
        value = splat(builder, load(builder, a, builder.add(from_a, offsets[i]), ir.FloatType()))
        for v in range(2):
            sums[i][v].add_incoming(zero, before)
            sums[i][v].add_incoming(multiply_add(builder, value, columns[v], sums[i][v]), loop)
    following = builder.add(k, integer(1))
    k.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    builder.position_at_end(after)
    for i in range(tile):
        for v in range(2):
            store(builder, sums[i][v].incomings[1][0], c, integer(i * PANEL + v * VECTOR))


@intrinsic
def _register_tile(
    typing_context: Any, rows: Any, a: Any, a_row: Any, a_depth: Any, b: Any, b_ld: Any, depth: Any, c: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        done = builder.append_basic_block("done")
        switch = builder.switch(arguments[0], done)
        for tile in range(1, TILE_ROWS + 1):
            block = builder.append_basic_block(f"tile{tile}")
            switch.add_case(integer(tile), block)
            builder.position_at_end(block)
            generate_tile(builder, tile, *arguments[1:])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 8), generate


@compiled
def register_tile(rows: int, a: int, a_row: int, a_depth: int, b: int, b_ld: int, depth: int, c: int) -> None:
    """c[i][:] = sum_k a[i * a_row + k * a_depth] * b[k * b_ld + :], 1 to `TILE_ROWS` rows, depth at least 1."""
    _register_tile(rows, a, a_row, a_depth, b, b_ld, depth, c)


@compiled
def ceil_div(a: int, b: int) -> int:
    """A / b, rounded up."""
    return (a + b - 1) // b


@compiled
def finish_tile(g: Affine, tile: int, row: int, rows: int, column: int) -> None:
    """Bias and activation, or the activation's slope, on the way from the tile to c."""
    for i in range(rows):
        y = floats(tile + FLOAT * i * PANEL, PANEL)
        c = floats(g.c + FLOAT * ((row + i) * g.c_ld + column), PANEL)
        if g.h:
            h = floats(g.h + FLOAT * ((row + i) * g.h_ld + column), PANEL)
            if g.activation == TANH:
                for j in range(PANEL):
                    c[j] = y[j] * (f32(1.0) - h[j] * h[j])
            elif g.activation == RELU:
                for j in range(PANEL):
                    c[j] = y[j] if h[j] > f32(0.0) else y[j] * f32(0.0)
            elif g.activation == SOFTPLUS:
                for j in range(PANEL):
                    c[j] = y[j] * one_minus_exp(h[j])
            else:
                for j in range(PANEL):
                    c[j] = y[j] * (h[j] * (f32(1.0) - h[j]))
            continue
        if g.bias:
            b = floats(g.bias + FLOAT * column, PANEL)
            for j in range(PANEL):
                y[j] += b[j]
        if g.activation == TANH:
            for j in range(PANEL):
                c[j] = tanh(y[j])
        elif g.activation == RELU:
            for j in range(PANEL):
                c[j] = relu(y[j])
        elif g.activation == SOFTPLUS:
            for j in range(PANEL):
                c[j] = softplus(y[j])
        elif g.activation == SIGMOID:
            for j in range(PANEL):
                c[j] = sigmoid(y[j])
        else:
            for j in range(PANEL):
                c[j] = y[j]


@compiled
def dense_affine_tasks(g: Affine) -> int:
    """Panels times tiles of rows."""
    return g.panels * ceil_div(g.rows, TILE_ROWS)


@compiled
def dense_affine_task(g: Affine, task: int, tile: int) -> None:
    """One tile of the product; rows are dealt to tiles as evenly as can be."""
    blocks = ceil_div(g.rows, TILE_ROWS)
    p, block = task // blocks, task % blocks
    first, last = g.rows * block // blocks, g.rows * (block + 1) // blocks
    from_a, from_b = g.a + FLOAT * first * g.a_ld, g.b + FLOAT * p * g.b_rows * PANEL
    register_tile(last - first, from_a, g.a_ld, 1, from_b, PANEL, g.depth, tile)
    finish_tile(g, tile, first, last - first, p * PANEL)


@compiled
def transpose_rows(w: int, wt: int, fan_in: int, panels: int, p: int, first: int, last: int) -> None:
    """Refresh the place in W^T of rows [first, last) of W, first a multiple of the panel, in panel p."""
    for k in range(first, last, PANEL):
        rows = min(PANEL, last - k)
        for j in range(PANEL):
            to = floats(wt + FLOAT * ((k // PANEL * panels * PANEL + p * PANEL + j) * PANEL), PANEL)
            column = floats(w + FLOAT * ((p * fan_in + k) * PANEL + j), rows * PANEL)
            for i in range(rows):
                to[i] = column[i * PANEL]


@compiled
def bias_gradient(g: WeightGradient, u: Update, p: int, db: int) -> None:
    """Sum of dy over rows for panel p."""
    total = floats(g.gb + FLOAT * p * PANEL if g.gw else db, PANEL)
    for j in range(PANEL):
        total[j] = f32(0.0)
    for m in range(g.rows):
        dy = floats(g.dy + FLOAT * (m * g.dy_ld + p * PANEL), PANEL)
        for j in range(PANEL):
            total[j] += dy[j]
    if not g.gw:
        at = FLOAT * p * PANEL
        update(u, g.b + at, g.bs0 + at, g.bs1 + at, db, PANEL)


@compiled
def dense_weight_tasks(g: WeightGradient) -> int:
    """Panels times blocks of rows of W."""
    return g.panels * ceil_div(g.fan_in, WEIGHT_BLOCK)


@compiled
def dense_weight_task(g: WeightGradient, u: Update, task: int, tile: int) -> None:
    """One block of rows of one panel: a finished tile is in L1 when the optimizer is applied to it."""
    blocks = ceil_div(g.fan_in, WEIGHT_BLOCK)
    p, first = task // blocks, task % blocks * WEIGHT_BLOCK
    last = min(first + WEIGHT_BLOCK, g.fan_in)
    parts = ceil_div(last - first, TILE_ROWS)
    for i in range(parts):
        k = first + (last - first) * i // parts
        rows = first + (last - first) * (i + 1) // parts - k
        at = FLOAT * (p * g.fan_in + k) * PANEL
        dw = g.gw + at if g.gw else tile
        register_tile(rows, g.x + FLOAT * k, 1, g.x_ld, g.dy + FLOAT * p * PANEL, g.dy_ld, g.rows, dw)
        if not g.gw:
            update(u, g.w + at, g.ws0 + at, g.ws1 + at, dw, rows * PANEL)
    if first == 0:
        bias_gradient(g, u, p, tile)
    if g.wt and not g.gw:
        transpose_rows(g.w, g.wt, g.fan_in, g.panels, p, first, last)
