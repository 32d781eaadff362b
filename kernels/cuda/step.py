"""One training step as launches: every step's are the same, see `train_steps`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastvae.kernels.cuda import dense, phases, sample
from fastvae.kernels.cuda.dense import Gradient, Layer
from fastvae.kernels.cuda.gather import Dataset, gather
from fastvae.kernels.cuda.latent import Dream, Latent, dream_backward, dream_forward, latent_backward, latent_forward
from fastvae.kernels.cuda.launch import NOWHERE, Launch, Matrix, Work
from fastvae.kernels.cuda.likelihood import Importance, Statistics, likelihood, likelihood_sample, weigh
from fastvae.kernels.cuda.workspace import Workspace, backward, inputs
from fastvae.network import Network

__all__ = ["Dreams", "Step", "Tables"]


class Tables(NamedTuple):
    """Addresses of what the steps of one call read and write."""

    loop: int
    steps: int
    order: int
    stats: int


class Dreams(NamedTuple):
    """Where wake-sleep has its dreams while the wake phase uses the workspace."""

    z: Matrix
    x: Matrix


@dataclass(frozen=True)
class Step:
    """One step of Algorithm 1, with its bound estimated in one of three ways, or of wake-sleep; M is `rows`.

    Where they fit, the phases of ``phases.cu`` and ``sample.cu`` stand for several operations at once: a step of the
    paper's network is six launches; eleven of the importance-weighted bound; and thirteen of wake-sleep.
    """

    network: Network
    work: Workspace
    slots: Sequence[Sequence[Matrix]]  # of the optimizer's state, laid out as the layers' w
    terms: int  # address of log p(x|z) in parts
    tables: Tables
    precision: str
    draws: int
    data: Dataset
    index: int  # address of the rows in `data`; tables.order has their numbers
    rows: int
    n_slots: int
    scale: float
    binarize: str
    seed: int
    shared_bytes: int  # the most that a block may have
    sampled: bool  # log q(z|x) - log p(z) of each draw in place of the KL divergence
    importance: Importance | None  # of the importance-weighted bound
    dreams: Dreams | None  # of wake-sleep

    def launches(self) -> Iterator[Work]:
        """Gather, encode, sample, decode, compare; back again; and update.

        Of wake-sleep a dream comes before it all, since it depends on parameters and noise alone; and the way back
        through the encoder is that of the dream.
        """
        encoder, decoder, all_rows = self.work.encoder, self.work.decoder, self.draws * self.rows
        # how many layers the first launch does, and how many of the decoder the launch does that samples
        fits = phases.first_layer_fits(self.data, encoder[0], self.rows, self.precision, self.shared_bytes)
        first = int(len(encoder) > 1 and fits)
        fits = sample.sample_fits(encoder, decoder, self.rows, self.draws, self.shared_bytes)
        together = int(not self.importance and fits)
        sides = {"heads": encoder[-1], "below": encoder[-2], "above": decoder[0]} if together else {}

        if self.dreams:
            yield from self._dream(self.dreams)
        yield self._first_layer() if first else self._gather()
        yield from self._forward(encoder[first:-1], inputs(encoder, self.work.x)[first:], self.rows)
        if together:
            yield sample.sample_rows(self._sample, activation=self.network.activation, **sides)
        else:
            yield from self._forward(encoder[-1:], inputs(encoder, self.work.x)[-1:], self.rows)
            yield latent_forward(self._sample)
        yield from self._forward(decoder[together:-1], inputs(decoder, self.work.z)[together:], all_rows)
        yield from self._compare()
        if self.importance:
            yield self._weigh(self.importance, parts=self._parts, dout=decoder[-1].dy)

        yield self._output_backward(self.network.latent_dim if together else 1)
        yield from backward(decoder[:-1], all_rows, activation=self.network.activation, **self._plain)
        rest = encoder
        if self.dreams:
            yield from self._forward(encoder, inputs(encoder, self.dreams.x), self.rows)
            yield dream_backward(self._dream_of(self.dreams))
        elif together:
            yield sample.sample_backward(self._sample, activation=self.network.activation, **sides)
            rest = encoder[:-1]
        else:
            if len(decoder) > 1:
                yield dense.input_gradient(decoder[0], self.work.dz, all_rows, **self._plain)
            yield latent_backward(self._sample)
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
            sampled=self.sampled,
            weight=self.importance.weights if self.importance else 0,
        )

    def _dream(self, dreams: Dreams) -> Iterator[Work]:
        """Draw z, decode it, and draw x."""
        decoder = self.work.decoder
        yield dream_forward(self._dream_of(dreams))
        yield from self._forward(decoder, inputs(decoder, dreams.z), self.rows)
        yield self._dreamt(dreams)

    def _dream_of(self, dreams: Dreams) -> Dream:
        latent = self._sample
        return Dream(
            z=dreams.z,
            mu=latent.mu,
            logvar=latent.logvar,
            dmu=latent.dmu,
            dlogvar=latent.dlogvar,
            rows=self.rows,
            latent_dim=self.network.latent_dim,
            seed=self.seed,
            loop=self.tables.loop,
        )

    def _dreamt(self, dreams: Dreams) -> Launch:
        out, loop = self.work.decoder[-1].y, self.tables.loop
        return likelihood_sample(self.network, out=out, x=dreams.x, rows=self.rows, seed=self.seed, loop=loop)

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
            precision=self.precision,
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
        shared: dict[str, Any] = {"x": work.x, "x_rows": self.rows, "rows": all_rows}
        shared["scale"] = 1.0 if self.importance else 1 / all_rows
        shared |= {"log_px": self.terms, "loop": self.tables.loop}
        if phases.output_layer_fits(self.network):
            yield phases.output_layer(self.network, layer, h=h, precision=self.precision, **shared)
        else:
            yield from self._forward([layer], [h], all_rows)
            yield likelihood(self.network, out=layer.y, dout=layer.dy, **shared)

    def _output_backward(self, kl_parts: int) -> Launch:
        """Gradient below the decoder's heads, and the statistics."""
        work, all_rows = self.work, self.draws * self.rows
        below = work.decoder[-2] if len(work.decoder) > 1 else None
        return phases.output_backward(
            work.decoder[-1],
            below.dy if below else work.dz,
            all_rows,
            self._statistics(self._parts * all_rows, kl_parts),
            h=below.y if below else NOWHERE,
            activation=self.network.activation,
            precision=self.precision,
        )

    @property
    def _parts(self) -> int:
        """Of each row's log p(x|z)."""
        if not phases.output_layer_fits(self.network):
            return 1
        return phases.output_tiles(self.network, self.draws * self.rows, self.precision)

    def _weigh(self, importance: Importance, *, parts: int, dout: Matrix) -> Launch:
        sizes = {"draws": self.draws, "rows": self.rows, "columns": self.network.decoder_dims[-1], "parts": parts}
        places = {"log_px": self.terms, "kl": self.work.kl, "loop": self.tables.loop}
        return weigh(importance, dout=dout, **sizes, **places)

    def _statistics(self, terms: int, kl_parts: int = 1) -> Statistics:
        all_rows, kl_rows = self.draws * self.rows, self.draws * self.rows if self.sampled else self.rows
        kl_terms, log_px, kl = kl_parts * kl_rows, self.terms, self.work.kl
        if self.importance:
            log_px, kl = self.importance.means, self.importance.excesses
            terms = all_rows = kl_terms = kl_rows = self.rows
        return Statistics(
            log_px=log_px,
            kl=kl,
            stats=self.tables.stats,
            steps=self.tables.steps,
            terms=terms,
            all_rows=all_rows,
            kl_terms=kl_terms,
            kl_rows=kl_rows,
            kl_is_new=int(self.importance is not None),
            loop=self.tables.loop,
        )

    def _gradients(self) -> Iterator[Gradient]:
        """The decoder's first, whose products need not wait for the launch before, which is the encoder's."""
        work = self.work
        x = self.dreams.x if self.dreams else work.x
        encoder = zip(work.encoder, inputs(work.encoder, x), strict=True)
        decoder = zip(work.decoder, inputs(work.decoder, work.z), strict=True)
        sides = [(*pair, self.rows, False) for pair in encoder]
        sides += [(*pair, self.draws * self.rows, True) for pair in decoder]
        for (layer, x, rows, early), s0, s1 in reversed(list(zip(sides, *self.slots, strict=True))):
            yield Gradient(layer, x, rows, state=(s0.p, s1.p if self.n_slots > 1 else 0), early=early)
