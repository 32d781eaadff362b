"""THE CONTRACT: every operation of an engine, its arguments, shapes, units and aliasing, in one place.

An *engine* is a backend's module (``fastvae.kernels.reference``, the compiled ``fastvae._native``, ...): see `Engine`.
Its ``plan`` gives a *plan*: one network with a workspace and threads, on which every operation is a method: see `Plan`.

Axes: M datapoints, L draws of z per datapoint, R = L * M rows of the decoder (draw-major: row ``r`` is draw ``r // M``
of datapoint ``r % M``), D data, H hidden, J latent. P parameters in one flat buffer laid out by
``fastvae.network.ParameterLayout``.

Rules
-----
- Arguments are passed by keyword. Arrays are C-contiguous, of the plan's dtype (float32; the reference also offers
  float64) unless an argument says otherwise, and are refused, never converted, when they are not.
- Outputs are arguments and are overwritten, except ``grad``, which is added to. No output may overlap another argument.
- Shapes are checked on entry: `ValueError` names the argument, the expected shape and the one found.
- Bounds and log densities are in nats per datapoint, summed over dimensions.
- Every ``d...`` is a derivative of the *bound* (ascent direction), already multiplied by the caller's ``scale``.
- Randomness is that of ``fastvae.rng``: words bit for bit, normals within a few units in the last place.
- Sums run in one order: the same bits on any number of threads, and a row's result does not depend on the rows beside
  it. (The reference leaves the order to NumPy's BLAS, which chooses it by shape.)
- Arrays are NumPy's, or of memory that an engine knows better. A plan with an attribute ``place`` brings memory of its
  own for what goes from one operation to the next: see `fastvae.kernels.places`.
- An engine is ``fastvae.backends.load(name)``, initial parameters are ``fastvae.network.initialise``'s, and an
  optimizer's state begins as zeros of shape (``optimizer.n_slots``, P).
- ``train_steps`` equals the composition of the operations (``fastvae.training.step.compose_step``) up to rounding.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from fastvae.network import Network
from fastvae.optimizer import Optimizer

__all__ = ["BINARIZE", "ESTIMATORS", "STEP_ESTIMATORS", "Array", "Engine", "Plan"]

Array = NDArray[Any]

# What ``gather`` makes of scaled grey levels v in [0, 1]. With u of `fastvae.rng.uniform` a pixel becomes [u < v];
# u is keyed by: "dynamic": training step and place in the minibatch; "fixed": row of the dataset and dimension;
# "shared": dimension alone (row 0 of "fixed"), so that a row's result does not depend on where it stands.
BINARIZE = ("none", "dynamic", "fixed", "shared")

# The paper's estimators of the bound, which differ in the KL divergence: "sgvb-b" (equation 7) has the analytic one,
# "sgvb-a" (equation 6) the mean over the draws of log q(z|x) - log p(z).
ESTIMATORS = ("sgvb-b", "sgvb-a")
# What ``train_steps`` ascends: the bound by either of these two; the importance-weighted bound (Burda et al. 2016); or
# wake-sleep's pair of objectives, one in theta and one in phi (section 5).
STEP_ESTIMATORS = (*ESTIMATORS, "iwae", "wake-sleep")


class Plan(Protocol):
    """One network with its workspace and threads.

    Calls from several threads wait for each other. A call from a signal handler that runs during another call on the
    same plan is a RuntimeError where the engine cannot nest them.
    """

    network: Network
    rows: int
    draws: int
    precision: str
    n_threads: int

    def gather(self, *, data: Any, index: Array, scale: float, binarize: str, seed: int, step: int, x: Array) -> None:
        """Fetch a minibatch: ``x[m] = data[index[m]] * scale``, then binarise.

        Parameters
        ----------
        data : ndarray of shape (N, D), uint8, float32 or float64; or scipy CSR of the same with sorted unique indices
        index : ndarray of shape (M,), int64
            Row numbers in [0, N).
        scale : float
        binarize : {"none", "dynamic", "fixed", "shared"}
        seed, step : int
            Key of the noise and training step.
        x : ndarray of shape (M, D)
            Output.
        """

    def encoder_forward(self, *, params: Array, x: Array, hidden: tuple[Array, ...], mu: Array, logvar: Array) -> None:
        """Recognition model q(z|x) (appendix C.2).

        ``h_0 = f(x W_0 + b_0)``, ..., ``mu = h W + b``, ``logvar = h W' + b'``.

        Parameters
        ----------
        params : ndarray of shape (P,)
        x : ndarray of shape (M, D)
        hidden : tuple of ndarray of shape (M, H_i)
            Output, one per hidden layer; kept for `encoder_backward`.
        mu, logvar : ndarray of shape (M, J)
            Output.
        """

    def latent_forward(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """Reparameterised sample (section 2.4) and the analytic KL divergence to N(0, I) (appendix B).

        ``z = mu + exp(logvar / 2) eps``; ``kl = -1/2 sum_j (1 + logvar - mu^2 - exp(logvar))``.

        Parameters
        ----------
        mu, logvar : ndarray of shape (M, J)
        eps : ndarray of shape (L, M, J)
        z : ndarray of shape (L, M, J)
            Output.
        kl : ndarray of shape (M,)
            Output.
        """

    def latent_forward_sampled(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """Reparameterised sample, and log q(z|x) - log p(z) at each draw: the KL term of equation 6, in nats.

        ``z = mu + exp(logvar / 2) eps``; ``kl_l = 1/2 sum_j (z_l^2 - eps_l^2 - logvar)``.

        Parameters
        ----------
        mu, logvar : ndarray of shape (M, J)
        eps : ndarray of shape (L, M, J)
        z : ndarray of shape (L, M, J)
            Output.
        kl : ndarray of shape (L, M)
            Output. Its mean over draws estimates the KL divergence; one draw's may be negative.
        """

    def decoder_forward(self, *, params: Array, z: Array, hidden: tuple[Array, ...], out: Array) -> None:
        """Decoder's heads before the likelihood (appendix C.1, C.2).

        Parameters
        ----------
        params : ndarray of shape (P,)
        z : ndarray of shape (R, J)
        hidden : tuple of ndarray of shape (R, H_i)
            Output, one per hidden layer; kept for `decoder_backward`.
        out : ndarray of shape (R, D) for bernoulli, (R, 2 D) for gaussian
            Output: logits ``a``; or ``[a | s]`` with ``mean = sigmoid(a)`` or ``a`` and
            ``logvar = floor + softplus(s - floor)``.
        """

    def likelihood(self, *, x: Array, out: Array, scale: float, log_px: Array, dout: Array | None) -> None:
        """Evaluate log p(x|z) and its gradient in one pass over the heads.

        bernoulli: ``sum_d x a - max(a, 0) - log1p(exp(-|a|))``; gradient ``x - sigmoid(a)``.
        gaussian: ``-1/2 sum_d log(2 pi) + logvar + (x - mean)^2 / exp(logvar)``.

        Parameters
        ----------
        x : ndarray of shape (M, D)
        out : ndarray of shape (R, D) or (R, 2 D)
            R a multiple of M; row r is compared with ``x[r % M]``.
        scale : float
            Factor of the gradient: 1 / (L M) for the mean bound, 1 for one row's log density.
        log_px : ndarray of shape (R,)
            Output, not scaled.
        dout : ndarray like out, or None
            Output: ``scale * d log_px / d out``.
        """

    def likelihood_mean(self, *, out: Array, mean: Array) -> None:
        """Mean of p(x|z), from the decoder's heads.

        Parameters
        ----------
        out : ndarray of shape (R, D) or (R, 2 D)
        mean : ndarray of shape (R, D)
            Output.
        """

    def likelihood_sample(self, *, out: Array, seed: int, step: int, x: Array) -> None:
        """Draw x ~ p(x|z), from the decoder's heads and stream DREAM.

        bernoulli: ``x = [u < sigmoid(a)]``; gaussian: ``x = mean + exp(logvar / 2) n``; u and n are element ``r D + d``
        of `fastvae.rng.uniform` and `fastvae.rng.normal`. So a row's noise depends on its number r. Engines agree on a
        bit unless u lies within the sigmoid's rounding.

        Parameters
        ----------
        out : ndarray of shape (R, D) or (R, 2 D)
        seed, step : int
            Key of the noise and training step.
        x : ndarray of shape (R, D)
            Output.
        """

    def decoder_backward(
        self, *, params: Array, z: Array, hidden: tuple[Array, ...], dout: Array, dz: Array | None, grad: Array | None
    ) -> None:
        """Backprop from the heads to z and to the decoder's parameters theta.

        Parameters
        ----------
        params : ndarray of shape (P,)
        z, hidden
            As given to and left by `decoder_forward`.
        dout : ndarray of shape (R, D) or (R, 2 D)
        dz : ndarray of shape (R, J), or None
            Output.
        grad : ndarray of shape (P,), or None
            Its decoder part is added to.
        """

    def latent_backward(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, kl_scale: float, dmu: Array, dlogvar: Array
    ) -> None:
        """Backprop through the sample and the KL divergence to the encoder's heads.

        ``dmu = sum_l dz_l - kl_scale mu``;
        ``dlogvar = sum_l dz_l eps_l exp(logvar / 2) / 2 - kl_scale (exp(logvar) - 1) / 2``.

        Parameters
        ----------
        mu, logvar : ndarray of shape (M, J)
        eps, dz : ndarray of shape (L, M, J)
        kl_scale : float
            Weight of the KL divergence times 1 / M.
        dmu, dlogvar : ndarray of shape (M, J)
            Output.
        """

    def latent_backward_sampled(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, weight: Array, dmu: Array, dlogvar: Array
    ) -> None:
        """Backprop through the sample and the KL term of each draw (equation 6) to the encoder's heads.

        With ``z_l = mu + exp(logvar / 2) eps_l`` and ``g_l = dz_l - weight_l z_l``: ``dmu = sum_l g_l``;
        ``dlogvar = 1/2 exp(logvar / 2) sum_l g_l eps_l + 1/2 sum_l weight_l``.

        Parameters
        ----------
        mu, logvar : ndarray of shape (M, J)
        eps, dz : ndarray of shape (L, M, J)
        weight : ndarray of shape (L, M)
            Factor of minus each draw's KL term in the bound: the weight of the KL divergence times 1 / (L M) for
            SGVB-A; the normalised importance weight times 1 / M for the bound of Burda et al. 2016.
        dmu, dlogvar : ndarray of shape (M, J)
            Output.
        """

    def encoder_backward(
        self, *, params: Array, x: Array, hidden: tuple[Array, ...], dmu: Array, dlogvar: Array, grad: Array
    ) -> None:
        """Backprop from the encoder's heads to its parameters phi.

        Parameters
        ----------
        params : ndarray of shape (P,)
        x, hidden
            As given to and left by `encoder_forward`.
        dmu, dlogvar : ndarray of shape (M, J)
        grad : ndarray of shape (P,)
            Its encoder part is added to.
        """

    def log_joint(self, *, params: Array, x: Array, z: Array, log_pxz: Array, dz: Array | None) -> None:
        """Evaluate log p(x, z) = log p(x|z) + log N(z; 0, I) and its gradient in z.

        Parameters
        ----------
        params : ndarray of shape (P,)
        x : ndarray of shape (M, D)
        z : ndarray of shape (R, J)
            R a multiple of M; row r belongs to ``x[r % M]``.
        log_pxz : ndarray of shape (R,)
            Output.
        dz : ndarray of shape (R, J), or None
            Output.
        """

    def update(
        self, *, optimizer: Optimizer, params: Array, grad: Array, state: Array, step: int, decay: float
    ) -> None:
        """One optimizer step of ascent, in place, with ``g = grad - decay * params``.

        Parameters
        ----------
        optimizer : Optimizer
            Its docstring has the rules.
        params : ndarray of shape (P,)
            Updated.
        grad : ndarray of shape (P,)
            Gradient of the mean bound.
        state : ndarray of shape (n_slots, P)
            Updated.
        step : int
            Steps done before this one.
        decay : float
            1 / N for the weight prior N(0, I) (MAP), 0 without.
        """

    def train_steps(
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
    ) -> None:
        """Run consecutive training steps, nothing in between: of AEVB (Algorithm 1) or wake-sleep.

        Each step gathers its minibatch, draws ``eps`` from stream LATENT, and ascends the gradient of
        ``1/M sum_m [1/L sum_l log p(x_m|z_ml) - beta kl_m] - decay/2 |params|^2``, ``kl_m`` analytic (SGVB-B,
        equation 7) or ``1/L sum_l log q(z_ml|x_m) - log p(z_ml)`` (SGVB-A, equation 6),
        ``beta = kl_weight * min(1, t / kl_warmup)`` at step ``t`` (``kl_weight`` when ``kl_warmup`` is 0).

        Or AEVB ascends the importance-weighted bound, ``1/M sum_m log 1/L sum_l w_ml``, ``w_ml`` being
        ``p(x_m, z_ml) / q(z_ml|x_m)``, with the same draws. Its ``log_px`` is the mean of log p(x|z) under the
        normalised weights ``w_ml / sum_l w_ml``, and ``kl_m`` what it exceeds the bound by.

        Of wake-sleep, theta ascends ``1/(L M) sum log p(x_m|z_ml)`` with the same draws, and phi ``1/M sum log q(z|x)``
        at as many dreams, ``z ~ N(0, I)`` of stream DREAM_LATENT and ``x ~ p(x|z)`` as `likelihood_sample` draws it.
        Both gradients are taken at the same parameters, and the weight prior is the same. The bound that is reported,
        and looked at, is the one of SGVB-B.

        It returns before the end, parameters and state as the last complete step left them, when the bound of a
        minibatch is not finite (its ``stats`` row is filled, its update is not made), and raises KeyboardInterrupt
        likewise when a signal handler asks for it.

        Parameters
        ----------
        params : ndarray of shape (P,)
            Updated.
        state : ndarray of shape (n_slots, P)
            Updated.
        optimizer : Optimizer
        data, scale, binarize, seed
            As in `gather`.
        order : ndarray of shape (T, M), int64
            Row numbers of each step's minibatch. M at most the plan's ``rows``; L is the plan's ``draws``.
        step : int
            Number of the first step, counted from 0 over the whole training.
        estimator : {"sgvb-b", "sgvb-a", "iwae", "wake-sleep"}
        kl_weight : float
        kl_warmup : int
            1 and 0 with "iwae" and "wake-sleep", which have no KL divergence to weigh: anything else is a ValueError.
        decay : float
            As in `update`.
        stats : ndarray of shape (T, 2), float64
            Output, per completed step: mean over the minibatch of log p(x|z) and of ``kl_m`` (unweighted).
        done : ndarray of shape (1,), int64
            Output: completed steps, also when an exception is raised.
        """


class Engine(Protocol):
    """A backend: a name, its precisions, plans, and the noise by itself.

    One whose calls take long beside their arithmetic names, as ``INFERENCE_VALUES``, how many values of the decoder's
    output are to be worked on at once, if that is not what a processor's cache holds.
    """

    NAME: str
    PRECISIONS: tuple[str, ...]

    def plan(self, network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> Plan:
        """Allocate a workspace.

        Parameters
        ----------
        network : Network
        rows : int
            Largest M.
        draws : int
            Largest L; operations on z take up to ``rows * draws`` rows.
        precision : {"fp32", ...}
            One of ``PRECISIONS``.
        n_threads : int
            At least 1.
        """

    def philox(self, *, counter: Array, key: Array, out: Array) -> None:
        """Philox4x32-10 blocks: counter and out of shape (n, 4), key of shape (2,), uint32."""

    def normal(self, *, seed: int, step: int, stream: int, out: Array) -> None:
        """Fill a float32 array of any shape with `fastvae.rng.normal`'s numbers, element = flat index."""
