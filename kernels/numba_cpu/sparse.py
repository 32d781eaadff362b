"""The encoder's first layer from the nonzeros of the minibatch: its output, and its weight gradient with the update.

A zero of x adds nothing to a sum that runs in order, so these give the same bits as the dense products of dense.py, at
a cost in proportion to the nonzeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastvae.kernels.numba_cpu.compile import FLOAT, PANEL, VECTOR, compiled, f32, floats, int32s, pointer_at
from fastvae.kernels.numba_cpu.dense import (
    Affine,
    WeightGradient,
    bias_gradient,
    ceil_div,
    finish_tile,
    integer,
    load,
    multiply_add,
    splat,
    store,
)
from fastvae.kernels.numba_cpu.optimizer import ADAGRAD, HOLD, Update, update

__all__ = [
    "SCRATCH",
    "Nonzeros",
    "list_columns",
    "list_row",
    "sparse_affine_task",
    "sparse_affine_tasks",
    "sparse_weight_task",
    "sparse_weight_tasks",
]

STRIP = 4  # panels summed at a time: 8 accumulators hide the latency of a multiply-add
ROWS = 50  # rows of x in one task of the product
DEPTH = 64  # rows of W that stay in L1, 32 KB of a strip, while those rows pass over them
COLUMNS = 16  # rows of W in one task of the weight gradient
SCRATCH = ROWS * STRIP * PANEL + ROWS  # floats


class Nonzeros(NamedTuple):
    """Lists of the nonzeros of x by row (at m * ld) and by column (at k * column_ld).

    ld is 0 where no lists are kept.
    """

    ld: int
    row_index: int
    row_value: int
    row_count: int
    column_ld: int
    column_index: int
    column_value: int
    column_count: int


@compiled
def list_row(s: Nonzeros, m: int, x_at: int, n: int) -> None:
    """Row m of x to a list of its nonzeros, in order; a list has room for one more than a row."""
    x, index, value = (
        floats(x_at, n),
        int32s(s.row_index + 4 * m * s.ld, s.ld),
        floats(s.row_value + FLOAT * m * s.ld, s.ld),
    )
    count = 0
    for d in range(n):
        index[count] = d
        value[count] = x[d]
        count += x[d] != f32(0.0)
    int32s(s.row_count, m + 1)[m] = count


@compiled
def list_columns(s: Nonzeros, rows: int, begin: int, end: int) -> None:
    """Columns [begin, end) of x to lists of their nonzeros, in the order of the rows."""
    counts, row_counts = int32s(s.column_count, end), int32s(s.row_count, rows)
    to_index, to_value = int32s(s.column_index, end * s.column_ld), floats(s.column_value, end * s.column_ld)
    counts[begin:end] = 0
    for m in range(rows):
        index, value = int32s(s.row_index + 4 * m * s.ld, s.ld), floats(s.row_value + FLOAT * m * s.ld, s.ld)
        for i in range(row_counts[m]):
            k = index[i]
            if begin <= k < end:
                to = k * s.column_ld + counts[k]
                to_index[to] = m
                to_value[to] = value[i]
                counts[k] += 1


def _sum_strip(panels: int) -> Callable[..., Any]:
    """Make the loop ``sum[p] += sum_i value[i] * b[index[i] * row + p * next : + PANEL]`` for a number of panels.

    It runs from `i` in order while ``i < count`` and ``index[i] < bound``, and returns where it stopped.
    """
    places = [(p, v) for p in range(panels) for v in range(2)]

    @intrinsic
    def strip(
        typing_context: Any,
        index: Any,
        value: Any,
        i: Any,
        count: Any,
        bound: Any,
        b: Any,
        row: Any,
        next_panel: Any,
        sums: Any,
        next_sum: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            index, value, first, count, bound, b, row, next_panel, sums, next_sum = arguments
            index, value, b, sums = (pointer_at(builder, address) for address in (index, value, b, sums))
            before = builder.block
            head, check, loop, after = map(builder.append_basic_block, ("head", "check", "loop", "after"))

            def place(step: Any, p: int, v: int) -> Any:
                return builder.add(builder.mul(step, integer(p)), integer(v * VECTOR))

            initial = [load(builder, sums, place(next_sum, p, v)) for p, v in places]
            builder.branch(head)
            builder.position_at_end(head)
            i = builder.phi(ir.IntType(64))
            i.add_incoming(first, before)
            totals = [builder.phi(start.type) for start in initial]
            builder.cbranch(builder.icmp_signed("<", i, count), check, after)
            builder.position_at_end(check)
            column = load(builder, index, i, ir.IntType(32))
            column = builder.sext(column, ir.IntType(64))
            builder.cbranch(builder.icmp_signed("<", column, bound), loop, after)
            builder.position_at_end(loop)
            scalar = splat(builder, load(builder, value, i, ir.FloatType()))
            start = builder.mul(column, row)
            for (p, v), total, from_sums in zip(places, totals, initial, strict=True):
                weights = load(builder, b, builder.add(start, place(next_panel, p, v)))
                total.add_incoming(from_sums, before)
                total.add_incoming(multiply_add(builder, scalar, weights, total), loop)
            i.add_incoming(builder.add(i, integer(1)), loop)
            builder.branch(head)
            builder.position_at_end(after)
            for (p, v), total in zip(places, totals, strict=True):
                store(builder, total, sums, place(next_sum, p, v))
            return i

        return types.int64(*(types.int64,) * 10), generate

    @compiled
    def run(
        index: int,
        value: int,
        i: int,
        count: int,
        bound: int,
        b: int,
        row: int,
        next_panel: int,
        sums: int,
        next_sum: int,
    ) -> int:
        return strip(index, value, i, count, bound, b, row, next_panel, sums, next_sum)

    return run


_sum_four, _sum_one = _sum_strip(STRIP), _sum_strip(1)


@compiled
def sum_panels(
    panels: int,
    index: int,
    value: int,
    i: int,
    count: int,
    bound: int,
    b: int,
    row: int,
    next_panel: int,
    sums: int,
    next_sum: int,
) -> int:
    """`_sum_strip` for 1 to `STRIP` panels."""
    if panels == STRIP:
        return _sum_four(index, value, i, count, bound, b, row, next_panel, sums, next_sum)
    stopped = i
    for p in range(panels):
        from_b, to = b + FLOAT * p * next_panel, sums + FLOAT * p * next_sum
        stopped = _sum_one(index, value, i, count, bound, from_b, row, 0, to, 0)
    return stopped


@compiled
def sparse_affine_tasks(g: Affine) -> int:
    """Strips of panels times blocks of rows."""
    return ceil_div(g.panels, STRIP) * ceil_div(g.rows, ROWS)


@compiled
def sparse_affine_task(g: Affine, s: Nonzeros, task: int, scratch: int) -> None:
    """One strip for a block of rows; a block of W's rows passes over all of them while it is in L1."""
    blocks = ceil_div(g.rows, ROWS)
    p, block = task // blocks * STRIP, task % blocks
    panels = min(g.panels - p, STRIP)
    first, last = g.rows * block // blocks, g.rows * (block + 1) // blocks
    at = scratch + FLOAT * ROWS * STRIP * PANEL
    following, counts = int32s(at, ROWS), int32s(s.row_count, last)
    floats(scratch, ROWS * STRIP * PANEL)[:] = f32(0.0)
    following[:] = 0
    for k in range(0, g.depth, DEPTH):
        for m in range(first, last):
            following[m - first] = sum_panels(
                panels,
                s.row_index + 4 * m * s.ld,
                s.row_value + FLOAT * m * s.ld,
                following[m - first],
                counts[m],
                k + DEPTH,
                g.b + FLOAT * p * g.b_rows * PANEL,
                PANEL,
                g.b_rows * PANEL,
                scratch + FLOAT * (m - first) * STRIP * PANEL,
                PANEL,
            )
    for m in range(first, last):
        for i in range(panels):
            finish_tile(g, scratch + FLOAT * ((m - first) * STRIP + i) * PANEL, m, 1, (p + i) * PANEL)


@compiled
def sparse_weight_tasks(g: WeightGradient) -> int:
    """Strips of panels times blocks of rows of W."""
    return ceil_div(g.panels, STRIP) * ceil_div(g.fan_in, COLUMNS)


@compiled
def sparse_weight_task(g: WeightGradient, s: Nonzeros, u: Update, task: int, scratch: int) -> None:
    """One block of rows of W; those that no x touches are left alone where a gradient of zero changes nothing."""
    skip = (u.rule == ADAGRAD or u.rule == HOLD) and u.decay == f32(0.0)
    blocks = ceil_div(g.fan_in, COLUMNS)
    p, first = task // blocks * STRIP, task % blocks * COLUMNS
    panels, last = min(g.panels - p, STRIP), min(first + COLUMNS, g.fan_in)
    counts = int32s(s.column_count, last)
    block = COLUMNS * PANEL
    floats(scratch, STRIP * block)[:] = f32(0.0)
    for k in range(first, last):
        if counts[k] == 0 and skip:
            continue
        dw = scratch + FLOAT * (k - first) * PANEL
        index, value = s.column_index + 4 * k * s.column_ld, s.column_value + FLOAT * k * s.column_ld
        dy = g.dy + FLOAT * p * PANEL
        sum_panels(panels, index, value, 0, counts[k], g.rows, dy, g.dy_ld, PANEL, dw, block)
        for i in range(panels):
            at = FLOAT * ((p + i) * g.fan_in + k) * PANEL
            update(u, g.w + at, g.ws0 + at, g.ws1 + at, dw + FLOAT * i * block, PANEL)
    if first == 0:
        for i in range(panels):
            bias_gradient(g, u, p + i, scratch)
