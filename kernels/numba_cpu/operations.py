"""The contract's operations: canonical arrays in, the phases of phases.py on packed ones, canonical arrays out.

Every member of the team runs each of them on its share.
"""

from __future__ import annotations

from typing import Any

from numba import uint32, uint64

from fastvae.kernels.numba_cpu.compile import FLOAT, compiled, entry, f32, floats, int64s, uint32s
from fastvae.kernels.numba_cpu.dense import NONE
from fastvae.kernels.numba_cpu.gather import Gather, gather_row
from fastvae.kernels.numba_cpu.latent import (
    Latent,
    latent_backward_row,
    latent_backward_sampled_row,
    latent_forward_row,
    latent_forward_sampled_row,
)
from fastvae.kernels.numba_cpu.likelihood import LOG_TWO_PI, likelihood_mean_row, likelihood_row, likelihood_sample_row
from fastvae.kernels.numba_cpu.optimizer import Rule, update, update_at
from fastvae.kernels.numba_cpu.phases import (
    Chain,
    Matrix,
    Work,
    add_gradients,
    backward,
    copy_rows,
    draw_normals,
    forward,
    input_gradient,
    layer_at,
    pack,
    scratch_of,
    weight_gradients,
)
from fastvae.kernels.numba_cpu.rng import Key, philox_block
from fastvae.kernels.numba_cpu.thread_pool import Team, barrier, begin, end

_UPDATE_BLOCK = 4096  # parameters in one task of `update_all`


@entry
def gather(team: Team, g: Gather, index: int, step: Any, rows: int, x: int) -> None:
    """Rows of the dataset by number; `step` is uint64."""
    numbers = int64s(index, rows)
    for m in range(begin(team, rows), end(team, rows)):
        gather_row(g, numbers[m], m, step, x + FLOAT * m * g.data.data_dim)


@compiled
def _exchange_rows(team: Team, chain: Chain, rows: int, arrays: int, heads: int, load: bool) -> None:
    """Copy hidden layers and heads to the caller's arrays; or, to load, hidden layers and heads' gradients from them.

    `arrays` is a table of addresses: one per hidden layer, then one per head; the heads lie side by side here.
    """
    hidden = chain.layers - 1
    table = int64s(arrays, hidden + heads)
    for i in range(hidden + heads):
        layer = layer_at(chain, min(i, hidden))
        width = layer.fan_out if i < hidden else layer.fan_out // heads
        here, ld = (layer.dy, layer.dy_ld) if load and i >= hidden else (layer.y, layer.y_ld)
        here += FLOAT * max(i - hidden, 0) * width
        if load:
            copy_rows(team, table[i], width, here, ld, rows, width)
        else:
            copy_rows(team, here, ld, table[i], width, rows, width)


@entry
def chain_forward(
    team: Team, work: Work, chain: Chain, params: int, x: Matrix, rows: int, arrays: int, heads: int
) -> None:
    """The encoder or the decoder, forward."""
    pack(team, chain, params, False)
    barrier(team)
    forward(team, work, chain, x, rows, False)
    _exchange_rows(team, chain, rows, arrays, heads, False)


@entry
def chain_backward(
    team: Team,
    work: Work,
    chain: Chain,
    params: int,
    x: Matrix,
    rows: int,
    arrays: int,
    heads: int,
    dx: int,
    grad: int,
    no_rule: Rule,
) -> None:
    """The encoder or the decoder, backward; dx and grad are 0 where they are not asked for."""
    pack(team, chain, params, True)
    _exchange_rows(team, chain, rows, arrays, heads, True)
    barrier(team)
    backward(team, work, chain, rows)
    if dx:
        input_gradient(team, work, layer_at(chain, 0), rows, Matrix(0, 0), NONE, work.dz)
        copy_rows(team, work.dz.at, work.dz.ld, dx, x.ld, rows, x.ld)
    if grad:
        weight_gradients(team, work, chain, x, rows, True, update_at(no_rule, 0), False)
        barrier(team)
        add_gradients(team, chain, grad)


@entry
def latent_forward(team: Team, work: Work, g: Latent) -> None:
    """Sample and KL divergence."""
    for m in range(begin(team, g.rows), end(team, g.rows)):
        latent_forward_row(g, m, scratch_of(team, work))


@entry
def latent_backward(team: Team, work: Work, g: Latent) -> None:
    """Gradient of the sample and of the KL divergence."""
    for m in range(begin(team, g.rows), end(team, g.rows)):
        latent_backward_row(g, m, scratch_of(team, work))


@entry
def latent_forward_sampled(team: Team, work: Work, g: Latent) -> None:
    """Sample and the KL term of each draw."""
    for m in range(begin(team, g.rows), end(team, g.rows)):
        latent_forward_sampled_row(g, m, scratch_of(team, work))


@entry
def latent_backward_sampled(team: Team, work: Work, g: Latent) -> None:
    """Gradient of the sample and of each draw's KL term."""
    for m in range(begin(team, g.rows), end(team, g.rows)):
        latent_backward_sampled_row(g, m, scratch_of(team, work))


@entry
def likelihood(
    team: Team, work: Work, x: int, x_rows: int, out: int, rows: int, scale: Any, log_px: int, dout: int
) -> None:
    """Log p(x|z) by row; without `dout` the gradient goes to scratch."""
    g = work.density
    scratch, log_pxs = scratch_of(team, work), floats(log_px, rows)
    width = (1 + g.kind) * g.data_dim
    for r in range(begin(team, rows), end(team, rows)):
        to = dout + FLOAT * r * width if dout else scratch + FLOAT * g.data_dim
        log_pxs[r] = likelihood_row(
            g, x + FLOAT * (r % x_rows) * g.data_dim, out + FLOAT * r * width, scale, to, scratch
        )


@entry
def likelihood_mean(team: Team, work: Work, out: int, rows: int, mean: int) -> None:
    """Mean of p(x|z) by row."""
    g = work.density
    for r in range(begin(team, rows), end(team, rows)):
        likelihood_mean_row(g, out + FLOAT * r * (1 + g.kind) * g.data_dim, mean + FLOAT * r * g.data_dim)


@entry
def likelihood_sample(team: Team, work: Work, out: int, rows: int, seed: Any, step: Any, x: int) -> None:
    """Draw from p(x|z) by row; seed and step are uint64."""
    g = work.density
    for r in range(begin(team, rows), end(team, rows)):
        likelihood_sample_row(g, out + FLOAT * r * (1 + g.kind) * g.data_dim, seed, step, r, x)


@entry
def log_joint(
    team: Team, work: Work, params: int, x: int, x_rows: int, z: Matrix, rows: int, log_pxz: int, dz: int
) -> None:
    """Log p(x, z) by row, and its gradient in z where dz is not 0."""
    chain, g, scratch = work.decoder, work.density, scratch_of(team, work)
    pack(team, chain, params, dz != 0)
    barrier(team)
    forward(team, work, chain, z, rows, False)
    last, log_joints = layer_at(chain, chain.layers - 1), floats(log_pxz, rows)
    for r in range(begin(team, rows), end(team, rows)):
        out, dout = last.y + FLOAT * r * last.y_ld, last.dy + FLOAT * r * last.dy_ld
        log_px = likelihood_row(g, x + FLOAT * (r % x_rows) * g.data_dim, out, f32(1.0), dout, scratch)
        z_row, twice_negative = floats(z.at + FLOAT * r * z.ld, z.ld), f32(0.0)
        for j in range(z.ld):
            twice_negative += LOG_TWO_PI + z_row[j] * z_row[j]
        log_joints[r] = log_px - f32(0.5) * twice_negative
    if dz:
        barrier(team)
        backward(team, work, chain, rows)
        input_gradient(team, work, layer_at(chain, 0), rows, Matrix(0, 0), NONE, work.dz)
        for r in range(begin(team, rows), end(team, rows)):
            to, z_row = floats(dz + FLOAT * r * z.ld, z.ld), floats(z.at + FLOAT * r * z.ld, z.ld)
            gradient = floats(work.dz.at + FLOAT * r * work.dz.ld, z.ld)
            for j in range(z.ld):
                to[j] = gradient[j] - z_row[j]


@entry
def update_all(team: Team, size: int, rule: Rule, step: int, params: int, grad: int, state: int) -> None:
    """One optimizer step on the flat parameters."""
    u = update_at(rule, step)
    blocks = (size + _UPDATE_BLOCK - 1) // _UPDATE_BLOCK
    for block in range(begin(team, blocks), end(team, blocks)):
        at, n = FLOAT * block * _UPDATE_BLOCK, min(_UPDATE_BLOCK, size - block * _UPDATE_BLOCK)
        update(u, params + at, state + at, state + at + FLOAT * size, grad + at, n)


@entry
def philox(team: Team, counter: int, key: int, out: int, n: int) -> None:
    """Philox blocks of given counters."""
    words, keys, counters = uint32s(out, 4 * n), uint32s(key, 2), uint32s(counter, 4 * n)
    for i in range(begin(team, n), end(team, n)):
        c = counters[4 * i : 4 * i + 4]
        key_words = Key(uint64(keys[0]), uint64(keys[1]), uint64(c[1]), uint64(c[2]), uint64(c[3]))
        block = philox_block(key_words, c[0])
        for word in range(4):
            words[4 * i + word] = uint32(block[word])


@entry
def normal(team: Team, seed: Any, step: Any, stream: int, out: int, n: int) -> None:
    """Fill n floats with a stream's normals; seed and step are uint64."""
    draw_normals(team, seed, step, stream, out, n)
