"""Reports: what the pages say, what they show in a browser, and the figures of fastvae.plot."""

from __future__ import annotations

import csv
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser as browsers
import numpy as np
import pytest
from command_line import QUICK, Result, assert_error

from fastvae import VAE, plot
from fastvae.data import as_dataset
from fastvae.kernels import Array
from fastvae.network import ACTIVATIONS
from fastvae.report import comparison_grid, encode_png, grid
from fastvae.report import explorer as explorers
from fastvae.report.charts import Series, line_chart
from fastvae.report.comparison import ranking
from fastvae.report.page import write_subject
from fastvae.report.subject import Subject

SHAPE = (6, 5)
D = SHAPE[0] * SHAPE[1]
# Engine and page both add up float32 products, in another order.
TOLERANCE = 1e-4

needs_browser = pytest.mark.skipif(
    browsers.CHROMIUM is None or browsers.DRIVER is None,
    reason="no chromium or chromedriver here (Debian: apt-get install chromium chromium-driver)",
)


def rows(n_rows: int = 60, data_dim: int = D, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((n_rows, data_dim)).astype(np.float32)


def fitted(latent_dim: int = 2, data_dim: int = D, *, scatter: float = 1.0, **options: Any) -> VAE:
    """A small model with weights that make something of every z."""
    parameters: dict[str, Any] = {"hidden_dims": (16, 8), "n_epochs": 3, "batch_size": 10, "random_state": 0}
    model = VAE(latent_dim, **(parameters | options))
    model.fit(rows(data_dim=data_dim), eval_set=None if options.get("algorithm") else rows(20, data_dim, seed=1))
    model.params_[:] += scatter * np.random.default_rng(2).normal(size=model.params_.shape, scale=0.3)
    return model


def page_of(model: VAE, path: Path, **options: Any) -> str:
    model.report(path, rows(40, model.n_features_in_, seed=3), **options)
    return path.read_text("utf-8")


# What the pages say --------------------------------------------------------------------------------------------------


def test_a_page_has_everything_within(tmp_path: Path) -> None:
    text = page_of(fitted(), tmp_path / "run.html", y=np.arange(40) % 4, image_shape=SHAPE)

    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert set(re.findall(r"(?:src|href)=['\"]([^'\"]{1,5})", text)) <= {"data:", *(s[:5] for s in _anchors(text))}
    for section in ("explorer", "curves", "latents", "pictures", "configuration", "history"):
        assert f"<section id={section}>" in text
    names = re.findall(r"<[^>]* id=\"?([\w-]+)", text)
    assert len(set(names)) == len(names)
    assert text.count("<img ") == text.count(" alt='")
    assert 'name="viewport"' in text


def _anchors(text: str) -> list[str]:
    return re.findall(r"href='(#\w+)'", text)


def test_the_headline_is_the_bound_with_its_standard_error(tmp_path: Path) -> None:
    model = fitted()

    text = page_of(model, tmp_path / "run.html", image_shape=SHAPE)

    bound = model.evaluate(rows(40, seed=3)).summary()
    expected = f"<b>{bound['elbo']:,.2f} ±\u00a0{bound['elbo_standard_error']:,.2f}</b>".replace("-", "−")
    assert expected in text
    assert f"{bound['active_units']} of 2" in text


def test_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    labels = np.array(["<b>a</b>", "'&'"] * 20)

    text = page_of(fitted(), tmp_path / "run.html", y=labels, title="<script>alert(1)</script>", image_shape=SHAPE)

    assert "<script>alert" not in text
    assert "<b>a</b>" not in text
    assert "&lt;b&gt;a&lt;/b&gt;" in text


def test_a_file_name_that_is_no_text_has_a_page(tmp_path: Path) -> None:
    name = os.fsdecode(b"run \xff")
    assert "<h1>run ?</h1>" in page_of(fitted(), tmp_path / f"{name}.html")


def test_without_rows_a_page_says_so(tmp_path: Path) -> None:
    fitted().report(tmp_path / "run.html", image_shape=SHAPE)

    text = (tmp_path / "run.html").read_text("utf-8")
    assert "No reconstructions: no rows were given." in text
    assert "Samples" in text
    assert "id=explorer-panel>" in text


def test_rows_that_are_given_are_not_called_test_rows(tmp_path: Path) -> None:
    text = page_of(fitted(), tmp_path / "run.html", image_shape=SHAPE)

    assert "<dt>bound (ELBO) of" in text
    assert "Rows above" in text
    assert "test row" not in text.lower()


def test_the_kl_divergence_of_each_dimension_is_drawn_epoch_by_epoch(tmp_path: Path) -> None:
    model = fitted()
    kl = [[float(f"{3 - e / 10 + j:.4g}") for j in range(2)] for e in range(len(model.history_["epoch"]))]
    model.history_.update(kl_per_dimension=kl, remark=["as <text>"] * len(kl))

    text = page_of(model, tmp_path / "run.html", image_shape=SHAPE)

    chart = text[text.index("KL divergence by dimension, test") :].partition("</figure>")[0]
    assert f"z1 from {kl[0][1]:.2f} to {kl[-1][1]:.2f}; z0 from {kl[0][0]:.2f} to {kl[-1][0]:.2f}" in chart
    assert "as &lt;text&gt;" in text


def test_before_the_first_epoch_there_are_no_curves(tmp_path: Path) -> None:
    model = fitted(algorithm="mcem")
    model.history_.clear()

    text = page_of(model, tmp_path / "run.html", image_shape=SHAPE)

    assert "No epoch is complete yet." in text
    assert "training time</span></dd><dt>0 epochs" in text


@pytest.mark.parametrize("algorithm", ["mcem", "autoencoder", "wake-sleep", "full-vb"])
def test_every_algorithm_has_a_page(algorithm: str, tmp_path: Path) -> None:
    model = fitted(3, algorithm=algorithm, scatter=0.0)

    text = page_of(model, tmp_path / "run.html", image_shape=SHAPE)

    has_bound = algorithm in ("wake-sleep", "full-vb")
    assert ("standard error over rows" in text) == has_bound
    assert ("mcem trains no recognition model" in text) == (algorithm == "mcem")
    assert ("Posterior means of 40" in text) == (algorithm != "mcem")


@pytest.mark.parametrize("estimator", ["sgvb-b", "iwae"])
def test_a_curve_of_another_bound_is_named(estimator: str, tmp_path: Path) -> None:
    """In three charts, whose other curve is of equation 7."""
    text = page_of(fitted(estimator=estimator, n_draws=3), tmp_path / "run.html", image_shape=SHAPE)

    named = text.count("train, importance-weighted, 3 draws")
    assert (named >= 3) == (estimator == "iwae")
    assert (named == 0) == (estimator == "sgvb-b")


@pytest.mark.parametrize("latent_dim", [1, 20, 21])
def test_up_to_20_latent_dimensions_have_sliders(latent_dim: int, tmp_path: Path) -> None:
    text = page_of(fitted(latent_dim), tmp_path / "run.html", image_shape=SHAPE)

    assert text.count("<input type=range") == (latent_dim if latent_dim <= 20 else 0)
    assert ("The explorer is left out." in text) == (latent_dim > 20)


def test_a_page_stays_below_its_ceiling(tmp_path: Path) -> None:
    # Decoders of 10.8 and 11.6 million bytes, a third more as text.
    small, large = (VAE(2, hidden_dims=(4,), decoder_hidden_dims=(width,), n_epochs=1) for width in (2700, 2900))
    text = page_of(small.fit(rows(100, 1000)), tmp_path / "run.html", image_shape=(25, 40))
    assert 15_000_000 < len(text) < explorers.MAX_PAGE_BYTES
    assert "The explorer is left out." not in text

    text = page_of(large.fit(rows(100, 1000)), tmp_path / "run.html", image_shape=(25, 40))

    assert "The explorer is left out. The decoder would take 15.5 MB of this page, which is kept below 16 MB." in text
    assert "Posterior means of 40" in text
    assert len(text) < 3_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": np.zeros(3)}, "y must have one label for each of the 40 rows of X"),
        ({"image_shape": (4, 4)}, r"image_shape \(4, 4\) does not fit rows of 30 columns"),
        ({"image_shape": (-5, -6)}, "image_shape .* does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        page_of(fitted(), tmp_path / "run.html", **options)
    with pytest.raises(ValueError, match="31 features"):
        fitted().report(tmp_path / "run.html", rows(4, 31))
    assert not (tmp_path / "run.html").exists()


def test_lines_are_where_the_values_are() -> None:
    text = line_chart("Bound", [Series("test", [0, 5, 10], [-4.0, None, -2.0], "s0")], x_label="epoch", unit="nats")

    (path,) = re.findall(r"<path class='line s0 points' d='([^']*)'", text)  # alone, and so larger
    # The frame is 400 by 240 with margins 52, 12, 10, 36, and the range of y is widened by 4 % on both sides.
    top = 10 + 194 * 0.08 / 2.16
    assert path == f"M52.0 {204 - top + 10:.1f}h0M388.0 {top:.1f}h0"
    assert "test from −4.00 to −2.00" in text
    assert "<path class='line s0' d='M" in line_chart(
        "Bound", [Series("test", [0, 1], [-4.0, -2.0], "s0")], x_label="epoch", unit="nats"
    )


def test_values_that_are_not_finite_are_not_drawn(tmp_path: Path) -> None:
    model = fitted()
    model.history_["elbo_test"] = [-np.inf] * 3
    model.history_["kl"] = model.history_["kl_test"] = [np.nan] * 3

    text = page_of(model, tmp_path / "run.html")

    assert "Bound (ELBO)" in text
    assert "KL divergence of q(z|x)</b>" not in text
    (curves,) = re.findall("<section id=curves>(.*?)</section>", text, re.DOTALL)
    assert not re.search(r"\b(NaN|nan|inf|Infinity)\b", curves)


@pytest.mark.parametrize(("epochs", "ticks"), [([1], ["1"]), ([1, 2], ["1", "2"]), ([0, 0.5, 1], ["0.0", "0.2"])])
def test_epochs_are_counted_in_whole_numbers(epochs: list[float], ticks: list[str]) -> None:
    text = line_chart("Bound", [Series("test", epochs, [0.0] * len(epochs), "s0")], x_label="epoch", unit="nats")
    assert re.findall("text-anchor=middle>([^<]*)<", text)[:2] == ticks


def test_pngs_are_grey_and_see_through_where_there_is_nothing() -> None:
    picture = np.array([[0.0, 0.5, np.nan], [1.0, 2.0, -1.0]], np.float32)

    content = encode_png(picture)
    width, height, bits, kind = struct.unpack(">IIBB", content[16:26])
    size = struct.unpack(">I", content[33:37])[0]
    lines = np.frombuffer(zlib.decompress(content[41 : 41 + size]), np.uint8).reshape(height, -1)

    assert (width, height, bits, kind) == (3, 2, 8, 4)
    assert lines[:, 1:].reshape(2, 3, 2).tolist() == [
        [[0, 255], [128, 255], [255, 0]],
        [[255, 255], [255, 255], [0, 255]],
    ]
    assert encode_png(np.nan_to_num(picture))[25] == 0


# Several runs ---------------------------------------------------------------------------------------------------------


def subject(model: VAE, title: str, seed: int = 3) -> Subject:
    return Subject(model=model, title=title, dataset=as_dataset(rows(40, seed=seed)))


def test_only_a_lead_beyond_its_errors_is_marked() -> None:
    good, same, bad = fitted(scatter=0.0), fitted(scatter=0.0, n_threads=1), fitted(scatter=3.0)

    best, behind, told = ranking([subject(bad, "bad"), subject(good, "good")])
    assert best == 1
    difference = good.evaluate(rows(40, seed=3)).elbo - bad.evaluate(rows(40, seed=3)).elbo
    error = difference.std(ddof=1) / 40**0.5
    assert behind == [f"{difference.mean():,.2f} ±\u00a0{error:,.2f}", ""]
    assert "row by row" in told

    best, _, told = ranking([subject(good, "good"), subject(same, "same"), subject(bad, "bad")])
    assert best is None
    assert "same is within two standard errors" in told


def test_what_cannot_be_compared_is_not_ranked() -> None:
    model = fitted(scatter=0.0)
    others = (
        (subject(fitted(likelihood="gaussian"), "b"), "different likelihoods"),
        (subject(model, "b", seed=4), "different rows"),
        (Subject(model=model, title="b", absent="gone"), "not every run has a bound"),
    )
    for other, reason in others:
        best, behind, told = ranking([subject(model, "a"), other])
        assert best is None
        assert behind == ["", ""]
        assert reason in told


def test_report_of_a_run_is_that_of_train(fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    result = fastvae("report", run_folder, "--out", tmp_path / "again.html")

    assert result.out == f"{tmp_path / 'again.html'}\n"
    assert (tmp_path / "again.html").read_bytes() == (run_folder / "report.html").read_bytes()
    text = (run_folder / "report.html").read_text("utf-8")
    assert "label 7" in text
    assert "digits · 2 latent dimensions" in text


def test_report_without_the_data_says_so(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(200, 12))
    run = tmp_path / "run"
    assert fastvae("train", "--data", tmp_path / "x.npy", *QUICK, "--out", run, "--batch-size", 10).code == 0
    assert "Test row 0" in (run / "report.html").read_text("utf-8")
    np.save(tmp_path / "x.npy", rows(200, 12, seed=1))
    assert "are not those of the run" in fastvae("report", run).err
    (tmp_path / "x.npy").unlink()

    result = fastvae("report", run)

    assert result.out == f"{run / 'report.html'}\n"
    assert "is shown without its data: no dataset and no file" in result.err
    assert "No reconstructions: no dataset and no file" in (run / "report.html").read_text("utf-8")


def test_report_of_several_runs_names_their_differences(
    fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "digits"
    assert fastvae("train", *QUICK, "--activation", "relu", "--out", other).code == 0

    result = fastvae("report", run_folder, other, "--out", tmp_path / "both.html", "--json")

    assert result.json() == {"out": str(tmp_path / "both.html"), "runs": [str(run_folder), str(other)]}
    text = (tmp_path / "both.html").read_text("utf-8")
    differences = text.partition("Where they differ</h2>")[2]
    assert re.findall(r"<th scope=row>(\w+)</th>", differences) == ["activation"]
    assert str(other) in text  # both folders have one name


def test_what_is_no_run_is_one_line(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    assert_error(fastvae("report", tmp_path), 1, "no checkpoint")
    assert_error(fastvae("report"), 2, "Missing argument 'RUN...'")
    assert_error(fastvae("report", tmp_path, "--out", "x.pdf"), 2, "must end in .html")


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browsers.started() as started:
        yield started


def open_page(driver: Any, path: Path, **options: Any) -> None:
    """Open a page, which must ask for nothing and complain of nothing."""
    driver.get_log("browser")  # of the page before
    browsers.show(driver, path, **options)
    browsers.next_frame(driver)
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)") == []


def pixels(driver: Any) -> Array:
    """Grey levels of the explorer's picture."""
    browsers.next_frame(driver)
    script = (
        "const c = document.getElementById('explorer-picture');"
        "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    return np.array(driver.execute_script(script), float).reshape(*SHAPE, 4)[:, :, 0]


def position(driver: Any) -> list[float]:
    found: list[float] = driver.execute_script("return fastvaeExplorer.z")
    return found


@needs_browser
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "identity"])
def test_the_page_decodes_as_the_engine_does(driver: Any, activation: str, likelihood: str, tmp_path: Path) -> None:
    options = {"likelihood": "bernoulli"} if likelihood == "bernoulli" else {"likelihood": "gaussian"}
    if likelihood == "identity":
        options["mean"] = "identity"
    model = fitted(3, activation=activation, **options)
    page_of(model, tmp_path / "run.html", image_shape=SHAPE)
    open_page(driver, tmp_path / "run.html")
    z = np.random.default_rng(5).normal(size=(8, 3), scale=1.5).astype(np.float32)

    script = "return arguments[0].map((z) => Array.from(fastvaeExplorer.decode(z)))"
    found = np.array(driver.execute_script(script, z.tolist()))

    expected = model.inverse_transform(z)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@needs_browser
def test_sliders_and_buttons_move_the_picture(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    model = fitted(4)
    page_of(model, tmp_path / "run.html", y=np.arange(40) % 3, image_shape=SHAPE)
    open_page(driver, tmp_path / "run.html")

    def assert_shown(z: list[float]) -> None:
        levels = 255 * model.inverse_transform(np.array([z], np.float32)).reshape(SHAPE)
        np.testing.assert_allclose(pixels(driver), levels, atol=0.51, rtol=0)

    # It begins with the first row of the first label, and goes to that of the third.
    codes = model.transform(rows(40, seed=3))
    np.testing.assert_allclose(position(driver), codes[0], atol=1e-6)
    assert_shown(position(driver))
    starts = driver.find_elements(By.CSS_SELECTOR, ".start")
    assert [start.accessible_name for start in starts] == [f"Start from row {i}, label {i}" for i in range(3)]
    starts[2].click()
    np.testing.assert_allclose(position(driver), codes[2], atol=1e-6)
    assert_shown(position(driver))

    driver.find_element(By.ID, "explorer-reset").click()
    assert position(driver) == [0, 0, 0, 0]
    before = pixels(driver)
    slider = driver.find_element(By.CSS_SELECTOR, "input[data-dim='2']")
    assert slider.accessible_name == "latent dimension 2"
    slider.send_keys(Keys.PAGE_UP, Keys.PAGE_UP, Keys.ARROW_RIGHT)
    moved = position(driver)
    assert moved[2] > 0.5
    assert [moved[i] for i in (0, 1, 3)] == [0, 0, 0]
    assert np.abs(pixels(driver) - before).max() > 1
    assert_shown(moved)

    driver.find_element(By.ID, "explorer-random").click()
    drawn = position(driver)
    assert len(set(drawn)) == 4
    assert_shown(drawn)


@needs_browser
def test_the_plane_follows_pointer_touch_and_keys(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    model = fitted(2)
    page_of(model, tmp_path / "run.html", image_shape=SHAPE)
    open_page(driver, tmp_path / "run.html")
    pad = driver.find_element(By.ID, "explorer-pad")
    driver.execute_script("document.getElementById('explorer-reset').click()")
    before = pixels(driver)

    def handle() -> tuple[float, float]:
        script = (
            "const box = document.querySelector('.handle').getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]"
        )
        x, y = driver.execute_script(script)
        return x, y

    x, y = handle()
    ActionChains(driver, duration=20).move_to_element(pad).click_and_hold().move_by_offset(60, -90).release().perform()
    moved = position(driver)
    assert moved[0] > 0
    assert moved[1] > 0
    assert np.abs(pixels(driver) - before).max() > 1
    # The handle lies under the pointer: 60 to the right of the middle of the element, 90 above it.
    box = driver.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]", pad
    )
    np.testing.assert_allclose(handle(), (box[0] + box[2] / 2 + 60, box[1] + box[3] / 2 - 90), atol=1.5)

    touch = {"x": x, "y": y}
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [touch]})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    np.testing.assert_allclose(position(driver), [0, 0], atol=0.02)

    driver.execute_script("fastvaeExplorer.set([0, 0]); arguments[0].focus()", pad)
    pad.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    np.testing.assert_allclose(position(driver), [0.1, 0.05])
    pad.send_keys(Keys.SHIFT, Keys.ARROW_DOWN)
    np.testing.assert_allclose(position(driver), [0.1, -0.45])


@needs_browser
@pytest.mark.parametrize("data_dim", [7, 60])
def test_rows_that_are_no_images_are_drawn_as_profiles(driver: Any, data_dim: int, tmp_path: Path) -> None:
    model = fitted(3, data_dim, likelihood="gaussian", mean="identity")
    text = page_of(model, tmp_path / "run.html")
    open_page(driver, tmp_path / "run.html")
    assert "<img" not in text

    driver.execute_script("fastvaeExplorer.set([0.5, -1, 0.2])")
    browsers.next_frame(driver)
    script = (
        "const svg = document.getElementById('explorer-profile');"
        "return [svg.querySelector('.profile').getAttribute('d'), svg.dataset.chart]"
    )
    path, chart = driver.execute_script(script)

    _, top, _, height = map(float, re.findall(r'"box":\[([^\]]*)', chart)[0].split(","))
    low, high = map(float, re.findall(r'"y":\[([^\]]*)', chart)[0].split(","))
    pattern = r"M\S+ \S+?V([-\d.]+)" if data_dim == 7 else r"[ML]\S+ ([-\d.]+)"
    found = high - (np.array(re.findall(pattern, path), float) - top) / height * (high - low)
    expected = model.inverse_transform([[0.5, -1, 0.2]])[0]
    np.testing.assert_allclose(found, expected, atol=0.06 / height * (high - low) + TOLERANCE)


@needs_browser
def test_a_page_fits_a_phone_and_both_themes(driver: Any, run_folder: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    pages = [tmp_path / "tables.html", tmp_path / "both.html", run_folder / "report.html"]
    page_of(fitted(4, 60), pages[0])
    from fastvae.report.comparison import write_comparison

    write_comparison(pages[1], [subject(fitted(scatter=s), f"a run with a long name {s}") for s in (0.0, 1.0, 2.0)])
    large = subject(fitted(), "large")
    assert large.bound is not None
    large.bound = replace(large.bound, elbo=-1e6 - 1e5 * np.arange(large.bound.n_rows))
    write_subject(tmp_path / "large.html", large)
    for size in ((1280, 900), (390, 844)):
        open_page(driver, tmp_path / "large.html", size=size)
        assert len(driver.find_element(By.CSS_SELECTOR, ".stat b").text) > 24
        script = "return [...document.querySelectorAll('.stat b')].every((b) => b.scrollWidth <= b.clientWidth)"
        assert driver.execute_script(script), "a figure reaches into the next"
    for page in pages:
        open_page(driver, page, size=(390, 844), scheme="dark")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390, page

    def ground() -> int:
        colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        return int(re.findall(r"\d+", colour)[0])

    assert ground() < 50
    driver.find_element(By.ID, "theme").click()
    assert ground() > 200
    open_page(driver, pages[2], scheme="light")
    assert ground() > 200
    driver.find_element(By.ID, "theme").click()
    assert ground() < 50
    driver.execute_script("localStorage.clear()")


@needs_browser
def test_charts_tell_their_values_by_pointer_and_key(driver: Any, run_folder: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    with (run_folder / "history.csv").open() as stream:
        columns = [
            {name: float(row[name]) for name in ("epoch", "elbo", "elbo_test")} for row in csv.DictReader(stream)
        ]
    open_page(driver, run_folder / "report.html")
    chart = driver.find_element(By.CSS_SELECTOR, "#curves svg[data-chart]")
    tip = driver.find_element(By.CSS_SELECTOR, "#curves .tip")

    def told(row: dict[str, float]) -> str:
        values = (f"train  {row['elbo']:,.2f}", f"test  {row['elbo_test']:,.2f}")
        return "\n".join((f"epoch {row['epoch']:.0f}", *values)).replace("-", "−")

    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    ActionChains(driver, duration=20).move_to_element_with_offset(chart, chart.size["width"] // 2 - 20, 0).perform()
    assert tip.text == told(columns[1])
    chart.send_keys(Keys.ARROW_LEFT)
    assert tip.text == told(columns[0])
    chart.send_keys(Keys.END)
    assert tip.text == told(columns[1])


# fastvae.plot ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def axes() -> Iterator[Any]:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    figure, ax = pyplot.subplots()
    yield ax
    figure.canvas.draw()
    pyplot.close("all")


def test_plot_history(axes: Any) -> None:
    model = fitted()

    assert plot.history(model, ax=axes) is axes

    train, test = axes.get_lines()
    assert train.get_ydata().tolist() == model.history_["elbo"]
    assert test.get_ydata().tolist() == model.history_["elbo_test"]
    assert axes.get_ylabel() == "bound, nats per datapoint"
    axes.clear()
    kl = [None, *model.history_["kl_per_dimension"][1:]]  # as of a session without an eval_set
    model.history_["kl_per_dimension"] = kl
    lines = plot.history(model, "kl_per_dimension", ax=axes).get_lines()
    assert [line.get_ydata().tolist()[1:] for line in lines] == [[row[j] for row in kl[1:]] for j in range(2)]
    with pytest.raises(ValueError, match="column must be one of epoch, step, elbo"):
        plot.history(model, "loss", ax=axes)
    with pytest.raises(ValueError, match="no epoch of it is complete"):
        plot.history(VAE.from_torch(model.parameters_), ax=axes)


def test_plot_kl_per_dimension(axes: Any) -> None:
    model = fitted(4)

    assert plot.kl_per_dimension(model, rows(), ax=axes) is axes

    expected = sorted(model.evaluate(rows()).kl_per_dimension, reverse=True)
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], expected)


def test_plot_latent_scatter(axes: Any) -> None:
    model = fitted(4)
    x, labels = rows(), np.arange(60) % 2

    assert plot.latent_scatter(model, x, labels, ax=axes) is axes

    first, second = np.argsort(-model.evaluate(x).kl_per_dimension)[:2]
    codes = model.transform(x)
    for label, cloud in enumerate(axes.collections):
        np.testing.assert_array_equal(cloud.get_offsets(), codes[labels == label][:, [first, second]])
    with pytest.raises(ValueError, match="one label for each of the 60 rows"):
        plot.latent_scatter(model, x, labels[:3])
    with pytest.raises(ValueError, match="this model has 1"):
        plot.latent_scatter(fitted(1), x)


@pytest.mark.parametrize("labels", [[None, "b", 3], [np.nan, 1.0, 1.0], [None, None, 2]])
def test_labels_without_an_order_are_text(axes: Any, labels: list[Any], tmp_path: Path) -> None:
    model, y = fitted(), np.array(labels * 4)

    plot.latent_scatter(model, rows(12), y, ax=axes)

    kinds = sorted(set(map(str, y)))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == kinds
    assert [len(cloud.get_offsets()) for cloud in axes.collections] == [list(map(str, y)).count(k) for k in kinds]
    model.report(tmp_path / "run.html", rows(12), y)
    page = (tmp_path / "run.html").read_text("utf-8")
    assert re.findall("class=kind [^>]*>([^<]+)<", page) == kinds


@pytest.mark.parametrize("kind", ["reconstructions", "samples", "manifold"])
def test_plot_pictures(axes: Any, kind: str) -> None:
    model, x = fitted(), rows(12)
    expected = {
        "reconstructions": lambda: comparison_grid([x, model.reconstruct(x)], SHAPE, ground=np.nan),
        "samples": lambda: grid(model.sample(100), SHAPE, ground=np.nan),
        "manifold": lambda: grid(model.manifold(20), SHAPE, columns=20, ground=np.nan),
    }[kind]()
    arguments = (x,) if kind == "reconstructions" else ()

    assert getattr(plot, kind)(model, *arguments, image_shape=SHAPE, ax=axes) is axes

    np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), np.nan), expected)
    with pytest.raises(ValueError, match="no image_shape is known for rows of 30 columns"):
        getattr(plot, kind)(model, *arguments)


def test_plots_without_matplotlib_name_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    with pytest.raises(ImportError, match=r"a plot needs matplotlib: pip install 'fastvae\[plot\]'"):
        plot.history(fitted())
