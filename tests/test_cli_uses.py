"""The commands that put a trained model to use: denoise, impute, manifold, traverse, interpolate."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import QUICK, Result, assert_error

from fastvae import VAE
from fastvae.data import Dataset, load
from fastvae.kernels import Array
from fastvae.report import comparison_grid, grid
from fastvae.uses import corrupt

LOWER = np.arange(64) >= 32


@pytest.fixture(scope="module")
def digits() -> Dataset:
    test = load("digits").test
    assert test is not None
    return test


@pytest.fixture
def table(tmp_path: Path, fastvae: Callable[..., Result]) -> Path:
    """A run on rows that are no images and not in [0, 1], with a gap in the data."""
    rows = np.random.default_rng(0).normal(size=(300, 4)) * 3
    np.save(tmp_path / "rows.npy", rows)
    options = ("--data", tmp_path / "rows.npy", "--likelihood", "gaussian", "--mean", "identity", *QUICK)
    assert fastvae("train", *options, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def levels(path: Path) -> Array:
    """Grey levels of a PNG that `fastvae.report.write_png` wrote."""
    content = path.read_bytes()
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    start = content.index(b"IDAT") + 4
    lines = np.frombuffer(zlib.decompressobj().decompress(content[start:]), np.uint8).reshape(height, width + 1)
    return lines[:, 1:]


def as_levels(picture: Array) -> Array:
    values: Array = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return values


def test_denoise_shows_originals_corrupted_and_denoised_rows(
    fastvae: Callable[..., Result], run_folder: Path, digits: Dataset, tmp_path: Path
) -> None:
    model, clean = VAE.load(run_folder), digits.as_seen()
    options = ("denoise", run_folder, "--kind", "salt-pepper", "--amount", 0.3, "--seed", 4)

    values = fastvae(*options, "--out", tmp_path / "x.npy", "--json").json()
    picture = fastvae(*options, "--out", tmp_path / "x.png", "-n", 13)

    noisy = corrupt(clean, kind="salt-pepper", amount=0.3, random_state=4)
    comp = model.denoise(noisy, clean=clean)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), comp.rows)
    assert values == {
        "out": str(tmp_path / "x.npy"),
        "n_rows": 297,
        "kind": "salt-pepper",
        "amount": 0.3,
        "seed": 4,
        **comp.summary(),
    }
    ref = comparison_grid([clean[:13], noisy[:13], comp.rows[:13]], (8, 8))
    np.testing.assert_array_equal(levels(tmp_path / "x.png"), as_levels(ref))
    assert (picture.code, picture.err) == (0, "")
    assert picture.out.splitlines()[-1].split() == ["out", str(tmp_path / "x.png")]
    assert " dB" in picture.out


def test_impute_shows_what_was_missing(
    fastvae: Callable[..., Result], run_folder: Path, digits: Dataset, tmp_path: Path
) -> None:
    model, rows = VAE.load(run_folder), digits.as_seen()
    options = ("impute", run_folder, "--n-iterations", 12, "--n-burn-in", 3, "--n-chains", 2)

    values = fastvae(*options, "--out", tmp_path / "x.npy", "--json").json()
    picture = fastvae(*options, "--out", tmp_path / "x.png", "-n", 5)

    comp = model.impute(digits, LOWER, n_iterations=12, n_burn_in=3, n_chains=2)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), comp.rows)
    assert values == {
        "out": str(tmp_path / "x.npy"),
        "n_rows": 297,
        "missing": 0.5,
        "n_iterations": 12,
        "n_burn_in": 3,
        "n_chains": 2,
        "seed": model.seed_,
        "acceptance": comp.acceptance,
        "rmse": pytest.approx(float(np.sqrt(np.square(comp.rows - rows)[:, LOWER].mean()))),
    }
    holes = np.where(LOWER, 0.5, rows)
    np.testing.assert_array_equal(
        levels(tmp_path / "x.png"), as_levels(comparison_grid([rows[:5], holes[:5], comp.rows[:5]], (8, 8)))
    )
    assert picture.out.splitlines()[-1].split() == ["out", str(tmp_path / "x.png")]


@pytest.mark.parametrize(
    ("side", "part"), [("lower", np.s_[4:]), ("upper", np.s_[:4]), ("left", np.s_[:, :4]), ("right", np.s_[:, 4:])]
)
def test_impute_leaves_out_the_half_that_is_named(
    fastvae: Callable[..., Result], run_folder: Path, digits: Dataset, tmp_path: Path, side: str, part: Any
) -> None:
    out = tmp_path / "x.npy"
    fastvae("impute", run_folder, "--missing", side, "--n-iterations", 11, "--out", out, "-n", 20)

    observed = np.ones((8, 8), bool)
    observed[part] = False
    same = (np.load(out) == digits.as_seen()[:20]).all(0).reshape(8, 8)
    np.testing.assert_array_equal(same, observed)


def test_impute_takes_a_mask_and_gaps_in_the_data(fastvae: Callable[..., Result], table: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(50, 4))
    masks = np.random.default_rng(2).random((50, 4)) < 0.4
    np.save(tmp_path / "gaps.npy", np.where(masks, np.nan, rows))
    np.save(tmp_path / "mask.npy", masks)
    np.save(tmp_path / "column.npy", np.array([False, True, False, False]))
    data = ("--data", tmp_path / "gaps.npy", "--split", "train", "--test-fraction", 0, "--out", tmp_path / "x.npy")

    values = fastvae("impute", table, "--mask", tmp_path / "mask.npy", *data, "--json").json()

    comp = np.load(tmp_path / "x.npy")
    assert np.isfinite(comp).all()
    np.testing.assert_array_equal(comp[~masks], rows.astype(np.float32)[~masks])
    assert values["rmse"] is None
    assert values["missing"] == pytest.approx(masks.mean())
    assert fastvae("impute", table, "--mask", tmp_path / "mask.npy", *data, "-n", 7).code == 0
    assert np.load(tmp_path / "x.npy").shape == (7, 4)
    assert_error(fastvae("impute", table, "--mask", tmp_path / "column.npy", *data), 1, "not a finite float32 number")


def test_a_mask_may_have_the_shape_of_an_image(
    fastvae: Callable[..., Result], run_folder: Path, digits: Dataset, tmp_path: Path
) -> None:
    np.save(tmp_path / "mask.npy", LOWER.reshape(8, 8))
    options = ("--n-iterations", 11, "-n", 3)

    fastvae("impute", run_folder, "--mask", tmp_path / "mask.npy", *options, "--out", tmp_path / "x.npy")
    fastvae("impute", run_folder, "--mask", tmp_path / "mask.npy", *options, "--out", tmp_path / "x.png")

    ref = VAE.load(run_folder).impute(digits.select(slice(3)), LOWER, n_iterations=11).rows
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ref)
    holes = np.where(LOWER, 0.5, digits.as_seen()[:3])
    np.testing.assert_array_equal(levels(tmp_path / "x.png"), as_levels(comparison_grid([holes, ref], (8, 8))))


def test_places_of_the_latent_space_are_written(
    fastvae: Callable[..., Result], run_folder: Path, digits: Dataset, tmp_path: Path
) -> None:
    model = VAE.load(run_folder)
    row = digits.select(slice(7, 8))
    moves = model.traverse(row, dimensions=[1], n_steps=4, span=2)
    for command, options, ref, columns in (
        ("manifold", ("-n", 6), model.manifold(6), 6),
        ("traverse", (), model.traverse(), 11),
        ("traverse", ("--row", 7, "--dimension", 1, "--n-steps", 4, "--span", 2), moves, 4),
        ("interpolate", ("--rows", 7, 2), model.interpolate(row, digits.select([2])), 10),
    ):
        for suffix in (".npy", ".png"):
            out = tmp_path / f"x{suffix}"
            result = fastvae(command, run_folder, *options, "--out", out)
            assert (result.code, result.out, result.err) == (0, f"{out}\n", "")
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ref)
        images = ref.reshape(-1, 64)
        np.testing.assert_array_equal(levels(tmp_path / "x.png"), as_levels(grid(images, (8, 8), columns=columns)))
        values = fastvae(command, run_folder, *options, "--out", tmp_path / "x.npy", "--json").json()
        assert values == {"out": str(tmp_path / "x.npy"), "n_rows": len(images)}


@pytest.mark.parametrize("command", ["denoise", "impute", "manifold", "traverse", "interpolate"])
def test_rows_that_are_no_images_have_no_pictures(
    fastvae: Callable[..., Result], table: Path, tmp_path: Path, command: str
) -> None:
    assert_error(fastvae(command, table, "--out", tmp_path / "x.png"), 1, "the model's data are no images")
    if command != "impute":
        assert fastvae(command, table, "--out", tmp_path / "x.npy").code == 0
    else:
        result = fastvae(command, table, "--missing", "upper", "--out", tmp_path / "x.npy")
        assert_error(result, 1, "are no images, so they have no upper half; name what is missing with --mask")


def test_errors_are_one_line(fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros(63, bool))
    np.save(tmp_path / "grey.npy", np.zeros(64))
    (tmp_path / "text.npy").write_text("no array")
    wide = tmp_path / "wide"
    fastvae("train", *QUICK, "--latent-dim", 3, "--out", wide)
    out = ("--out", tmp_path / "x.npy")
    for code, text, args in (
        (1, "of 2 latent dimensions, this model has 3; train one with --latent-dim 2", ("manifold", wide)),
        (1, "mask must be boolean and of shape (297, 64)", ("impute", run_folder, "--mask", tmp_path / "short.npy")),
        (1, "got float64 of shape (64,)", ("impute", run_folder, "--mask", tmp_path / "grey.npy")),
        (1, "cannot be read as a .npy file", ("impute", run_folder, "--mask", tmp_path / "text.npy")),
        (1, "none.npy", ("impute", run_folder, "--mask", tmp_path / "none.npy")),
        (2, "exclude each other", ("impute", run_folder, "--missing", "left", "--mask", tmp_path / "short.npy")),
        (2, "leaves none of --n-iterations 9", ("impute", run_folder, "--n-iterations", 9)),
        (2, "'fog' is not one of", ("denoise", run_folder, "--kind", "fog")),
        (1, "amount must be a probability in [0, 1]", ("denoise", run_folder, "--kind", "mask", "--amount", 2)),
        (1, "dimensions must be an integer from 0 to 1, got 2", ("traverse", run_folder, "--dimension", 2)),
        (1, "span must be a positive finite number", ("traverse", run_folder, "--span", "nan")),
        (1, "digits has no row 297; take one from 0 to 296", ("traverse", run_folder, "--row", 297)),
        (1, "digits has no row 500", ("interpolate", run_folder, "--rows", 0, 500)),
        (2, "must end in .png or .npy", ("manifold", run_folder, "--out", "x.jpg")),
    ):
        assert_error(fastvae(*args, *(() if "--out" in args else out)), code, text)
