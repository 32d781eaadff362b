"""Philox words bit for bit, normals within a few ulp, disjoint streams, and the minibatch order."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest

from fastvae import backends, rng
from fastvae.kernels import Array, Engine
from fastvae.rng import Stream

# Random123's known-answer tests of philox4x32-10: counter, key, block
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
KEYS = [(0, 0, 0), (1, 0, 5), (2**64 - 1, 2**64 - 1, 6), (2**63 + 12345, 2**32 + 7, 2), (77, 2**32 - 1, 1)]


def parse(words: str) -> Array:
    return np.array([int(word, 16) for word in words.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_known_answers_of_an_engine(engine: Engine, counter: str, key: str, block: str) -> None:
    out = np.empty((3, 4), np.uint32)
    engine.philox(counter=np.tile(parse(counter), (3, 1)), key=parse(key), out=out)
    np.testing.assert_array_equal(out, np.tile(parse(block), (3, 1)))


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_known_answers_of_the_package_and_the_loops(counter: str, key: str, block: str) -> None:
    np.testing.assert_array_equal(rng.philox(parse(counter)[None], parse(key))[0], parse(block))
    assert naive.philox(tuple(parse(counter).tolist()), tuple(parse(key).tolist())) == tuple(parse(block).tolist())


@pytest.mark.parametrize("count", [0, 1, 5, 8, 15, 16, 17, 33, 1000])
def test_blocks_equal_the_packages(engine: Engine, count: int) -> None:
    draw = np.random.default_rng(count)
    counter = draw.integers(0, 2**32, (count, 4), dtype=np.uint32)
    key = draw.integers(0, 2**32, 2, dtype=np.uint32)
    out = np.empty_like(counter)
    engine.philox(counter=counter, key=key, out=out)
    np.testing.assert_array_equal(out, rng.philox(counter, key))


@pytest.mark.parametrize(("seed", "step", "stream"), KEYS)
def test_package_equals_the_loops(seed: int, step: int, stream: int) -> None:
    key = {"seed": seed, "step": step, "stream": stream}
    np.testing.assert_array_equal(rng.words(11, **key), [naive.word(i, **key) for i in range(11)])
    np.testing.assert_array_equal(rng.uniform(**key, shape=(11,)), [naive.uniform(i, **key) for i in range(11)])
    expected = [naive.normal(i, **key) for i in range(11)]
    np.testing.assert_allclose(rng.normal(**key, shape=(11,), dtype=np.float64), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (7,), (16,), (31,), (33,), (5, 7), (2, 3, 11)])
@pytest.mark.parametrize(("seed", "step", "stream"), KEYS)
def test_normals_of_an_engine_are_the_streams(
    engine: Engine, seed: int, step: int, stream: int, shape: tuple[int, ...]
) -> None:
    """Element = flat index, whatever the shape, for the largest keys too; no entry is left out."""
    out = np.full(shape, np.nan, np.float32)
    engine.normal(seed=seed, step=step, stream=stream, out=out)
    expected = [naive.normal(i, seed=seed, step=step, stream=stream) for i in range(out.size)]
    np.testing.assert_allclose(out.reshape(-1), expected, rtol=5e-7, atol=0)


def test_normals_within_four_ulp_at_every_word(engine: Engine) -> None:
    """Over two million words, among them u within 2^-20 of 0 and of 1, on both the radius and the angle."""
    key = {"seed": 11, "step": 3, "stream": Stream.LATENT}
    count = 2**21
    u = rng.uniform(**key, shape=(count // 2, 2))
    for place in (0, 1):
        assert u[:, place].min() < 2**-20, "no word near 0 among these"
        assert u[:, place].max() > 1 - 2**-20, "no word near 1 among these"
    out = np.empty(count, np.float32)
    engine.normal(**key, out=out)
    expected = rng.normal(**key, shape=(count,), dtype=np.float64)
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    error = np.abs(out - expected) / ulp
    worst = int(error.argmax())
    assert error[worst] <= 4, f"{error[worst]:.1f} ulp at element {worst}: {out[worst]} for {expected[worst]}"


def test_moments_of_a_million_normals(engine: Engine) -> None:
    """Mean, variance, skewness, kurtosis, tails and neighbours within five standard errors."""
    n = 10**6
    out = np.empty(n, np.float32)
    engine.normal(seed=5, step=0, stream=Stream.EVALUATION, out=out)
    x = out.astype(np.float64)
    moments = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # power -> mean and variance of x^power
    for power, (mean, variance) in moments.items():
        assert abs((x**power).mean() - mean) < 5 * np.sqrt(variance / n), f"moment {power}"
    for lag in (1, 2, 3, 4):
        assert abs((x[:-lag] * x[lag:]).mean()) < 5 / np.sqrt(n), f"lag {lag}"
    for edge, share in ((-3.0, 0.0013498980), (-1.0, 0.1586552539), (0.5, 0.6914624613), (2.0, 0.9772498681)):
        assert abs((x < edge).mean() - share) < 5 * np.sqrt(share * (1 - share) / n), f"share below {edge}"


def test_uniform_lies_inside_the_open_interval() -> None:
    u = rng.uniform(seed=0, step=0, stream=Stream.BINARIZE, shape=(2**20,))
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / u.size)


def test_streams_are_disjoint() -> None:
    """No block is shared between streams, steps, or seeds."""
    blocks = [
        rng.words(4 * 512, seed=seed, step=step, stream=stream).reshape(-1, 4)
        for seed in (0, 1, 2**32)
        for step in (0, 1, 2**32)
        for stream in Stream
    ]
    together = np.concatenate(blocks)
    assert len(np.unique(together, axis=0)) == len(together)


def test_engines_keep_the_streams_apart(engine: Engine) -> None:
    draws = []
    for key in [{"seed": s, "step": t, "stream": v} for s in (0, 1, 2**32) for t in (0, 1, 2**32) for v in Stream]:
        draws.append(np.empty(4, np.float32))
        engine.normal(**key, out=draws[-1])
    assert len(np.unique(np.stack(draws), axis=0)) == len(draws)


@pytest.fixture
def native() -> Any:
    """The C++ engine with what it has beyond the contract."""
    if reason := backends.unavailable("cpp"):
        pytest.skip(reason)
    return backends.load("cpp")


@pytest.fixture(params=["numpy", "cpp"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way to the order of an epoch; it cannot take the other."""
    if request.param == "cpp":
        request.getfixturevalue("native")
        monkeypatch.setattr(np, "argsort", None)
    else:
        monkeypatch.setattr(backends, "unavailable", lambda name: f"{name} is not here")
    return str(request.param)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 10, 1000])
def test_epoch_order_is_a_permutation(way: str, n_rows: int) -> None:
    order = rng.epoch_order(n_rows, seed=4, epoch=2)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n_rows))


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 1, 3), (9, 2**32 + 1), (2**63 + 5, 2**64 - 1)])
def test_epoch_order_equals_the_loops(way: str, seed: int, epoch: int) -> None:
    assert rng.epoch_order(23, seed=seed, epoch=epoch).tolist() == naive.epoch_order(23, seed=seed, epoch=epoch)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 31, 32, 33, 100, 2047, 2048, 60000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 1, 2**64 - 1), (2**32, 2**33 + 7)])
def test_order_of_an_epoch_at_every_instruction_set(
    native: Any, monkeypatch: pytest.MonkeyPatch, n_rows: int, seed: int, epoch: int
) -> None:
    keys = rng.words(2 * n_rows, seed=seed, step=epoch, stream=Stream.ORDER).view(np.uint64)
    expected = np.argsort(keys, kind="stable")
    for level in native.isa_levels():
        monkeypatch.setenv("FASTVAE_SIMD_LEVEL", level)
        out = np.full(n_rows, -1)
        native.epoch_order(seed=seed, epoch=epoch, out=out)
        np.testing.assert_array_equal(out, expected, err_msg=level)


def _keys(kind: str, count: int) -> Array:
    draw = np.random.default_rng(count)
    keys = draw.integers(0, 2**64, count, dtype=np.uint64)
    return {
        "random": keys,
        "equal": np.full(count, keys[:1].sum()),
        "extremes": np.where(keys % 2 == 0, np.uint64(0), np.uint64(2**64 - 1)),
        "few": keys >> np.uint64(60) << np.uint64(60),  # 16 values that differ in the top bits,
        "low": keys >> np.uint64(60),  # in the lowest, which the radix passes do not read,
        "mixed": (keys >> np.uint64(62) << np.uint64(62)) | (keys & np.uint64(3)),  # and in both
        "falling": np.sort(keys)[::-1].copy(),
    }[kind]


@pytest.mark.parametrize("kind", ["random", "equal", "extremes", "few", "low", "mixed", "falling"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 63, 64, 65, 3000])
def test_the_engines_sort_keeps_rows_of_equal_keys_in_order(native: Any, count: int, kind: str) -> None:
    keys, out = _keys(kind, count), np.full(count, -1)
    native.stable_order(keys=keys, out=out)
    np.testing.assert_array_equal(out, np.argsort(keys, kind="stable"))


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.empty(3, np.int32), TypeError),
        ([0, 0, 0], TypeError),
        (np.empty((3, 1), np.int64), ValueError),
        (np.empty(6, np.int64)[::2], ValueError),
        (np.frombuffer(bytes(24), np.int64), ValueError),  # read-only
    ],
)
def test_the_engine_refuses_what_cannot_hold_an_order(native: Any, out: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="out must"):
        native.epoch_order(seed=0, epoch=0, out=out)
    with pytest.raises(error, match="out must"):
        native.stable_order(keys=np.zeros(3, np.uint64), out=out)


def test_epoch_order_does_without_an_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the C++ engine is told of it; the other backends train as without one."""
    expected = rng.epoch_order(50, seed=1, epoch=1)
    monkeypatch.setenv("FASTVAE_SIMD_LEVEL", "sse9")
    np.testing.assert_array_equal(rng.epoch_order(50, seed=1, epoch=1), expected)


def test_epoch_order_differs_by_epoch_and_seed() -> None:
    orders = [rng.epoch_order(50, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    np.testing.assert_array_equal(orders[4], rng.epoch_order(50, seed=1, epoch=1))


def test_epoch_order_favours_no_row() -> None:
    """The first of 10 rows over 2000 epochs: chi square with 9 degrees of freedom stays below its 99.99% point."""
    counts = np.bincount([rng.epoch_order(10, seed=3, epoch=epoch)[0] for epoch in range(2000)], minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2\^34"):
        rng.words(2**34 + 1, seed=0, step=0, stream=0)


@pytest.mark.parametrize("shape", [(3,), (2, 5)])
def test_several_steps_at_once_are_the_steps_one_by_one(shape: tuple[int, ...]) -> None:
    steps = np.array([[0, 2**63 + 12345, 7], [2**32, 2**32 - 1, 2**64 - 1]], np.uint64)
    for draw in (rng.uniform, rng.normal):
        comp = draw(seed=3, step=steps, stream=9, shape=shape)
        ref = [[draw(seed=3, step=int(step), stream=9, shape=shape) for step in row] for row in steps]
        np.testing.assert_array_equal(comp, ref)
