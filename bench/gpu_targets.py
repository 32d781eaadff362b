"""The targets of the CUDA engine, judged by what was measured in one run."""

from __future__ import annotations

from typing import Any

__all__ = ["TARGET_SHAPES", "judged", "with_ratios"]

# M, H
_PAPER, _BATCH, _WIDE = (100, 500), (4096, 500), (4096, 4096)
TARGET_SHAPES = (_PAPER, _BATCH, _WIDE)
_LARGE_PRODUCT = (8192, 8192, 8192)  # whose rate a share is of

Lines = list[dict[str, Any]]


def _is_ours(line: dict[str, Any]) -> bool:
    return str(line["who"]).startswith("fastvae")


def _best(lines: Lines, shape: tuple[int, int], precision: str, *, ours: bool) -> dict[str, Any] | None:
    """The quickest line of a size and a precision, of ours or of the peers."""
    rivals = [
        line
        for line in lines
        if _is_ours(line) == ours and (line["M"], line["H"], line["precision"]) == (*shape, precision)
    ]
    return min(rivals, key=lambda line: line["us_per_step"]["p50"], default=None)


def _ratio(lines: Lines, shape: tuple[int, int], precision: str) -> float | None:
    """The best peer's time over ours."""
    ours, peer = (_best(lines, shape, precision, ours=ours) for ours in (True, False))
    return float(peer["us_per_step"]["p50"] / ours["us_per_step"]["p50"]) if ours and peer else None


def with_ratios(lines: Lines) -> Lines:
    """Add to each line of ours by how much it is quicker than the best peer of the same size and precision."""
    added = []
    for line in lines:
        peer = _best(lines, (line["M"], line["H"]), line["precision"], ours=False)
        ratio = {}
        if _is_ours(line) and peer:
            ratio = {
                "best_peer": peer["who"],
                "best_peer_over_this": peer["us_per_step"]["p50"] / line["us_per_step"]["p50"],
            }
        added.append({**line, **ratio})
    return added


def judged(lines: Lines, constants: dict[str, Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    """Judge every target.

    Parameters
    ----------
    lines : list of dict
        Steps of everybody, as ``fastvae.bench.gpu`` writes them.
    constants : dict
        As `measure_constants` returns it.
    run : dict
        As `whole_run` returns it, or empty.

    Returns
    -------
    list of dict
        ``target``, ``figures`` in words, and ``verdict``: met, missed, or not measured.
    """
    step = _best(lines, _PAPER, "bf16", ours=True)
    us = step["us_per_step"]["p50"] if step else None
    wide, rate = _best(lines, _WIDE, "bf16", ours=True), _rate(constants)
    share = wide["tflops"] / rate if wide and rate else None
    return [
        *(
            _judge(
                f"M=100, H=500, {p}: at least 4 times the best peer", "times the best peer", _ratio(lines, _PAPER, p), 4
            )
            for p in ("bf16", "fp32")
        ),
        _judge("M=100, H=500, bf16: at most 25 us per step", "us", us, most=25),
        _whole_run(run),
        *(
            _judge(
                f"M=4096, H=500, {p}: at least 1.5 times the best peer",
                "times the best peer",
                _ratio(lines, _BATCH, p),
                1.5,
            )
            for p in ("bf16", "fp32")
        ),
        *(
            _judge(
                f"M=4096, H=4096, {p}: at least 1.1 times the best peer",
                "times the best peer",
                _ratio(lines, _WIDE, p),
                1.1,
            )
            for p in ("bf16", "fp32")
        ),
        _judge("M=4096, H=4096: at least 60 % of the measured bf16 product rate", "of it", share, 0.6),
    ]


def _whole_run(run: dict[str, Any]) -> dict[str, Any]:
    """Judge the run through the training loop; one that was cut at its own pace."""
    samples = run.get("samples")
    unit = "s" if samples is None or samples >= 1e8 else f"s at the pace of the first {samples:.2g}"
    seconds = run["seconds"] * max(1.0, 1e8 / samples) if samples else None
    return _judge("10^8 samples at M=100, bf16, through the training loop: at most 30 s", unit, seconds, most=30)


def _rate(constants: dict[str, Any]) -> float | None:
    """TFLOP/s of the large bf16 product."""
    products = constants.get("products_tflops")
    for line in products if isinstance(products, list) else ():
        if (line["m"], line["n"], line["k"]) == _LARGE_PRODUCT and line["precision"] == "bf16":
            return float(line["p50"])
    return None


def _judge(
    target: str, unit: str, value: float | None, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    if value is None:
        return {"target": target, "value": None, "figures": "–", "verdict": "not measured"}
    met = (least is None or value >= least) and (most is None or value <= most)
    return {"target": target, "value": value, "figures": f"{value:.3g} {unit}", "verdict": "met" if met else "missed"}
