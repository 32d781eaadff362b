"""The truth: Auto-Encoding Variational Bayes (arXiv 1312.6114) as float64 loops, importing nothing of fastvae.

Every number is a Python float and every sum a loop, in the order in which the paper writes it. `network` is any object
with the fields data_dim, latent_dim, encoder_hidden, decoder_hidden, activation, likelihood, mean and logvar_floor;
`optimizer` any object with name, learning_rate, momentum, beta1, beta2, epsilon and hold_steps.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

Vector = list[float]
Matrix = list[Vector]
Layer = tuple[Matrix, Vector]  # W[i][o] and b[o] of y = x W + b

LATENT, BINARIZE, BINARIZE_FIXED, ORDER, DREAM = 0, 1, 2, 4, 8  # streams: the fourth counter word
MASK = 0xFFFFFFFF


# --- noise: Salmon et al. 2011, Philox4x32-10 -----------------------------------------------------------------------


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, int, int, int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def word(element: int, *, seed: int, step: int, stream: int) -> int:
    counter = (element // 4, step & MASK, step >> 32, stream)
    return philox(counter, (seed & MASK, seed >> 32))[element % 4]


def uniform(element: int, *, seed: int, step: int, stream: int) -> float:
    return ((word(element, seed=seed, step=step, stream=stream) >> 8) + 0.5) / 2**24


def normal(element: int, *, seed: int, step: int, stream: int) -> float:
    """Box-Muller: elements 2i and 2i + 1 share the words 2i (radius) and 2i + 1 (angle)."""
    first = element - element % 2
    radius = math.sqrt(-2 * math.log(uniform(first, seed=seed, step=step, stream=stream)))
    angle = 2 * math.pi * uniform(first + 1, seed=seed, step=step, stream=stream)
    return radius * (math.cos(angle) if element % 2 == 0 else math.sin(angle))


def epoch_order(n_rows: int, *, seed: int, epoch: int) -> list[int]:
    """Rows in the order of their 64-bit keys, low word first."""
    keys = []
    for row in range(n_rows):
        low = word(2 * row, seed=seed, step=epoch, stream=ORDER)
        high = word(2 * row + 1, seed=seed, step=epoch, stream=ORDER)
        keys.append((high << 32 | low, row))
    return [row for _, row in sorted(keys)]


# --- data -----------------------------------------------------------------------------------------------------------


def data_row(data: Any, row: int) -> Vector:
    """One row of a dense matrix or of a CSR matrix."""
    if not hasattr(data, "indptr"):
        return [float(value) for value in data[row]]
    dense = [0.0] * data.shape[1]
    for entry in range(data.indptr[row], data.indptr[row + 1]):
        dense[data.indices[entry]] = float(data.data[entry])
    return dense


def gather(data: Any, index: Any, *, scale: float, binarize: str, seed: int, step: int) -> Matrix:
    x = []
    for m, row in enumerate(index):
        grey = [value * scale for value in data_row(data, int(row))]
        for d, value in enumerate(grey):
            if binarize == "dynamic":
                u = uniform(m * len(grey) + d, seed=seed, step=step, stream=BINARIZE)
            elif binarize == "fixed":
                u = uniform(d, seed=seed, step=int(row), stream=BINARIZE_FIXED)
            elif binarize == "shared":
                u = uniform(d, seed=seed, step=0, stream=BINARIZE_FIXED)
            else:
                continue
            grey[d] = 1.0 if u < value else 0.0
        x.append(grey)
    return x


# --- scalar functions -----------------------------------------------------------------------------------------------


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a >= 0 else math.exp(a) / (1 + math.exp(a))


def softplus(a: float) -> float:
    return max(a, 0.0) + math.log1p(math.exp(-abs(a)))


def activate(name: str, a: float) -> float:
    if name == "tanh":
        return math.tanh(a)
    if name == "relu":
        return max(a, 0.0)
    return softplus(a) if name == "softplus" else sigmoid(a)


def activation_slope(name: str, h: float) -> float:
    """Derivative of the activation, from its value h."""
    if name == "tanh":
        return 1 - h * h
    if name == "relu":
        return 1.0 if h > 0 else 0.0
    if name == "softplus":
        return -math.expm1(-h)
    return h * (1 - h)


# --- network: appendix C --------------------------------------------------------------------------------------------


def unflatten(network: Any, flat: Any) -> tuple[list[Layer], list[Layer]]:
    """Layers of the encoder and of the decoder: per layer W row by row, then b."""
    heads = 1 if network.likelihood == "bernoulli" else 2
    encoder_dims = [network.data_dim, *network.encoder_hidden, 2 * network.latent_dim]
    decoder_dims = [network.latent_dim, *network.decoder_hidden, heads * network.data_dim]
    numbers = iter(float(value) for value in flat)
    sides = []
    for dims in (encoder_dims, decoder_dims):
        layers = []
        for fan_in, fan_out in itertools.pairwise(dims):
            weight = [[next(numbers) for _ in range(fan_out)] for _ in range(fan_in)]
            layers.append((weight, [next(numbers) for _ in range(fan_out)]))
        sides.append(layers)
    if next(numbers, None) is not None:
        raise ValueError("the flat buffer is longer than its network")
    return sides[0], sides[1]


def flatten(layers: list[Layer]) -> Vector:
    flat = []
    for weight, bias in layers:
        for row in weight:
            flat.extend(row)
        flat.extend(bias)
    return flat


def affine(layer: Layer, x: Vector) -> Vector:
    weight, bias = layer
    y = list(bias)
    for i, value in enumerate(x):
        for o in range(len(y)):
            y[o] += value * weight[i][o]
    return y


def mlp_forward(layers: list[Layer], activation: str, x: Vector) -> tuple[list[Vector], Vector]:
    """Hidden values of every layer and the affine heads."""
    hidden: list[Vector] = []
    for layer in layers[:-1]:
        x = [activate(activation, a) for a in affine(layer, x)]
        hidden.append(x)
    return hidden, affine(layers[-1], x)


def mlp_backward(
    layers: list[Layer], activation: str, x: Vector, hidden: list[Vector], dheads: Vector
) -> tuple[Vector, list[Layer]]:
    """Backpropagation by the chain rule: gradient in x and in every W and b."""
    gradient: list[Layer] = []
    dy = dheads
    for k in reversed(range(len(layers))):
        weight, bias = layers[k]
        below = hidden[k - 1] if k else x
        dweight = [[below[i] * dy[o] for o in range(len(bias))] for i in range(len(below))]
        gradient.insert(0, (dweight, list(dy)))
        dbelow = [sum(weight[i][o] * dy[o] for o in range(len(bias))) for i in range(len(below))]
        dy = [d * activation_slope(activation, h) for d, h in zip(dbelow, below, strict=True)] if k else dbelow
    return dy, gradient


def encoder_forward(network: Any, params: Any, x: Any) -> tuple[tuple[Matrix, ...], Matrix, Matrix]:
    """Appendix C.2: hidden values per layer, mu and log sigma^2."""
    encoder, _ = unflatten(network, params)
    rows = [mlp_forward(encoder, network.activation, list(map(float, row))) for row in x]
    hidden = tuple([row_hidden[k] for row_hidden, _ in rows] for k in range(len(network.encoder_hidden)))
    J = network.latent_dim
    return hidden, [heads[:J] for _, heads in rows], [heads[J:] for _, heads in rows]


def decoder_forward(network: Any, params: Any, z: Any) -> tuple[tuple[Matrix, ...], Matrix]:
    """Appendix C.1 and C.2: hidden values per layer and the heads before the likelihood."""
    _, decoder = unflatten(network, params)
    rows = [mlp_forward(decoder, network.activation, list(map(float, row))) for row in z]
    hidden = tuple([row_hidden[k] for row_hidden, _ in rows] for k in range(len(network.decoder_hidden)))
    return hidden, [heads for _, heads in rows]


# --- latent: section 2.4 and appendix B -----------------------------------------------------------------------------


def latent_forward(mu: Any, logvar: Any, eps: Any) -> tuple[list[Matrix], Vector]:
    """Equation 10: z[l][m][j] = mu + sigma eps, and the KL divergence to N(0, I) of each datapoint."""
    z: list[Matrix] = []
    for draw in eps:
        z.append([])
        for m, row in enumerate(draw):
            z[-1].append([mu[m][j] + math.exp(logvar[m][j] / 2) * row[j] for j in range(len(row))])
    kl = []
    for mu_row, logvar_row in zip(mu, logvar, strict=True):
        total = 0.0
        for mean, logv in zip(mu_row, logvar_row, strict=True):
            total += -0.5 * (1 + logv - mean**2 - math.exp(logv))
        kl.append(total)
    return z, kl


def latent_backward(mu: Any, logvar: Any, eps: Any, dz: Any, kl_scale: float) -> tuple[Matrix, Matrix]:
    dmu: Matrix = []
    dlogvar: Matrix = []
    for m in range(len(mu)):
        dmu.append([])
        dlogvar.append([])
        for j in range(len(mu[m])):
            through_mean, through_sigma = 0.0, 0.0
            for draw in range(len(eps)):
                through_mean += dz[draw][m][j]
                through_sigma += dz[draw][m][j] * eps[draw][m][j] * math.exp(logvar[m][j] / 2) / 2
            dmu[m].append(through_mean - kl_scale * mu[m][j])
            dlogvar[m].append(through_sigma - kl_scale * (math.exp(logvar[m][j]) - 1) / 2)
    return dmu, dlogvar


def latent_forward_sampled(mu: Any, logvar: Any, eps: Any) -> tuple[list[Matrix], Matrix]:
    """Equation 10, and log q(z|x) - log p(z) of each draw from the two normal densities; (z - mu) / sigma is eps."""
    z, _ = latent_forward(mu, logvar, eps)
    kl: Matrix = []
    for draw, noise in zip(z, eps, strict=True):
        kl.append([])
        for m, row in enumerate(draw):
            total = 0.0
            for j, value in enumerate(row):
                log_q = -0.5 * (math.log(2 * math.pi) + logvar[m][j] + noise[m][j] ** 2)
                log_p = -0.5 * (math.log(2 * math.pi) + value**2)
                total += log_q - log_p
            kl[-1].append(total)
    return z, kl


def latent_backward_sampled(mu: Any, logvar: Any, eps: Any, dz: Any, weight: Any) -> tuple[Matrix, Matrix]:
    """Chain rule through z; log q(z|x) = -1/2 sum_j (log 2 pi + logvar + eps^2) depends on logvar alone."""
    dmu: Matrix = []
    dlogvar: Matrix = []
    for m in range(len(mu)):
        dmu.append([])
        dlogvar.append([])
        for j in range(len(mu[m])):
            sd, through_mean, through_logvar = math.exp(logvar[m][j] / 2), 0.0, 0.0
            for draw in range(len(eps)):
                z = mu[m][j] + sd * eps[draw][m][j]
                total_dz = dz[draw][m][j] - weight[draw][m] * z
                through_mean += total_dz
                through_logvar += total_dz * eps[draw][m][j] * sd / 2 + weight[draw][m] / 2
            dmu[m].append(through_mean)
            dlogvar[m].append(through_logvar)
    return dmu, dlogvar


# --- likelihood: appendix C.1 and C.2 -------------------------------------------------------------------------------


def log_likelihood(network: Any, x: Any, heads: Any) -> tuple[float, Vector]:
    """log p(x|z) of one row and its gradient in the decoder's heads."""
    D = network.data_dim
    total, gradient = 0.0, [0.0] * len(heads)
    for d in range(D):
        pixel, a = float(x[d]), float(heads[d])
        if network.likelihood == "bernoulli":
            # x log y + (1 - x) log(1 - y) with y = sigmoid(a), log y = -softplus(-a), log(1 - y) = -softplus(a)
            total += -pixel * softplus(-a) - (1 - pixel) * softplus(a)
            gradient[d] = pixel - sigmoid(a)
            continue
        raw, floor = float(heads[D + d]), network.logvar_floor
        mean = sigmoid(a) if network.mean == "sigmoid" else a
        mean_slope = mean * (1 - mean) if network.mean == "sigmoid" else 1.0
        logvar = floor + softplus(raw - floor)
        squared = (pixel - mean) ** 2 / math.exp(logvar)
        total += -0.5 * (math.log(2 * math.pi) + logvar + squared)
        gradient[d] = (pixel - mean) / math.exp(logvar) * mean_slope
        gradient[D + d] = -0.5 * (1 - squared) * sigmoid(raw - floor)
    return total, gradient


def likelihood(network: Any, x: Any, out: Any, scale: float) -> tuple[Vector, Matrix]:
    """Row r of the heads belongs to x[r % M]."""
    rows = [log_likelihood(network, x[r % len(x)], out[r]) for r in range(len(out))]
    return [log_px for log_px, _ in rows], [[scale * value for value in gradient] for _, gradient in rows]


def likelihood_mean(network: Any, out: Any) -> Matrix:
    identity = network.likelihood == "gaussian" and network.mean == "identity"
    return [[a if identity else sigmoid(a) for a in map(float, row[: network.data_dim])] for row in out]


def likelihood_sample(network: Any, out: Any, seed: int, step: int) -> Matrix:
    """x ~ p(x|z) of each row of heads."""
    D, key = network.data_dim, {"seed": seed, "step": step, "stream": DREAM}
    x: Matrix = []
    for r, mean in enumerate(likelihood_mean(network, out)):
        x.append([])
        for d in range(D):
            if network.likelihood == "bernoulli":
                x[-1].append(1.0 if uniform(r * D + d, **key) < mean[d] else 0.0)
                continue
            floor = network.logvar_floor
            logvar = floor + softplus(float(out[r][D + d]) - floor)
            x[-1].append(mean[d] + math.exp(logvar / 2) * normal(r * D + d, **key))
    return x


# --- backpropagation ------------------------------------------------------------------------------------------------


def _accumulate(gradients: list[list[Layer]], before: int, after: int) -> Vector:
    """Sum flat gradients of rows, with zeros for the other side's parameters before and after them."""
    total = [0.0] * len(flatten(gradients[0]))
    for layers in gradients:
        for i, value in enumerate(flatten(layers)):
            total[i] += value
    return [0.0] * before + total + [0.0] * after


def decoder_backward(network: Any, params: Any, z: Any, hidden: Any, dout: Any) -> tuple[Matrix, Vector]:
    """Gradient in z, and in all parameters (zero for the encoder's)."""
    encoder, decoder = unflatten(network, params)
    dz, gradients = [], []
    for r in range(len(z)):
        row_hidden = [list(map(float, layer[r])) for layer in hidden]
        row = mlp_backward(decoder, network.activation, list(map(float, z[r])), row_hidden, list(map(float, dout[r])))
        dz.append(row[0])
        gradients.append(row[1])
    return dz, _accumulate(gradients, len(flatten(encoder)), 0)


def encoder_backward(network: Any, params: Any, x: Any, hidden: Any, dmu: Any, dlogvar: Any) -> Vector:
    """Gradient in all parameters (zero for the decoder's)."""
    encoder, decoder = unflatten(network, params)
    gradients = []
    for m in range(len(x)):
        row_hidden = [list(map(float, layer[m])) for layer in hidden]
        dheads = [*map(float, dmu[m]), *map(float, dlogvar[m])]
        gradients.append(mlp_backward(encoder, network.activation, list(map(float, x[m])), row_hidden, dheads)[1])
    return _accumulate(gradients, 0, len(flatten(decoder)))


def log_joint(network: Any, params: Any, x: Any, z: Any) -> tuple[Vector, Matrix]:
    """log p(x|z) + log N(z; 0, I) of each row of z, and its gradient in z."""
    hidden, out = decoder_forward(network, params, z)
    log_px, dout = likelihood(network, x, out, 1.0)
    dz, _ = decoder_backward(network, params, z, hidden, dout)
    for r in range(len(z)):
        for j in range(len(z[r])):
            log_px[r] += -0.5 * (math.log(2 * math.pi) + float(z[r][j]) ** 2)
            dz[r][j] -= float(z[r][j])
    return log_px, dz


# --- optimizers -----------------------------------------------------------------------------------------------------


def update(
    optimizer: Any, params: Any, grad: Any, state: Any, *, step: int, decay: float
) -> tuple[Vector, list[Vector]]:
    """One step of ascent; `step` counts the steps done before. Returns new parameters and state."""
    new_params, new_state = [float(w) for w in params], [[float(s) for s in slot] for slot in state]
    rate, t = optimizer.learning_rate, step + 1
    for i, w in enumerate(new_params):
        g = float(grad[i]) - decay * w
        if optimizer.name == "adagrad":
            new_state[0][i] += g * g
            if step >= optimizer.hold_steps:
                new_params[i] = w + rate * g / math.sqrt(new_state[0][i] + optimizer.epsilon)
        elif optimizer.name == "adam":
            new_state[0][i] = optimizer.beta1 * new_state[0][i] + (1 - optimizer.beta1) * g
            new_state[1][i] = optimizer.beta2 * new_state[1][i] + (1 - optimizer.beta2) * g * g
            first = new_state[0][i] / (1 - optimizer.beta1**t)
            second = new_state[1][i] / (1 - optimizer.beta2**t)
            new_params[i] = w + rate * first / (math.sqrt(second) + optimizer.epsilon)
        else:
            new_state[0][i] = optimizer.momentum * new_state[0][i] + g
            new_params[i] = w + rate * new_state[0][i]
    return new_params, new_state


# --- Algorithm 1 ----------------------------------------------------------------------------------------------------


def objective(
    network: Any, params: Any, x: Any, eps: Any, *, estimator: str, kl_weight: float, decay: float
) -> tuple[float, float, float]:
    """Equation 7 or 6 of a minibatch with the weight prior: the objective, mean log p(x|z) and mean KL."""
    M, L = len(x), len(eps)
    _, mu, logvar = encoder_forward(network, params, x)
    z, mean_kl = sampled_latent(mu, logvar, eps, estimator)
    log_px = 0.0
    for draw in z:
        _, out = decoder_forward(network, params, draw)
        log_px += sum(likelihood(network, x, out, 1.0)[0]) / (L * M)
    prior = -decay / 2 * sum(float(w) ** 2 for w in params)
    return log_px - kl_weight * mean_kl + prior, log_px, mean_kl


def sampled_latent(mu: Any, logvar: Any, eps: Any, estimator: str) -> tuple[list[Matrix], float]:
    """z, and the mean KL divergence over the minibatch: analytic in equation 7, over the draws in equation 6."""
    if estimator == "sgvb-a":
        z, terms = latent_forward_sampled(mu, logvar, eps)
        return z, sum(map(sum, terms)) / (len(eps) * len(mu))
    z, kl = latent_forward(mu, logvar, eps)
    return z, sum(kl) / len(mu)


def train_step(
    network: Any,
    params: Any,
    state: Any,
    optimizer: Any,
    data: Any,
    index: Any,
    *,
    scale: float,
    binarize: str,
    seed: int,
    step: int,
    draws: int,
    estimator: str,
    kl_weight: float,
    kl_warmup: int,
    decay: float,
) -> tuple[Vector, list[Vector], float, float]:
    """Draw a minibatch and its noise, ascend the gradient of equation 7 or 6: new parameters, state, log p(x|z), KL."""
    M, J = len(index), network.latent_dim
    x = gather(data, index, scale=scale, binarize=binarize, seed=seed, step=step)
    eps = [
        [[normal((draw * M + m) * J + j, seed=seed, step=step, stream=LATENT) for j in range(J)] for m in range(M)]
        for draw in range(draws)
    ]
    beta = kl_weight * min(1.0, step / kl_warmup) if kl_warmup else kl_weight

    encoder_hidden, mu, logvar = encoder_forward(network, params, x)
    z, mean_kl = sampled_latent(mu, logvar, eps, estimator)
    grad = [0.0] * len(params)
    dz: list[Matrix] = []
    log_px = 0.0
    for draw in z:
        decoder_hidden, out = decoder_forward(network, params, draw)
        values, dout = likelihood(network, x, out, 1 / (draws * M))
        log_px += sum(values) / (draws * M)
        draw_dz, dtheta = decoder_backward(network, params, draw, decoder_hidden, dout)
        dz.append(draw_dz)
        grad = [g + d for g, d in zip(grad, dtheta, strict=True)]
    if estimator == "sgvb-a":
        dmu, dlogvar = latent_backward_sampled(mu, logvar, eps, dz, [[beta / (draws * M)] * M] * draws)
    else:
        dmu, dlogvar = latent_backward(mu, logvar, eps, dz, beta / M)
    dphi = encoder_backward(network, params, x, encoder_hidden, dmu, dlogvar)
    grad = [g + d for g, d in zip(grad, dphi, strict=True)]

    new_params, new_state = update(optimizer, params, grad, state, step=step, decay=decay)
    return new_params, new_state, log_px, mean_kl


def arrays(value: Any) -> Any:
    """Turn the lists of a result into float64 arrays, leaving tuples as they are."""
    return tuple(arrays(part) for part in value) if isinstance(value, tuple) else np.array(value, np.float64)
