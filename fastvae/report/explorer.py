"""The interactive explorer: controls, and the decoder that the page itself computes with."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae.kernels import Array
from fastvae.report.charts import Frame, frame_svg, number, scatter_svg
from fastvae.report.pictures import encode_png

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["MAX_PAGE_BYTES", "Start", "data_uri", "explorer", "latent_frame", "left_out", "script_json"]

# A page with an explorer is no larger.
MAX_PAGE_BYTES = 16_000_000
MAX_SLIDERS = 20


@dataclass(frozen=True, eq=False)
class Start:
    """A row that the explorer can start from.

    Attributes
    ----------
    name : str
    code : ndarray of shape (J,)
        Its posterior mean.
    picture : ndarray of shape (height, width), or None
        Its grey levels in [0, 1] if it is an image.
    """

    name: str
    code: Array
    picture: Array | None


def left_out(model: Model, *, room: int) -> str | None:
    """Say in a sentence why a model's page has no explorer; None when it has.

    Parameters
    ----------
    model : Model
    room : int
        Bytes that the rest of the page leaves to it.
    """
    network = model.network_
    if network.latent_dim > MAX_SLIDERS:
        return f"It has sliders for up to {MAX_SLIDERS} latent dimensions, and this model has {network.latent_dim:,}."
    n_bytes = sum(4 * weight.size for weight in _decoder(model)) * 4 // 3
    if n_bytes > room:
        return (
            f"The decoder would take {n_bytes / 1e6:,.1f} MB of this page, which is kept below "
            f"{MAX_PAGE_BYTES / 1e6:.0f} MB."
        )
    return None


def latent_frame(codes: Array | None) -> Frame:
    """Return a square plane of two latent dimensions that holds the codes and three deviations of the prior."""
    side = 3.0 if codes is None or not len(codes) else max(3.0, float(np.abs(codes).max()) * 1.04)
    return Frame((-side, side), (-side, side), width=400, height=400, left=36, right=10, top=14, bottom=34)


def explorer(
    model: Model,
    *,
    image_shape: tuple[int, int] | None,
    value_range: tuple[float, float],
    kl: Array | None,
    codes: Array | None,
    labels: Array | None,
    starts: Sequence[Start],
) -> str:
    """Build the explorer.

    Parameters
    ----------
    model : Model
        One for which `left_out` returns None.
    image_shape : tuple of int, or None
        (height, width) if the rows are images.
    value_range : tuple of float
        Values that are black and white, or the lowest and highest of a profile.
    kl : ndarray of shape (J,), or None
        Nats of each latent dimension: the sliders stand in falling order.
    codes : ndarray of shape (n, J), or None
        Posterior means, shown in the plane of two latent dimensions.
    labels : ndarray of shape (n,), or None
    starts : sequence of Start

    Returns
    -------
    str
        HTML with scripts of data; explorer.js makes it live.
    """
    network = model.network_
    reach = max(3.0, *(float(np.abs(start.code).max()) for start in starts)) if starts else 3.0
    reach = float(np.ceil(reach * 10) / 10)
    is_plane = network.latent_dim == 2
    order = np.arange(network.latent_dim) if kl is None or is_plane else np.argsort(-kl, kind="stable")
    sliders = "".join(_slider(int(j), None if kl is None else float(kl[j]), reach) for j in order)
    spec = {
        "dims": [*network.decoder_dims[:-1], network.data_dim],
        "activation": network.activation,
        "mean": "sigmoid" if network.likelihood == "bernoulli" else network.mean,
        "range": list(value_range),
        "imageShape": image_shape,
        "starts": [[float(v) for v in start.code] for start in starts],
    }
    weights = b"".join(np.ascontiguousarray(weight, "<f4").tobytes() for weight in _decoder(model))
    return (
        f"<div class='explorer{' with-pad' if is_plane else ''}' id=explorer-panel>"
        f"{_screen(network.data_dim, image_shape, value_range)}"
        f"{_pad(codes, labels) if is_plane else ''}"
        f"<div class=controls><div class=buttons><button type=button id=explorer-random>Draw from the prior</button>"
        "<button type=button id=explorer-reset>Reset to 0</button></div>"
        f"<div class=sliders>{sliders}</div>{_starts(starts)}</div></div>"
        "<noscript><p class=note>The explorer needs JavaScript; everything else on this page does not.</p></noscript>"
        f"<script type=application/json id=explorer-spec>{script_json(spec)}</script>"
        f"<script type=text/plain id=explorer-weights>{base64.b64encode(weights).decode()}</script>"
    )


def data_uri(picture: Array) -> str:
    """Return a picture as the address of an img element, see `fastvae.report.pictures.encode_png`."""
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()


def script_json(values: Any) -> str:
    """Return JSON that can stand in a script element."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _decoder(model: Model) -> list[Array]:
    """Return W, b of each layer of the decoder's mean: the log variance of a Gaussian is not shown."""
    network, params = model.network_, model.params_
    *hidden, last = network.layout.decoder
    weights = [part for layer in hidden for part in (layer.weight(params), layer.bias(params))]
    return [*weights, last.weight(params)[:, : network.data_dim], last.bias(params)[: network.data_dim]]


def _slider(j: int, kl: float | None, reach: float) -> str:
    nats = "" if kl is None else f"<small>{number(kl)} nats</small>"
    return (
        f"<label class=slider><span class=name>z<sub>{j}</sub>{nats}</span><input type=range data-dim={j} "
        f"min={-reach:g} max={reach:g} step=0.01 value=0 aria-label='latent dimension {j}'>"
        "<output>0.00</output></label>"
    )


def _screen(data_dim: int, image_shape: tuple[int, int] | None, value_range: tuple[float, float]) -> str:
    if image_shape is not None:
        height, width = image_shape
        return (
            f"<div class=screen><canvas id=explorer-picture width={width} height={height} role=img "
            "aria-label='What the decoder makes of the chosen z'></canvas></div>"
        )
    frame = Frame((-0.5, data_dim - 0.5), value_range, height=260)
    style = "line s0" if data_dim > 40 else "bars"
    return (
        f"<div class=screen><svg id=explorer-profile viewBox='0 0 {frame.width:g} {frame.height:g}' role=img "
        f"aria-label='What the decoder makes of the chosen z, by column' {frame.data()}>"
        f"{frame_svg(frame, x_label='column', x_is_whole=True)}<path class='profile {style}'></path></svg></div>"
    )


def _pad(codes: Array | None, labels: Array | None) -> str:
    frame = latent_frame(codes)
    inside = scatter_svg(
        np.empty((0, 2)) if codes is None else codes, labels, frame, x_label="z<tspan dy=3>0</tspan>", y_label=""
    )
    return (
        f"<figure class=pad><svg id=explorer-pad viewBox='0 0 {frame.width:g} {frame.height:g}' tabindex=0 "
        "role=application aria-label='Plane of both latent dimensions; the arrow keys move, with Shift in large steps' "
        f"{frame.data()}>{inside}<text class=label x=4 y=10>z<tspan dy=3>1</tspan></text>"
        "<circle class=handle r=8></circle></svg><figcaption>Drag the handle, or use the arrow keys."
        f"{'' if codes is None else ' The points are posterior means.'}</figcaption></figure>"
    )


def _starts(starts: Sequence[Start]) -> str:
    if not starts:
        return ""
    buttons = "".join(
        f"<button type=button class=start data-start={i} aria-label='Start from {escape(start.name)}' "
        f"title='{escape(start.name)}'>"
        + (escape(start.name) if start.picture is None else f"<img alt='' src='{data_uri(start.picture)}'>")
        + "</button>"
        for i, start in enumerate(starts)
    )
    return f"<div class=starts><span class=unit>Start from a row</span>{buttons}</div>"
