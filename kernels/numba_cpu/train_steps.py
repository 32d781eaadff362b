"""The fused loop: consecutive steps on packed parameters, one compiled call, nothing in between.

A step of AEVB is Algorithm 1; one of the importance-weighted bound weighs the draws of each datapoint in it. One of
wake-sleep dreams first, which takes the parameters alone; then it does with the data what AEVB does, as far as theta's
gradient; then phi's is taken of the dreams. Both are at the same parameters, since the updates come last.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import float64, uint64

from fastvae.kernels import STEP_ESTIMATORS
from fastvae.kernels.numba_cpu.compile import FLOAT, compiled, entry, f32, float64s, floats, int32s, int64s
from fastvae.kernels.numba_cpu.dense import NONE
from fastvae.kernels.numba_cpu.gather import Gather, gather_row
from fastvae.kernels.numba_cpu.latent import (
    Latent,
    dream_backward_row,
    latent_backward_row,
    latent_backward_sampled_row,
    latent_forward_row,
    latent_forward_sampled_row,
)
from fastvae.kernels.numba_cpu.likelihood import likelihood_row, likelihood_sample_row
from fastvae.kernels.numba_cpu.optimizer import ADAM, Rule, update_at
from fastvae.kernels.numba_cpu.phases import (
    Matrix,
    Work,
    backward,
    draw_normals,
    forward,
    input_gradient,
    layer_at,
    pack,
    pack_state,
    scratch_of,
    unpack,
    weight_gradients,
)
from fastvae.kernels.numba_cpu.sparse import list_columns, list_row
from fastvae.kernels.numba_cpu.thread_pool import Team, barrier, begin, end, proceed
from fastvae.rng import Stream

__all__ = ["Training", "train_steps"]

# Share of nonzeros up to which the lists are used.
_SPARSE_DENSITY = 0.4
_LATENT_STREAM, _DREAM_LATENT_STREAM = int(Stream.LATENT), int(Stream.DREAM_LATENT)
_SGVB_B, _SGVB_A, _IWAE, _WAKE_SLEEP = range(len(STEP_ESTIMATORS))


class Training(NamedTuple):
    """Arguments of `fastvae.kernels.Plan.train_steps`, arrays as addresses; estimator is a place in STEP_ESTIMATORS."""

    params: int
    state: int
    rule: Rule
    gather: Gather
    order: int
    steps: int
    rows: int
    first_step: Any
    estimator: int
    kl_weight: float
    kl_warmup: float
    stats: int
    done: int


@compiled
def _list_row(work: Work, x: Matrix, m: int) -> None:
    """List the nonzeros of row m of x, where lists are kept."""
    if work.nonzeros.ld:
        list_row(work.nonzeros, m, x.at + FLOAT * m * x.ld, work.density.data_dim)


@compiled
def _few_nonzeros(work: Work, rows: int) -> bool:
    """Whether the nonzeros of the rows listed last are few enough to be worth their lists."""
    if work.nonzeros.ld == 0:
        return False
    total, counts = 0, int32s(work.nonzeros.row_count, rows)
    for m in range(rows):
        total += counts[m]
    return total <= _SPARSE_DENSITY * rows * work.density.data_dim


@compiled
def _sampled(t: Training) -> bool:
    """Whether the bound has the KL term of each draw."""
    return t.estimator == _SGVB_A or t.estimator == _IWAE


@compiled
def _mean(terms: Any) -> float:
    """Mean in float64. Every member adds the same few numbers in the same order, cheaper than another barrier."""
    total = 0.0
    for term in terms:
        total += term
    return total / len(terms)


@compiled
def _latent(work: Work, t: Training, z: Matrix, kl_scale: Any) -> Latent:
    """The encoder's heads and their gradients, beside z."""
    heads, half = layer_at(work.encoder, work.encoder.layers - 1), FLOAT * work.latent_dim
    return Latent(
        heads.y,
        heads.y + half,
        heads.y_ld,
        work.eps,
        work.draws,
        t.rows,
        work.latent_dim,
        z.at,
        z.ld,
        work.kl,
        work.dz.at,
        work.dz.ld,
        kl_scale,
        work.weights if t.estimator == _IWAE else 0,
        heads.dy,
        heads.dy + half,
        heads.dy_ld,
    )


@compiled
def _dream(team: Team, work: Work, t: Training, now: Any) -> bool:
    """Draw z ~ N(0, I) and x ~ p(x|z); the end of the next phase is the end of this one."""
    rows, last = t.rows, layer_at(work.decoder, work.decoder.layers - 1)
    draw_normals(team, t.gather.seed, now, _DREAM_LATENT_STREAM, work.dream_z.at, rows * work.latent_dim)
    if not proceed(team):
        return False
    if not forward(team, work, work.decoder, work.dream_z, rows, False):
        return False
    for m in range(begin(team, rows), end(team, rows)):
        likelihood_sample_row(work.density, last.y + FLOAT * m * last.y_ld, t.gather.seed, now, m, work.dream_x.at)
    return True


@compiled
def _minibatch(team: Team, work: Work, t: Training, i: int) -> None:
    """Gather x with its lists of nonzeros, and draw eps."""
    now, rows = t.first_step + uint64(i), t.rows
    index = int64s(t.order + 8 * i * rows, rows)
    for m in range(begin(team, rows), end(team, rows)):
        gather_row(t.gather, index[m], m, now, work.x.at + FLOAT * m * work.x.ld)
        _list_row(work, work.x, m)
    draw_normals(team, t.gather.seed, now, _LATENT_STREAM, work.eps, work.draws * rows * work.latent_dim)


@compiled
def _weigh(team: Team, work: Work, rows: int) -> tuple[float, float]:
    """Weigh dy of the decoder's heads by w / sum w of each datapoint's draws, log w = log p(x|z) - kl, in float64.

    It returns the statistics: means of log p(x|z) under the weights, and of what that exceeds the bound by. The caller
    ends the phase.
    """
    all_rows, last = work.draws * rows, layer_at(work.decoder, work.decoder.layers - 1)
    log_pxs, kls, weights = floats(work.log_px, all_rows), floats(work.kl, all_rows), floats(work.weights, all_rows)
    mean_log_pxs, mean_kls = float64s(work.weighed, rows), float64s(work.weighed + 8 * rows, rows)
    for m in range(begin(team, rows), end(team, rows)):
        largest, total, mean = -math.inf, 0.0, 0.0
        for r in range(m, all_rows, rows):
            largest = max(largest, float64(log_pxs[r]) - kls[r])
        for r in range(m, all_rows, rows):
            total += math.exp(float64(log_pxs[r]) - kls[r] - largest)
        for r in range(m, all_rows, rows):
            weight = math.exp(float64(log_pxs[r]) - kls[r] - largest) / total
            mean += weight * log_pxs[r]
            weights[r] = f32(weight / rows)
        mean_log_pxs[m], mean_kls[m] = mean, mean - (largest + math.log(total / work.draws))
    barrier(team)
    for r in range(begin(team, all_rows), end(team, all_rows)):
        dout = floats(last.dy + FLOAT * r * last.dy_ld, last.fan_out)
        for j in range(last.fan_out):
            dout[j] *= weights[r]
    return _mean(mean_log_pxs), _mean(mean_kls)


@compiled
def _bound(team: Team, work: Work, t: Training, i: int) -> bool:
    """Statistics of step i, and dy of the decoder's heads. False when the bound is not finite, or as `proceed`."""
    rows, all_rows, weighed, scratch = t.rows, work.draws * t.rows, t.estimator == _IWAE, scratch_of(team, work)

    _minibatch(team, work, t, i)
    if not proceed(team):
        return False
    if not forward(team, work, work.encoder, work.x, rows, _few_nonzeros(work, rows)):
        return False

    latent = _latent(work, t, work.z, f32(0.0))
    for m in range(begin(team, rows), end(team, rows)):
        if _sampled(t):
            latent_forward_sampled_row(latent, m, scratch)
        else:
            latent_forward_row(latent, m, scratch)
    if not proceed(team):
        return False

    if not forward(team, work, work.decoder, work.z, all_rows, False):
        return False

    last, log_pxs = layer_at(work.decoder, work.decoder.layers - 1), floats(work.log_px, all_rows)
    scale = f32(1.0 if weighed else 1.0 / all_rows)
    for r in range(begin(team, all_rows), end(team, all_rows)):
        x, out = work.x.at + FLOAT * (r % rows) * work.x.ld, last.y + FLOAT * r * last.y_ld
        log_pxs[r] = likelihood_row(work.density, x, out, scale, last.dy + FLOAT * r * last.dy_ld, scratch)
    if not proceed(team):
        return False

    if weighed:
        log_px, kl = _weigh(team, work, rows)
    else:
        log_px, kl = _mean(log_pxs), _mean(floats(work.kl, all_rows if _sampled(t) else rows))
    if team.member == 0:
        stats = float64s(t.stats + 16 * i, 2)
        stats[0], stats[1] = log_px, kl
    return math.isfinite(log_px - kl) and (not weighed or proceed(team))


@compiled
def _heads_awake(team: Team, work: Work, t: Training, now: Any) -> bool:
    """Dy of the encoder's heads, of the bound of the minibatch."""
    rows, all_rows, scratch = t.rows, work.draws * t.rows, scratch_of(team, work)
    if not input_gradient(team, work, layer_at(work.decoder, 0), all_rows, Matrix(0, 0), NONE, work.dz):
        return False
    weight = t.kl_weight * min(1.0, float(now) / t.kl_warmup) if t.kl_warmup > 0 else t.kl_weight
    latent = _latent(work, t, work.z, f32(weight / (all_rows if _sampled(t) else rows)))
    for m in range(begin(team, rows), end(team, rows)):
        if _sampled(t):
            latent_backward_sampled_row(latent, m, scratch)
        else:
            latent_backward_row(latent, m, scratch)
    return True


@compiled
def _heads_asleep(team: Team, work: Work, t: Training) -> bool:
    """Dy of the encoder's heads, of log q(z|x) at the dreams, whose nonzeros take the place of the minibatch's."""
    rows = t.rows
    for m in range(begin(team, rows), end(team, rows)):
        _list_row(work, work.dream_x, m)
    if not proceed(team):
        return False
    if not forward(team, work, work.encoder, work.dream_x, rows, _few_nonzeros(work, rows)):
        return False
    latent = _latent(work, t, work.dream_z, f32(0.0))
    for m in range(begin(team, rows), end(team, rows)):
        dream_backward_row(latent, m)
    return True


@compiled
def _step(team: Team, work: Work, t: Training, i: int) -> bool:
    """One step. False, with nothing updated, when the bound is not finite or an interrupt is due."""
    rows, all_rows, now = t.rows, work.draws * t.rows, t.first_step + uint64(i)
    dreams, data_dim = t.estimator == _WAKE_SLEEP, work.density.data_dim
    if dreams and not _dream(team, work, t, now):
        return False
    if not _bound(team, work, t, i):
        return False

    if not backward(team, work, work.decoder, all_rows):
        return False
    if not (_heads_asleep(team, work, t) if dreams else _heads_awake(team, work, t, now)):
        return False
    few = _few_nonzeros(work, rows)
    if few:
        list_columns(work.nonzeros, rows, begin(team, data_dim), end(team, data_dim))
    if not proceed(team):
        return False
    if not backward(team, work, work.encoder, rows):
        return False

    u = update_at(t.rule, now)
    weight_gradients(team, work, work.decoder, work.z, all_rows, False, u, False)
    weight_gradients(team, work, work.encoder, work.dream_x if dreams else work.x, rows, False, u, few)
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
