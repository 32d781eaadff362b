import tracemalloc

import numpy as np
import pytest
from data_files import idx_bytes, write_mnist

from fastvae.data import check_values, list_datasets, load
from fastvae.errors import DataError
from fastvae.files import cache_folder


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """Keep the tests away from the user's data, whatever the platform's cache folder is."""
    monkeypatch.setattr("fastvae.data.registry.cache_folder", lambda: tmp_path / "cache" / "fastvae")
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    return tmp_path / "cache" / "fastvae"


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "", "/home/me/.cache/fastvae"),
        ("linux", "/var/cache", "/var/cache/fastvae"),
        ("darwin", "", "/home/me/Library/Caches/fastvae"),
    ],
)
def test_the_cache_lies_where_the_platform_has_it(monkeypatch, platform, variable, expected):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert str(cache_folder()) == expected


def test_digits():
    split = load("digits")
    assert split.train.rows.shape == (1500, 64)
    assert split.test.rows.shape == (297, 64)
    assert split.train.rows.dtype == np.uint8
    assert (split.train.scale, split.train.image_shape, split.train.name) == (1 / 16, (8, 8), "digits")
    assert max(split.train.rows.max(), split.test.rows.max()) == 16
    # The split is the same in every run: neither seed nor NumPy release may change it.
    np.testing.assert_array_equal(load("digits", seed=7).test.rows, split.test.rows)
    assert split.test.rows.sum(dtype=int) == 92_959


def test_digits_split_covers_the_set_once():
    from sklearn.datasets import load_digits

    split = load("digits")
    both = np.vstack([split.train.rows, split.test.rows])
    assert sorted(both.tolist()) == sorted(load_digits().data.tolist())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["folder", "subfolder", "variable", "cache"])
def test_mnist_is_found(tmp_path, monkeypatch, empty_cache, zipped, place):
    folder = empty_cache if place == "cache" else tmp_path / "data"
    images = write_mnist(folder if place == "folder" else folder / "mnist", np.random.default_rng(1), zipped=zipped)
    if place == "variable":
        monkeypatch.setenv("FASTVAE_DATA", str(folder))
    split = load("mnist", data_dir=folder if place.endswith("folder") else None)
    for part, expected in zip((split.train, split.test), images, strict=True):
        np.testing.assert_array_equal(part.rows, expected.reshape(-1, 784))
        assert (part.scale, part.image_shape, part.name) == (1 / 255, (28, 28), "mnist")


def test_data_dir_goes_before_the_variable(tmp_path, monkeypatch):
    write_mnist(tmp_path / "a", np.random.default_rng(1), n_train=3)
    write_mnist(tmp_path / "b", np.random.default_rng(1), n_train=4)
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path / "a"))
    assert load("mnist").train.n_rows == 3
    assert load("mnist", data_dir=tmp_path / "b").train.n_rows == 4


@pytest.mark.parametrize("name", ["mnist", "freyface"])
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(DataError, match=f"{name} is not in .*fastvae data fetch {name}.*--data-dir") as caught:
        load(name, data_dir=tmp_path)
    assert ("frey_rawface.mat" if name == "freyface" else "t10k-images-idx3-ubyte.gz") in str(caught.value)


def test_mnist_parts_must_go_together(tmp_path):
    write_mnist(tmp_path, np.random.default_rng(1), zipped=False)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((2, 5, 5), np.uint8)))
    with pytest.raises(DataError, match="do not go with"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.2])
@pytest.mark.parametrize("name", ["digits", "mnist", "freyface"])
def test_named_datasets_take_no_test_fraction(name, fraction):
    with pytest.raises(DataError, match="own test set"):
        load(name, test_fraction=fraction)


def test_list_datasets(tmp_path, empty_cache):
    states = {state.name: state for state in list_datasets()}
    assert list(states) == ["digits", "mnist", "freyface"]
    assert (states["digits"].state, states["digits"].folder) == ("embedded", None)
    assert (states["mnist"].state, states["mnist"].folder) == ("missing", empty_cache)
    assert states["freyface"].missing == ("frey_rawface.mat",)
    assert (states["mnist"].rows, states["mnist"].columns) == (70000, 784)
    assert all(state.source for state in states.values())

    write_mnist(tmp_path / "mnist", np.random.default_rng(1))
    state = list_datasets(tmp_path)[1]
    assert (state.state, state.folder, state.missing) == ("present", tmp_path / "mnist", ())
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").unlink()
    state = list_datasets(tmp_path)[1]
    assert (state.state, state.missing) == ("missing", ("t10k-images-idx3-ubyte.gz",))


def write_csv(folder, n):
    path = folder / "x.csv"
    path.write_text("".join(f"{i}\n" for i in range(n)))
    return path


def test_files_are_split_by_seed(tmp_path):
    path = write_csv(tmp_path, 50)
    split = load(path)
    train, test = split.train.rows[:, 0], split.test.rows[:, 0]
    assert len(test) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(50))
    assert np.all(np.diff(train) > 0)
    assert np.any(np.diff(test) > 1)
    np.testing.assert_array_equal(load(str(path)).test.rows, split.test.rows)
    assert not np.array_equal(load(path, seed=1).test.rows, split.test.rows)
    assert split.train.name == str(path)


@pytest.mark.parametrize(("n", "fraction", "n_test"), [(50, 0.25, 12), (3, 0.01, 1), (3, 0.99, 2), (2, 0.5, 1)])
def test_test_fraction(tmp_path, n, fraction, n_test):
    split = load(write_csv(tmp_path, n), test_fraction=fraction)
    assert (split.train.n_rows, split.test.n_rows) == (n - n_test, n_test)


def test_no_test_rows(tmp_path):
    assert load(write_csv(tmp_path, 1), test_fraction=0).test is None
    with pytest.raises(DataError, match="single row"):
        load(write_csv(tmp_path, 1))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_absurd_test_fraction(tmp_path, fraction):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        load(write_csv(tmp_path, 5), test_fraction=fraction)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"called nmist; the named datasets are digits, mnist, freyface"):
        load("nmist")
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("value", ["nan", "7"])
@pytest.mark.parametrize("line", [4, 31, 100])
def test_bad_values_of_a_csv_are_named_by_line_and_column(tmp_path, value, line):
    lines = ["a,b", "", *["0.5,0.5"] * 98]
    lines[line - 1] = f"0.5,{value}"
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    split = load(tmp_path / "x.csv", test_fraction=0.5)
    messages = []
    for part in (split.train, split.test):
        try:
            check_values(part, "bernoulli", "sigmoid")
        except DataError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert f"x.csv: line {line}, column 2: {value}" in messages[0]


def test_bad_values_of_a_mapped_file_are_named_by_their_row_in_it(tmp_path):
    x = np.zeros((50, 2))
    x[48, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    test = load(tmp_path / "x.npy").test
    assert test.is_mapped
    with pytest.raises(DataError, match="row 48, column 1"):
        check_values(test, "gaussian", "identity")


@pytest.mark.parametrize(("name", "words"), [("", "name of the data is empty"), ("/dev/null", "not a regular file")])
def test_sources_that_are_no_files(name, words):
    with pytest.raises(DataError, match=words):
        load(name)


@pytest.mark.realdata
def test_real_mnist_stays_47_mb_of_uint8(data_root):
    tracemalloc.start()
    try:
        split = load("mnist", data_dir=data_root)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (split.train.rows.dtype, split.train.rows.nbytes) == (np.uint8, 47_040_000)
    assert (split.test.rows.shape, split.test.rows.dtype) == ((10_000, 784), np.uint8)
    assert peak < 1.5 * 47_040_000  # both sets and the slack of a growing buffer; decompressing into a copy takes 2.2
    # Mean grey level of the published training set.
    assert split.train.rows.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


@pytest.mark.realdata
def test_real_freyface(data_root):
    split = load("freyface", data_dir=data_root)
    assert (split.train.rows.shape, split.test.rows.shape) == ((1572, 560), (393, 560))
    assert (split.train.rows.dtype, split.train.image_shape) == (np.uint8, (28, 20))
    # Neighbouring pixels are 18 and 19 levels apart along the two axes; read as 20 x 28 they would be 46 and 20.
    images = split.train.rows[:100].reshape(100, 28, 20).astype(float)
    assert np.abs(np.diff(images, axis=1)).mean() < 25
    assert np.abs(np.diff(images, axis=2)).mean() < 25
    np.testing.assert_array_equal(load("freyface", data_dir=data_root, seed=9).test.rows, split.test.rows)
