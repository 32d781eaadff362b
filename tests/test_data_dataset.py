import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from fastvae import backends
from fastvae.data import Dataset, as_dataset, check_values
from fastvae.errors import DataError

pl = pytest.importorskip("polars")


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


class ByDlpack:
    """An array that offers DLPack alone, from where it says."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


VALUES = np.arange(12).reshape(4, 3) % 5


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (VALUES.astype(np.float16), np.float32),
        (VALUES.astype(np.int8), np.float32),
        (VALUES.astype(np.uint16), np.float32),
        (VALUES.astype(np.int32), np.float64),
        (VALUES.astype(np.int64), np.float64),
        (VALUES.astype(np.uint64), np.float64),
        (VALUES.astype(np.longdouble), np.float64),
        (VALUES.astype(object), np.float64),
        (VALUES.astype(">f4"), np.float32),
        (VALUES.astype(">i2"), np.float32),
        (VALUES.astype(np.float32, order="F"), np.float32),
        (np.repeat(VALUES, 2, axis=0).astype(np.uint8)[::2], np.uint8),
        (np.repeat(VALUES, 2, axis=1).astype(np.float64)[:, ::2], np.float64),
        (VALUES.tolist(), np.float64),
        ([tuple(row) for row in VALUES.astype(np.float32)], np.float32),
        (np.matrix(VALUES.astype(np.float32)), np.float32),
        (pd.DataFrame(VALUES.astype(np.float32), columns=["a", "b", "c"]), np.float32),
        (pd.DataFrame({"a": VALUES[:, 0], "b": VALUES[:, 1] / 1, "c": VALUES[:, 2]}), np.float64),
        (pd.DataFrame(VALUES).astype("Int64"), np.float64),
        (pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(VALUES.astype(np.float32))), np.float32),
        (pl.DataFrame(VALUES.astype(np.uint8)), np.uint8),
        (pl.DataFrame(VALUES), np.float64),
        (ByDlpack(VALUES), np.float64),
        (sp.csc_matrix(VALUES.astype(np.float32)), np.float32),
        (sp.coo_array(VALUES.astype(np.uint8)), np.uint8),
        (sp.bsr_array(VALUES.astype(np.float64)), np.float64),
        (sp.csr_matrix(VALUES), np.float64),
        (sp.csr_array(VALUES.astype(np.int16)), np.float32),
        (sp.lil_array(VALUES.astype(np.int8)), np.float32),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_what_holds_numbers_is_converted(x, dtype):
    dataset = as_dataset(x)
    assert dataset.rows.dtype == dtype
    assert dataset.rows.dtype.isnative
    assert dataset.is_sparse or dataset.rows.flags.c_contiguous
    assert type(dataset.rows) is np.ndarray or dataset.rows.format == "csr"
    assert not dataset.is_on_device
    np.testing.assert_array_equal(dataset.dense(), VALUES)


@pytest.mark.parametrize(
    "convert",
    [lambda x: x, lambda x: x[1:], ByDlpack, sp.csr_array],
    ids=["array", "rows", "dlpack", "csr"],
)
def test_what_fits_is_not_copied(convert):
    held = convert(VALUES.astype(np.float32))
    rows = as_dataset(held).rows
    assert rows is held or np.shares_memory(rows, held.array)


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12, dtype=torch.float32).reshape(4, 3)

    for held in (tensor, tensor[1:], tensor.double(), tensor.to(torch.uint8)):
        assert as_dataset(held).rows.__array_interface__["data"][0] == held.data_ptr()
    for held in (tensor.T.contiguous().T, tensor.long(), tensor.half()):
        np.testing.assert_array_equal(as_dataset(held).rows, tensor)
    for held, words in (
        (tensor.clone().requires_grad_(), r"detach\(\)"),
        (tensor.to("meta"), "meta"),
        (tensor.to_sparse(), r"to_dense\(\)"),
        (tensor.bfloat16(), "BFloat16"),
    ):
        with pytest.raises(DataError, match=words):
            as_dataset(held)


def test_a_conversion_is_one_copy(traced_peak):
    x = np.zeros((400, 1000), np.int64, order="F")
    assert x.nbytes <= traced_peak(lambda: as_dataset(x)) < 1.1 * x.nbytes
    y = np.zeros((400, 1000), np.float32)
    assert traced_peak(lambda: as_dataset(y)) < 0.1 * y.nbytes


def test_integers_other_than_uint8_are_taken_as_they_are():
    levels = np.array([[0, 255]])
    dataset = as_dataset(levels)
    assert (dataset.scale, dataset.is_integer) == (1.0, True)
    with pytest.raises(DataError, match=r"column 1: 255 is outside .*scale=1/255 or x\.astype\(np\.uint8\)"):
        check_values(dataset, "bernoulli", "sigmoid")
    assert not as_dataset(levels / 255).is_integer


def test_a_value_beyond_float64_is_named_without_a_warning():
    x = np.array([[0, np.longdouble("1e400")]])
    if x.dtype == np.float64:
        pytest.skip("long double is float64 on this platform")
    with pytest.raises(DataError, match="row 0, column 1: inf is not a finite"):
        check_values(as_dataset(x), "gaussian", "identity")


def test_nullable_columns_of_frames_are_floats(traced_peak):
    frame = pd.DataFrame(
        {
            "float": np.float32([0.5, 1]),
            "bool": [True, False],
            "Int64": pd.array([1, None], dtype="Int64"),
            "boolean": pd.array([None, True], dtype="boolean"),
        }
    )
    dataset = as_dataset(frame)
    np.testing.assert_array_equal(dataset.rows, [[0.5, 1, 1, np.nan], [1, 0, np.nan, 1]])
    with pytest.raises(DataError, match="row 0, column 3: nan is not a finite"):
        check_values(dataset, "bernoulli", "sigmoid")
    assert traced_peak(lambda: as_dataset(pd.DataFrame({"a": pd.array(range(10_000), dtype="Int64")}))) < 500_000
    for column in (pd.date_range("2020", periods=2), ["a", "b"], pd.Categorical(["a", "b"])):
        with pytest.raises(DataError, match="no number"):
            as_dataset(frame.assign(Int64=frame["Int64"].fillna(0), boolean=column))


def test_sparse_frames_whose_gaps_are_no_zeros_name_the_mend():
    frame = pd.DataFrame({"a": pd.arrays.SparseArray([1.0, 2.0], fill_value=1.0)})
    with pytest.raises(DataError, match=r"fill value must be 0 .*; give x\.sparse\.to_dense\(\)"):
        as_dataset(frame)
    assert as_dataset(frame.sparse.to_dense()).n_rows == 2


@pytest.mark.parametrize(
    "x",
    [np.zeros((4, 3), np.int64), np.zeros((4, 3), np.float16), np.zeros((4, 3), np.float32, order="F")],
    ids=["int64", "float16", "fortran"],
)
def test_mapped_arrays_are_never_copied(tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.raises(DataError, match=r"memory-mapped array is .* copied .*np\.save\(file, np\.ascontiguousarray\(x"):
        as_dataset(mapped)
    np.save(tmp_path / "y.npy", np.ascontiguousarray(x, np.float32))  # as the message says
    dataset = as_dataset(np.load(tmp_path / "y.npy", mmap_mode="r"))
    assert dataset.is_mapped


def test_arrays_on_a_device_need_cupy():
    if backends.unavailable("cuda") is None:
        pytest.skip("CuPy reads them")
    for device in ((2, 0), (8, 0), (13, 1)):
        with pytest.raises(DataError, match=r"lies on a device: take x\.get\(\) \(CuPy\) or x\.cpu\(\)"):
            as_dataset(ByDlpack(VALUES, device))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 2), complex), r"complex128.*Complex data not supported.*x\.real"),
        (np.array([["a"]]), "numbers"),
        (np.zeros((2, 2), "M8[s]"), r"datetime64\[s\] are no real numbers; turn every column into numbers"),
        (np.array([[{}]]), "argument must be a string or a real number, not 'dict'"),
        (pd.DataFrame({"a": ["x"]}), "could not convert string to float: 'x'"),
        (pl.DataFrame({"a": ["x"], "b": [1]}), "could not convert string to float: 'x'"),
        ("digits", r"'digits' is a name, not an array; give fastvae\.data\.load\('digits'\)\.train"),
        (None, r"2-D"),
        (np.zeros(4, np.float32), r"shape \(4,\).*Reshape your data.*reshape\(-1, 1\)"),
        (np.zeros((4, 3, 2), np.float32), r"shape \(4, 3, 2\).*reshape\(4, 6\).*image_shape=\(3, 2\)"),
        (np.float32(1), "2-D.*reshape"),
        (np.zeros((0, 3), np.float32), "empty"),
        (np.zeros((3, 0), np.float32), r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1 is required"),
        (np.ma.masked_array(np.zeros((2, 2))), "filled"),
        ([[1.0, 2.0], [3.0]], "equal length"),
        ([["a"]], "numbers"),
        (sp.csr_matrix((2, 2), dtype=complex), "complex128"),
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
        ([1.0, 1.0, 1.0], [2, 0, 0], [0, 3, 3], r"row 0 holds column 0 twice"),
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


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csr_array])
def test_csr_columns_out_of_order_are_sorted_in_a_copy(container):
    x = csr(np.array([1.0, 2.0, 3.0], np.float32), [0, 2, 1], [0, 1, 3], (2, 3), container)
    rows = as_dataset(x).rows
    np.testing.assert_array_equal(rows.indices, [0, 1, 2])
    np.testing.assert_array_equal(rows.toarray(), [[1, 0, 0], [0, 3, 2]])
    np.testing.assert_array_equal(x.indices, [0, 2, 1])


def test_damaged_csc_is_not_converted():
    x = sp.csc_matrix(np.eye(3, dtype=np.float32))
    x.indices[1] = 7
    with pytest.raises(DataError, match="damaged CSC matrix"):
        as_dataset(x)


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
    for wrong in ((2, 2), (-2, -3), (2, 3, 1), (1.5, 4), 6, "ab"):
        with pytest.raises(ValueError, match=r"image_shape .* does not fit rows of 6 columns: it is"):
            as_dataset(np.zeros((2, 6)), image_shape=wrong)


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
