"""The fused loop: consecutive steps of Algorithm 1 on packed parameters, one compiled call, nothing in between."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import uint64

from fastvae.kernels.numba_cpu.compile import FLOAT, compiled, entry, f32, float64s, floats, int32s, int64s
from fastvae.kernels.numba_cpu.dense import NONE
from fastvae.kernels.numba_cpu.gather import Gather, gather_row
from fastvae.kernels.numba_cpu.latent import (
    Latent,
    latent_backward_row,
    latent_backward_sampled_row,
    latent_forward_row,
    latent_forward_sampled_row,
)
from fastvae.kernels.numba_cpu.likelihood import likelihood_row
from fastvae.kernels.numba_cpu.optimizer import ADAM, Rule, update_at
from fastvae.kernels.numba_cpu.phases import (
    Matrix,
    Work,
    backward,
    forward,
    input_gradient,
    layer_at,
    pack,
    pack_state,
    scratch_of,
    unpack,
    weight_gradients,
)
from fastvae.kernels.numba_cpu.rng import key_of, normal_block
from fastvae.kernels.numba_cpu.sparse import list_columns, list_row
from fastvae.kernels.numba_cpu.thread_pool import Team, barrier, begin, end, proceed
from fastvae.rng import Stream

__all__ = ["Training", "train_steps"]

# Share of nonzeros up to which the lists are used.
_SPARSE_DENSITY = 0.4
_LATENT_STREAM = int(Stream.LATENT)


class Training(NamedTuple):
    """Arguments of `fastvae.kernels.Plan.train_steps`, arrays as addresses; sampled is 1 for SGVB-A."""

    params: int
    state: int
    rule: Rule
    gather: Gather
    order: int
    steps: int
    rows: int
    first_step: Any
    sampled: int
    kl_weight: float
    kl_warmup: float
    stats: int
    done: int


@compiled
def _few_nonzeros(work: Work, rows: int) -> bool:
    """Whether the minibatch's nonzeros are few enough to be worth their lists."""
    if work.nonzeros.ld == 0:
        return False
    total, counts = 0, int32s(work.nonzeros.row_count, rows)
    for m in range(rows):
        total += counts[m]
    return total <= _SPARSE_DENSITY * rows * work.density.data_dim


@compiled
def _minibatch(team: Team, work: Work, t: Training, i: int) -> None:
    """Gather x with its lists of nonzeros, and draw eps."""
    now, rows = t.first_step + uint64(i), t.rows
    index = int64s(t.order + 8 * i * rows, rows)
    for m in range(begin(team, rows), end(team, rows)):
        x = work.x.at + FLOAT * m * work.x.ld
        gather_row(t.gather, index[m], m, now, x)
        if work.nonzeros.ld:
            list_row(work.nonzeros, m, x, work.density.data_dim)
    key, count = key_of(t.gather.seed, now, _LATENT_STREAM), work.draws * rows * work.latent_dim
    blocks = (count + 3) // 4
    for block in range(begin(team, blocks), end(team, blocks)):
        normal_block(key, block, work.eps, 0, count)


@compiled
def _step(team: Team, work: Work, t: Training, i: int) -> bool:
    """One step of Algorithm 1. False, with nothing updated, when the bound is not finite or an interrupt is due."""
    rows, all_rows, now = t.rows, work.draws * t.rows, t.first_step + uint64(i)
    scratch, density = scratch_of(team, work), work.density
    kl_terms = all_rows if t.sampled else rows
    weight = t.kl_weight * min(1.0, float(now) / t.kl_warmup) if t.kl_warmup > 0 else t.kl_weight

    _minibatch(team, work, t, i)
    if not proceed(team):
        return False
    few = _few_nonzeros(work, rows)
    if few:
        list_columns(work.nonzeros, rows, begin(team, density.data_dim), end(team, density.data_dim))
    if not forward(team, work, work.encoder, work.x, rows, few):
        return False

    heads = layer_at(work.encoder, work.encoder.layers - 1)
    half = FLOAT * work.latent_dim
    latent = Latent(
        heads.y,
        heads.y + half,
        heads.y_ld,
        work.eps,
        work.draws,
        rows,
        work.latent_dim,
        work.z.at,
        work.z.ld,
        work.kl,
        work.dz.at,
        work.dz.ld,
        f32(weight / kl_terms),
        0,
        heads.dy,
        heads.dy + half,
        heads.dy_ld,
    )
    for m in range(begin(team, rows), end(team, rows)):
        if t.sampled:
            latent_forward_sampled_row(latent, m, scratch)
        else:
            latent_forward_row(latent, m, scratch)
    if not proceed(team):
        return False

    if not forward(team, work, work.decoder, work.z, all_rows, False):
        return False

    last = layer_at(work.decoder, work.decoder.layers - 1)
    log_pxs, kls, scale = floats(work.log_px, all_rows), floats(work.kl, kl_terms), f32(1.0 / all_rows)
    for r in range(begin(team, all_rows), end(team, all_rows)):
        x, out = work.x.at + FLOAT * (r % rows) * work.x.ld, last.y + FLOAT * r * last.y_ld
        log_pxs[r] = likelihood_row(density, x, out, scale, last.dy + FLOAT * r * last.dy_ld, scratch)
    if not proceed(team):
        return False

    # every member adds the same few numbers in the same order, which costs less than another barrier
    log_px, kl = 0.0, 0.0
    for r in range(all_rows):
        log_px += log_pxs[r]
    for m in range(kl_terms):
        kl += kls[m]
    log_px /= all_rows
    kl /= kl_terms
    if team.member == 0:
        stats = float64s(t.stats + 16 * i, 2)
        stats[0], stats[1] = log_px, kl
    if not math.isfinite(log_px - kl):
        return False

    if not backward(team, work, work.decoder, all_rows):
        return False
    if not input_gradient(team, work, layer_at(work.decoder, 0), all_rows, Matrix(0, 0), NONE, work.dz):
        return False
    for m in range(begin(team, rows), end(team, rows)):
        if t.sampled:
            latent_backward_sampled_row(latent, m, scratch)
        else:
            latent_backward_row(latent, m, scratch)
    if not proceed(team):
        return False
    if not backward(team, work, work.encoder, rows):
        return False

    u = update_at(t.rule, now)
    weight_gradients(team, work, work.decoder, work.z, all_rows, False, u, False)
    weight_gradients(team, work, work.encoder, work.x, rows, False, u, few)
    barrier(team)
    return True


@entry
def train_steps(team: Team, work: Work, t: Training) -> None:
    """Steps until the last, or one that is not made."""
    slots = 2 if t.rule.name == ADAM else 1
    pack(team, work.encoder, t.params, True)
    pack(team, work.decoder, t.params, True)
    pack_state(team, work.encoder, t.state, slots, work.size)
    pack_state(team, work.decoder, t.state, slots, work.size)
    barrier(team)
    for i in range(t.steps):
        if not _step(team, work, t, i):
            break
        if team.member == 0:
            int64s(t.done, 1)[0] = i + 1
    barrier(team)
    unpack(team, work.encoder, t.params, t.state, slots, work.size)
    unpack(team, work.decoder, t.params, t.state, slots, work.size)
