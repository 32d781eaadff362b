import gzip
import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from data_files import idx_bytes

from fastvae.data import load
from fastvae.errors import DataError

rng = np.random.default_rng(5)
IMAGES = rng.integers(0, 256, (7, 4, 3), dtype=np.uint8)
ROWS = rng.random((7, 5))


def load_bytes(folder, name, content, **options):
    path = folder / name
    path.write_bytes(content)
    return load(path, **options)


def npy_bytes(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz_bytes(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def mat_bytes(**variables):
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables, do_compression=True)
    return stream.getvalue()


def lying_npy(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + b"\1" * 12


def lying_npz(shape):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", lying_npy(shape))
    return stream.getvalue()


# IDX


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_idx_is_read_in_its_dtype(tmp_path, zipped, dtype):
    images = IMAGES.astype(dtype)
    content = idx_bytes(images)
    train = load_bytes(tmp_path, "images", gzip.compress(content) if zipped else content, test_fraction=0).train
    assert train.rows.dtype == np.dtype(dtype)
    assert train.rows.dtype.isnative
    assert train.image_shape == (4, 3)
    np.testing.assert_array_equal(train.rows, images.reshape(7, 12))


def test_idx_of_rows_has_no_image_shape(tmp_path):
    train = load_bytes(tmp_path, "rows", idx_bytes(IMAGES.reshape(7, 12)), test_fraction=0).train
    assert (train.rows.shape, train.image_shape) == ((7, 12), None)


GOOD = idx_bytes(IMAGES)
LIE = idx_bytes(IMAGES, (1 << 20, 1 << 10, 1 << 10))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (gzip.compress(b""), "unknown format"),
        (b"\0\0", "unknown format"),
        (b"PK" + GOOD[2:], "unknown format"),
        (b"\0\0\7" + GOOD[3:], "unknown format"),
        (idx_bytes(IMAGES.astype("i4")), "int32 is not supported"),
        (idx_bytes(IMAGES[:, 0, 0]), "labels, not images"),
        (idx_bytes(IMAGES[..., None]), "4 dimensions"),
        (b"\0\0\x08\0", "0 dimensions"),
        (GOOD[:10], "inside its IDX header"),
        (idx_bytes(IMAGES[:0]), "no data"),
        (GOOD[:-1], "more than a file of 99 bytes can hold"),
        (GOOD + b"x", "more bytes follow"),
        (gzip.compress(GOOD[:-1]), "only 83 bytes follow"),
        (gzip.compress(GOOD + b"x"), "more bytes follow"),
        (gzip.compress(GOOD)[:-12], "truncated"),
        (gzip.compress(GOOD)[:12], "truncated"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "cannot be read: CRC"),
        (gzip.compress(GOOD) + b"tail", "cannot be read: Not a gzip"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 40, "cannot be read"),
        (LIE, "more than a file of"),
        (gzip.compress(LIE), "more than a file of"),
    ],
)
def test_malformed_idx(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        load_bytes(tmp_path, "images.gz", content)
    assert str(tmp_path / "images.gz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lying_headers_and_bombs_take_no_memory(tmp_path):
    zeros = np.zeros((1, 64 << 20), np.uint8)  # compresses to 64 KB
    bomb = gzip.compress(idx_bytes(zeros, (1, 1000)))
    within_ratio = gzip.compress(idx_bytes(IMAGES, (1, 1000, 90)))
    del zeros
    huge = (1 << 20, 1 << 20)
    files = {"bomb": bomb, "claim": within_ratio, "plain": LIE, "x.npy": lying_npy(huge), "x.npz": lying_npz(huge)}
    tracemalloc.start()
    try:
        for name, content in files.items():
            with pytest.raises(DataError):
                load_bytes(tmp_path, name, content)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# Frey Face


def test_mat_columns_become_rows(tmp_path):
    frames = rng.integers(0, 256, (560, 6), dtype=np.uint8)
    train = load_bytes(tmp_path, "frey.mat", mat_bytes(ff=frames), test_fraction=0).train
    assert (train.rows.dtype, train.image_shape) == (np.uint8, (28, 20))
    assert train.rows.flags.c_contiguous
    np.testing.assert_array_equal(train.rows, frames.T)


FREY = mat_bytes(ff=np.arange(1120, dtype=np.uint8).reshape(560, 2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (mat_bytes(x=np.zeros((560, 2), np.uint8)), "no variable 'ff'.*holds: x"),
        (mat_bytes(ff=np.zeros((2, 560), np.uint8)), r"shape \(2, 560\).*560 x N"),
        (mat_bytes(ff=np.zeros((560, 0), np.uint8)), r"shape \(560, 0\)"),
        (mat_bytes(ff=np.zeros((560, 2))), "double.*uint8"),
        (FREY[:-20], "cannot be read"),
        (FREY[:140], "cannot be read"),
        (b"junk", "cannot be read"),
        (b"", "is empty"),
    ],
)
def test_malformed_mat(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        load_bytes(tmp_path, "frey.mat", content)


def test_mat_of_several_variables(tmp_path):
    frames = rng.integers(0, 256, (560, 3), dtype=np.uint8)
    content = mat_bytes(a={"b": 1}, other=np.eye(3), text="words", ff=frames, z=np.uint8([[1]]))
    np.testing.assert_array_equal(load_bytes(tmp_path, "x.mat", content, test_fraction=0).train.rows, frames.T)


def test_mat_without_its_checksum(tmp_path):
    with pytest.raises(DataError, match="damaged or truncated"):
        load_bytes(tmp_path, "x.mat", FREY[:-4] + bytes(4))


def test_mat_that_claims_more_than_it_can_hold(tmp_path):
    plain = io.BytesIO()
    scipy.io.savemat(plain, {"ff": np.zeros((560, 2), np.uint8)})
    lie = plain.getvalue().replace(struct.pack("<ii", 560, 2), struct.pack("<ii", 560, 1 << 30))
    assert lie != plain.getvalue()
    with pytest.raises(DataError, match="holds 1120 bytes"):
        load_bytes(tmp_path, "frey.mat", lie)


# npy


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_npy_is_mapped_read_only(tmp_path, dtype):
    split = load_bytes(tmp_path, "x.npy", npy_bytes(ROWS.astype(dtype)), test_fraction=0.3)
    for part, expected in ((split.train, ROWS[:5]), (split.test, ROWS[5:])):
        assert isinstance(part.rows, np.memmap)
        assert not part.rows.flags.writeable
        np.testing.assert_array_equal(part.rows, expected.astype(dtype))


def test_npy_images_and_bool(tmp_path):
    train = load_bytes(tmp_path, "x.npy", npy_bytes(IMAGES), test_fraction=0).train
    assert isinstance(train.rows, np.memmap)
    assert (train.rows.shape, train.image_shape) == ((7, 12), (4, 3))
    binary = load_bytes(tmp_path, "b.npy", npy_bytes(IMAGES > 99), test_fraction=0).train
    assert (binary.rows.dtype, binary.scale) == (np.uint8, 1.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy_bytes(np.array([[None]]), allow_pickle=True), "cannot be read"),
        (npy_bytes(np.asfortranarray(ROWS)), "ascontiguousarray"),
        (npy_bytes(np.asfortranarray(IMAGES)), "ascontiguousarray"),
        (npy_bytes(ROWS)[:-1], "cannot be read.*truncated, damaged.*fetch, copy or write it again"),
        (npy_bytes(ROWS) + b"x", "bytes follow"),
        (npy_bytes(ROWS)[:40], "cannot be read"),
        (npy_bytes(ROWS).replace(b"{", b"("), "cannot be read"),
        (npy_bytes(ROWS[:0]), "empty|cannot be read"),
        (npy_bytes(ROWS.astype(">f8")), "memory-mapped array is of dtype >f8, and would have to be copied.*np.float32"),
        (npy_bytes(ROWS.astype("f2")), "float16"),
        (npy_bytes(ROWS.astype("i8")), "int64.*or np.uint8 for grey levels"),
        (npy_bytes(ROWS[0]), "2-D"),
        (lying_npy((1 << 20, 1 << 20)), "cannot be read"),
        (npz_bytes(x=ROWS), "not a .npy file"),
        (b"", "is empty"),
        (b"junk", "not a .npy file"),
    ],
)
def test_malformed_npy(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        load_bytes(tmp_path, "x.npy", content)
    assert str(tmp_path) in str(caught.value)


# npz


def test_npz_with_one_candidate(tmp_path):
    train = load_bytes(tmp_path, "x.npz", npz_bytes(x=IMAGES, y=np.arange(7)), test_fraction=0).train
    assert (train.rows.dtype, train.image_shape) == (np.uint8, (4, 3))
    np.testing.assert_array_equal(train.rows, IMAGES.reshape(7, 12))


def test_npz_with_its_own_split(tmp_path):
    content = npz_bytes(x_train=IMAGES, x_test=IMAGES[:2] // 255, y_train=np.zeros((7, 2)))
    split = load_bytes(tmp_path, "x.npz", content)
    np.testing.assert_array_equal(split.train.rows, IMAGES.reshape(7, 12))
    np.testing.assert_array_equal(split.test.rows, IMAGES[:2].reshape(2, 12) // 255)
    assert split.test.scale == split.train.scale == 1 / 255  # although the test rows alone look binary
    with pytest.raises(DataError, match="leave test_fraction out"):
        load(tmp_path / "x.npz", test_fraction=0.5)


def test_npz_with_training_rows_only_is_split(tmp_path):
    split = load_bytes(tmp_path, "x.npz", npz_bytes(x_train=ROWS, other=ROWS), test_fraction=0.3)
    assert (split.train.n_rows, split.test.n_rows) == (5, 2)


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_npz_of_csr(tmp_path, container, dtype):
    x = container(sp.random(20, 6, 0.3, random_state=3) * 9, dtype=dtype)
    sp.save_npz(tmp_path / "x.npz", x)
    split = load(tmp_path / "x.npz", test_fraction=0.25, seed=1)
    assert split.train.is_sparse
    assert split.train.rows.dtype == dtype
    assert (split.train.n_rows, split.test.n_rows) == (15, 5)
    together = sorted(np.vstack([split.train.rows.toarray(), split.test.rows.toarray()]).tolist())
    assert together == sorted(x.toarray().tolist())


def csr_bytes(**changes):
    parts = {"format": b"csr", "shape": (2, 3), "data": [1.0, 1.0], "indices": [0, 1], "indptr": [0, 1, 2]} | changes
    return npz_bytes(**{name: np.asarray(value) for name, value in parts.items()})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npz_bytes(a=ROWS, b=ROWS), r"holds a \(7, 5\), b \(7, 5\)"),
        (npz_bytes(y=np.arange(3)), r"holds y \(3,\)"),
        (npz_bytes(), "holds nothing"),
        (npz_bytes(x_train=ROWS, x_test=ROWS[:, :2]), "do not go with"),
        (npz_bytes(x_train=ROWS, x_test=ROWS.astype("f4")), "do not go with"),
        (npz_bytes(x=np.array([[None]])), "pickled"),
        (npz_bytes(x=ROWS)[:-30], "cannot be read"),
        (npz_bytes(x=ROWS)[:60] + b"\xff" * 20 + npz_bytes(x=ROWS)[80:], "cannot be read"),
        (lying_npz((1 << 20, 1 << 20)), "claims shape"),
        (lying_npz((1, 11)), "claims shape"),
        (csr_bytes(indices=[0, 3]), "cannot be read|names column"),
        (csr_bytes(indices=[0, 1, 1], indptr=[0, 1, 3], data=[1.0] * 3), "sum_duplicates"),
        (csr_bytes(indptr=[0, 1]), "cannot be read"),
        (csr_bytes(shape=(2, 0), data=[], indices=[], indptr=[0, 0, 0]), "empty"),
        (csr_bytes(format=b"csc"), "csc"),
        (csr_bytes(format=b"\xff"), "cannot be read|format"),
        (b"junk", "cannot be read"),
        (b"", "is empty"),
    ],
)
def test_malformed_npz(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        load_bytes(tmp_path, "x.npz", content)
    assert str(tmp_path) in str(caught.value)


# CSV


@pytest.mark.parametrize("head", ["", "a,b\n", "\ufeffa,b\r\n", "\n\n", '"height, cm","b"\n', "\ufeff"])
def test_csv(tmp_path, head):
    split = load_bytes(tmp_path, "x.csv", f"{head}1,2\n\n3.5, -4e2\n5,6".encode(), test_fraction=0)
    assert split.train.rows.dtype == np.float64
    np.testing.assert_array_equal(split.train.rows, [[1, 2], [3.5, -400], [5, 6]])


@pytest.mark.parametrize("text", ["1\n2\n", "a\n1\n2\n"])
def test_csv_of_one_column(tmp_path, text):
    np.testing.assert_array_equal(load_bytes(tmp_path, "x.csv", text.encode(), test_fraction=0).train.rows, [[1], [2]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2\n3\n", "line 2 has 1 cells.* 2"),
        ("a,b\n\n1,2\n1,2,3\n", "line 4 has 3 cells"),
        ("a,b,c\n1,2\n", "names 3 columns"),
        ("a,b\n1,2\n3,x\n", "line 3, column 2: 'x' is not a number; turn every column into numbers"),
        ("1,2\n,3\n", "line 2, column 1: '' is not a number; fill in what is missing"),
        ("1,b\n1,2\n", "line 1, column 2: 'b' is not a number"),
        ("a,b\nc,d\n", "line 2, column 1: 'c' is not a number"),
        ("a,b\n", "no rows"),
        ("\n \n", "no rows"),
        ("\ufeff", "no rows"),
        ("", "is empty"),
        ("1,2\n3,\x00\n", "line 2, column 2|cannot be read"),
        ("1;2\n3;4\n5,6\n", "line 2, column 1.*separate cells by commas, not ';'"),
    ],
)
def test_malformed_csv(tmp_path, text, words):
    with pytest.raises(DataError, match=words) as caught:
        load_bytes(tmp_path, "x.csv", text.encode())
    assert str(tmp_path / "x.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_in_csv_is_data_and_said_to_be(tmp_path):
    with pytest.warns(UserWarning, match="its first column has no name.*index=False"):
        split = load_bytes(tmp_path, "x.csv", b",a\n0,1.5\n1,2.5\n", test_fraction=0)
    np.testing.assert_array_equal(split.train.rows, [[0, 1.5], [1, 2.5]])


def test_csv_that_is_not_text(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read.*save it as UTF-8 text"):
        load_bytes(tmp_path, "x.csv", b"\xff\xfe1\x00")


@pytest.mark.parametrize("name", ["x.idx", "x.npy", "x.npz", "x.csv", "x.mat"])
def test_files_that_may_not_be_read(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for opener in ("pathlib.Path.open", "builtins.open", "io.open"):
        monkeypatch.setattr(opener, refuse)
    path = tmp_path / name
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"cannot be read.*Permission denied.*check its permissions"):
        load(path)
