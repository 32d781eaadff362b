import numpy as np
import pytest
import scipy.sparse as sp

from fastvae.data import Dataset, as_dataset, check_values
from fastvae.errors import DataError


def csr(data, indices, indptr, shape, container=sp.csr_matrix):
    """Build a CSR matrix without letting scipy mend or refuse it."""
    x = container((1, 1), dtype=np.asarray(data).dtype)
    x.data, x.indices, x.indptr = np.asarray(data), np.asarray(indices, np.int32), np.asarray(indptr, np.int32)
    x._shape = shape
    return x


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_storage_is_kept_without_a_copy(dtype):
    x = np.zeros((5, 3), dtype)
    dataset = as_dataset(x)
    assert dataset.rows.dtype == dtype
    assert np.shares_memory(dataset.rows, x)
    assert (dataset.n_rows, dataset.data_dim, dataset.is_sparse) == (5, 3, False)


@pytest.mark.parametrize(
    ("x", "scale"),
    [
        (np.array([[0, 255]], np.uint8), 1 / 255),
        (np.array([[0, 2]], np.uint8), 1 / 255),
        (np.array([[0, 1]], np.uint8), 1.0),
        (np.array([[False, True]]), 1.0),
        (np.array([[0.0, 7.0]], np.float32), 1.0),
        (sp.csr_matrix(np.array([[0, 9]], np.uint8)), 1 / 255),
        (sp.csr_matrix((2, 3), dtype=np.uint8), 1.0),
    ],
)
def test_default_scale(x, scale):
    assert as_dataset(x).scale == scale


def test_default_scale_looks_beyond_the_first_block():
    x = np.zeros((3000, 200), np.uint8)
    x[-1, -1] = 2
    assert as_dataset(x).scale == 1 / 255


def test_bool_is_viewed_and_lists_become_float64():
    mask = np.array([[True, False]])
    dataset = as_dataset(mask)
    assert dataset.rows.dtype == np.uint8
    assert np.shares_memory(dataset.rows, mask)
    assert as_dataset([[1, 2], [3, 4]]).rows.dtype == np.float64


class Frame:
    """What a pandas DataFrame of floats gives NumPy: columns that lie together."""

    def __array__(self, dtype=None, copy=None):
        return np.zeros((3, 2), dtype or np.float64, order="F")

    def to_numpy(self, dtype=None):
        return self.__array__(dtype)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 2), np.float16), "float16.*astype"),
        (np.zeros((2, 2), np.int64), r"int64.*x\.astype\(np\.float32\).*np\.uint8"),
        (np.zeros((2, 2), complex), r"complex128.*Complex data not supported.*x\.real"),
        (np.array([["a"]]), "numbers"),
        (np.zeros((2, 2), np.dtype("f4").newbyteorder()), "byte order.*newbyteorder"),
        (np.zeros(4, np.float32), r"shape \(4,\).*Reshape your data.*reshape\(-1, 1\)"),
        (np.zeros((4, 3, 2), np.float32), r"shape \(4, 3, 2\).*reshape\(4, 6\).*image_shape=\(3, 2\)"),
        (np.float32(1), "2-D.*reshape"),
        (np.zeros((0, 3), np.float32), "empty"),
        (np.zeros((3, 0), np.float32), r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1 is required"),
        (np.zeros((3, 4), np.float32, order="F"), "ascontiguousarray"),
        (np.zeros((6, 4), np.float32)[::2], r"np\.ascontiguousarray\(x\)"),
        (Frame(), r"np\.ascontiguousarray\(x\.to_numpy\(np\.float32\)\)"),
        (np.ma.masked_array(np.zeros((2, 2))), "filled"),
        ([[1.0, 2.0], [3.0]], "equal length"),
        ([["a"]], "numbers"),
        (sp.csc_matrix((2, 2), dtype=np.float32), r"csc.*tocsr\(\)"),
        (sp.coo_array((2, 2), dtype=np.float32), r"coo.*tocsr\(\)"),
        (sp.csr_matrix((2, 2), dtype=np.int32), "int32.*astype"),
        (sp.csr_matrix((2, 0), dtype=np.float32), "empty"),
    ],
)
def test_refused_arrays_name_the_mend(x, words):
    with pytest.raises(DataError, match=words) as caught:
        as_dataset(x, name="here")
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "bool"])
def test_csr_is_kept(container, dtype):
    x = container(np.eye(4, 6).astype(dtype))
    dataset = as_dataset(x)
    assert dataset.is_sparse
    assert (dataset.n_rows, dataset.data_dim) == (4, 6)
    assert np.shares_memory(dataset.rows.data, x.data)
    assert type(dataset.rows) is container
    np.testing.assert_array_equal(dataset.rows.toarray(), np.eye(4, 6))


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize(
    ("data", "indices", "indptr", "words"),
    [
        ([1.0, 1.0], [0, 3], [0, 1, 2], "row 1 names column 3 of 3"),
        ([1.0, 1.0], [0, -1], [0, 1, 2], "row 1 names column -1 of 3"),
        ([1.0, 1.0, 1.0], [0, 2, 1], [0, 1, 3], r"row 1 are not in order.*sort_indices\(\)"),
        ([1.0, 1.0, 1.0], [0, 1, 1], [0, 1, 3], r"row 1 holds column 1 twice.*sum_duplicates\(\)"),
        ([1.0, 1.0], [0, 1], [0, 2, 1], "rise"),
        ([1.0, 1.0], [0, 1], [1, 1, 2], "start at 0"),
        ([1.0, 1.0], [0, 1], [0, 2], "3 offsets"),
        ([1.0, 1.0], [0, 1], [0, 1, 3], "disagree"),
        ([1.0, 1.0, 1.0], [0, 1], [0, 1, 2], r"disagree.*prune\(\)"),
    ],
)
def test_damaged_csr(container, data, indices, indptr, words):
    with pytest.raises(DataError, match=words):
        as_dataset(csr(data, indices, indptr, (2, 3), container))


def test_csr_rows_may_be_empty_and_columns_fall_back_between_rows():
    x = csr(np.ones(3, np.float32), [2, 0, 1], [0, 0, 1, 1, 3], (4, 3))
    assert as_dataset(x).rows is x


def test_csr_disorder_at_the_seam_of_two_blocks_is_seen():
    n = (1 << 18) + 1
    indices = np.arange(n, dtype=np.int32)
    indices[-1] = indices[-2]
    with pytest.raises(DataError, match="twice"):
        as_dataset(csr(np.ones(n, np.uint8), indices, [0, n], (1, n)))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_absurd_scale(scale):
    with pytest.raises(ValueError, match="scale must be"):
        as_dataset(np.zeros((1, 1)), scale=scale)


def test_image_shape_must_fit():
    assert as_dataset(np.zeros((2, 6)), image_shape=(2, 3)).image_shape == (2, 3)
    with pytest.raises(ValueError, match="image_shape"):
        as_dataset(np.zeros((2, 6)), image_shape=(2, 2))


def test_select_keeps_what_it_does_not_choose():
    x = np.arange(12, dtype=np.uint8).reshape(6, 2)
    dataset = as_dataset(x, name="a", image_shape=(1, 2))
    view = dataset.select(slice(1, 4))
    assert isinstance(view, Dataset)
    assert np.shares_memory(view.rows, x)
    assert (view.scale, view.name, view.image_shape) == (1 / 255, "a", (1, 2))
    np.testing.assert_array_equal(dataset.select([5, 0]).rows, x[[5, 0]])
    np.testing.assert_array_equal(dataset.select(x[:, 0] > 6).rows, x[4:])
    assert dataset.select(slice(None, None, 2)).rows.flags.c_contiguous
    with pytest.raises(DataError, match="none of the 6 rows"):
        dataset.select(slice(6, None))
    with pytest.raises(ValueError, match="1-D"):
        dataset.select(np.zeros((1, 1), int))


def test_select_of_csr():
    x = sp.csr_array(np.eye(4, dtype=np.float32))
    np.testing.assert_array_equal(as_dataset(x).select([2, 1]).rows.toarray(), np.eye(4)[[2, 1]])
    np.testing.assert_array_equal(as_dataset(x).select(slice(1, 3)).rows.toarray(), np.eye(4)[1:3])


BOUNDED = [("bernoulli", "sigmoid"), ("bernoulli", "identity"), ("gaussian", "sigmoid")]
EVERY = [*BOUNDED, ("gaussian", "identity")]


@pytest.mark.parametrize(("likelihood", "mean"), EVERY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("sparse", [False, True])
def test_not_finite_values_are_located_and_counted(likelihood, mean, bad, sparse):
    x = np.zeros((3000, 100))
    x[2900, 7] = x[2901, 3] = bad
    x[0, 0] = 5.0  # outside [0, 1], but the worse fault is named
    dataset = as_dataset(sp.csr_matrix(x) if sparse else x)
    with pytest.raises(DataError, match=r"row 2900, column 7: \S+ is not a finite.*\(2 such.*NaN, infinity"):
        check_values(dataset, likelihood, mean)


@pytest.mark.parametrize(("likelihood", "mean"), BOUNDED)
@pytest.mark.parametrize("bad", [1.001, -0.001, 255.0])
@pytest.mark.parametrize("sparse", [False, True])
def test_values_outside_the_unit_interval(likelihood, mean, bad, sparse):
    x = np.zeros((40, 9), np.float32)
    x[0, 0] = 1.0
    x[30, 5] = bad
    dataset = as_dataset(sp.csr_array(x) if sparse else x)
    with pytest.raises(DataError, match=r"row 30, column 5: .*outside \[0, 1\] \(1 such.*likelihood='gaussian'"):
        check_values(dataset, likelihood, mean)
    check_values(dataset, "gaussian", "identity")


@pytest.mark.parametrize("x", [np.array([[0, 255]], np.uint8), np.array([[0, 1]], np.uint8), np.array([[0.0, 1.0]])])
@pytest.mark.parametrize(("likelihood", "mean"), EVERY)
def test_good_values_pass(x, likelihood, mean):
    check_values(as_dataset(x), likelihood, mean)


def test_rounding_of_a_rescaling_passes():
    check_values(as_dataset(np.array([[np.nextafter(np.float32(1), np.float32(2))]])), "bernoulli", "sigmoid")


def test_scale_takes_part_in_the_check():
    levels = np.array([[0, 16], [17, 3]], np.uint8)
    check_values(as_dataset(levels[:1], scale=1 / 16), "bernoulli", "sigmoid")
    with pytest.raises(DataError, match=r"row 1, column 0: 17 \(scaled 1\.0625\)"):
        check_values(as_dataset(levels, scale=1 / 16), "bernoulli", "sigmoid")


@pytest.mark.parametrize(("likelihood", "mean"), [("poisson", "sigmoid"), ("gaussian", "relu")])
def test_unknown_likelihood_or_mean(likelihood, mean):
    with pytest.raises(ValueError, match="must be"):
        check_values(as_dataset(np.zeros((1, 1))), likelihood, mean)


def test_check_reads_in_blocks(traced_peak):
    x = np.zeros((4000, 1000), np.float32)
    peak = traced_peak(lambda: check_values(as_dataset(x), "bernoulli", "sigmoid"))
    assert peak < x.nbytes / 4


@pytest.fixture
def traced_peak():
    import tracemalloc

    def measure(action):
        tracemalloc.start()
        try:
            action()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


def test_rows_are_named_by_their_place_in_the_source():
    x = np.zeros((20, 3))
    x[13, 1] = np.nan
    for picked in (slice(10, 20), [2, 13, 5], np.arange(20) > 12):
        part = as_dataset(x).select(picked)
        with pytest.raises(DataError, match="row 13, column 1: nan"):
            check_values(part, "bernoulli", "sigmoid")
    with pytest.raises(DataError, match="row 13, column 1: nan"):
        check_values(as_dataset(sp.csr_matrix(x)).select([1, 13]).select([1]), "bernoulli", "sigmoid")
