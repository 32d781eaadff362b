"""The container of datapoints, and the checks of shape, dtype and structure on the way into it."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastvae.arguments import positive
from fastvae.errors import DataError, one_line

if TYPE_CHECKING:
    from scipy.sparse import csr_array, csr_matrix

    Rows: TypeAlias = NDArray[Any] | csr_matrix | csr_array

__all__ = ["Dataset", "as_dataset", "require_contiguous", "value_blocks"]

STORAGE_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
GREY_SCALE = 1 / 255

# Checks walk through the data in blocks of this many values, so that their temporaries stay below a few MB.
BLOCK_VALUES = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Datapoints in the dtype they were stored in, with the factor that makes them what the model sees.

    Build one with `as_dataset` or `fastvae.data.load`, which check the arrays; the constructor itself does not.

    Attributes
    ----------
    rows : ndarray or scipy.sparse CSR, shape (N, D)
        One datapoint per row: uint8, float32 or float64, C-contiguous and in native byte order. A CSR matrix has
        sorted column indices without duplicates.
    scale : float
        The model sees x = rows * scale: 1/255 for grey levels, 1.0 for floats and for binary uint8.
    name : str
        Where the rows came from; it stands in front of error messages.
    image_shape : tuple of int or None
        (height, width) when each row is an image in row-major order, height * width = D.
    origins : sequence of int or None
        Where each row stands in its source, by which error messages name it; None for the rows of the source in order.
    from_text : bool
        Whether `origins` are lines of a text file. Those and their columns count from 1, all else counts from 0.
    """

    rows: Rows = dataclasses.field(repr=False)
    scale: float
    name: str = "array"
    image_shape: tuple[int, int] | None = None
    origins: Sequence[int] | NDArray[np.int64] | None = dataclasses.field(default=None, repr=False)
    from_text: bool = False

    @property
    def n_rows(self) -> int:
        """Number of datapoints N."""
        return int(self.rows.shape[0])

    @property
    def data_dim(self) -> int:
        """Number of columns D."""
        return int(self.rows.shape[1])

    @property
    def is_sparse(self) -> bool:
        """Whether the rows are a scipy CSR matrix."""
        return not isinstance(self.rows, np.ndarray)

    @property
    def is_mapped(self) -> bool:
        """Whether the rows stay in a file that is mapped into memory."""
        return isinstance(self.rows, np.memmap)

    def select(self, index: slice | NDArray[Any] | list[int]) -> Dataset:
        """Return the dataset of some rows.

        Parameters
        ----------
        index : slice, or 1-D array of integers or booleans
            The rows to take. A slice with step 1 of a dense array is a view; anything else copies the rows taken.

        Returns
        -------
        Dataset
            The same scale, name and image shape, and of each row its place in the source.

        Raises
        ------
        DataError
            No row is selected.
        IndexError
            An index is out of range.
        """
        picked = index if isinstance(index, slice) else np.asarray(index)
        if isinstance(picked, np.ndarray) and picked.ndim != 1:
            raise ValueError(f"index must be a slice or a 1-D array, got {picked.ndim} dimensions")
        rows = self.rows[picked]
        if rows.shape[0] == 0:
            raise DataError(f"{self.name}: the selection takes none of the {self.n_rows} rows")
        if isinstance(rows, np.ndarray) and not rows.flags.c_contiguous:
            rows = np.ascontiguousarray(rows)
        origins = range(self.n_rows) if self.origins is None else self.origins
        chosen = origins[picked] if isinstance(picked, slice) else np.asarray(origins)[picked]
        return dataclasses.replace(self, rows=rows, origins=chosen)

    def dense(self) -> NDArray[Any]:
        """Return the rows as they are stored, a CSR matrix as a dense copy."""
        rows: Any = self.rows
        stored: NDArray[Any] = rows.toarray() if self.is_sparse else rows
        return stored

    def as_seen(self) -> NDArray[np.float32]:
        """Return the rows as the model sees them, ``rows * scale``: a dense copy in float32."""
        return np.asarray(self.dense(), np.float32) * np.float32(self.scale)

    def place(self, row: int, column: int) -> str:
        """Name a value by where it stands in the source."""
        origin = row if self.origins is None else self.origins[row]
        return f"line {origin}, column {column + 1}" if self.from_text else f"row {origin}, column {column}"


def as_dataset(
    x: Any, *, scale: float | None = None, name: str = "array", image_shape: tuple[int, int] | None = None
) -> Dataset:
    """Wrap an array in memory as a `Dataset`, without a copy and without a change of dtype.

    Parameters
    ----------
    x : array, shape (N, D)
        An ndarray of uint8, bool (viewed as uint8), float32 or float64; a scipy CSR matrix or array of these; or a
        list of rows, which becomes float64. Dense arrays must be C-contiguous, everything in native byte order.
    scale : float, optional
        The model sees x * scale. By default 1.0 for floats and bool; for uint8 1/255 when some value exceeds 1 (grey
        levels), else 1.0 (binary). Give the training set's scale for further data of the same kind, so that a batch
        that happens to be dark is not taken for a binary one.
    name : str
        What error messages call the data.
    image_shape : tuple of int, optional
        (height, width) when the rows are images.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        The shape, dtype, memory order or sparse structure is not one of the above; the message names the mend.
    ValueError
        `scale` is not a positive finite number, or `image_shape` does not fit the number of columns.
    """
    if scale is not None:
        scale = positive("scale", scale)
    rows = _checked_csr(x, name) if _is_scipy_sparse(x) else _checked_dense(x, name)
    n_columns = rows.shape[1]
    if image_shape is not None:
        if math.prod(image_shape) != n_columns or len(image_shape) != 2 or min(image_shape) < 1:
            raise ValueError(f"image_shape {image_shape} does not fit rows of {n_columns} columns")
        image_shape = (int(image_shape[0]), int(image_shape[1]))
    if scale is None:
        scale = GREY_SCALE if rows.dtype == np.uint8 and _any_above_one(rows) else 1.0
    return Dataset(rows, scale, name, image_shape)


def require_contiguous(array: NDArray[Any], name: str, mend: str = "np.ascontiguousarray(x)") -> None:
    """Raise a `DataError` unless a dense array is C-contiguous: a copy is the caller's decision."""
    if not array.flags.c_contiguous:
        raise DataError(
            f"{name}: the array is not C-contiguous (Fortran order or a strided view); make the copy with {mend}"
        )


def _is_scipy_sparse(x: Any) -> bool:
    # Whoever made a sparse matrix has imported scipy.sparse; so this never imports it for dense data.
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(x))


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) == 1:
        hint = "x.reshape(-1, 1) for one column per datapoint, x.reshape(1, -1) for a single datapoint"
    elif len(shape) == 3:
        hint = f"x.reshape({shape[0]}, {shape[1] * shape[2]}) and image_shape=({shape[1]}, {shape[2]}) for images"
    else:
        hint = "x.reshape(n_rows, -1)"
    if len(shape) != 2:
        raise DataError(
            f"{name}: data must be 2-D, one datapoint per row, got shape {shape}. Reshape your data: {hint}"
        )
    for length, kind in zip(shape, ("sample", "feature"), strict=True):
        if length == 0:
            raise DataError(
                f"{name}: the data are empty: 0 {kind}(s) (shape={shape}) while a minimum of 1 is required."
            )


def _checked_dtype(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the values as uint8, float32 or float64 (bool by a view), or raise naming the mend."""
    dtype = array.dtype
    if dtype == np.bool_:
        return array.view(np.uint8)
    if not dtype.isnative:
        raise DataError(f"{name}: the byte order of {dtype.str} is foreign; use x.astype(x.dtype.newbyteorder('='))")
    if dtype in STORAGE_DTYPES:
        return array
    mend = "x.astype(np.float32)"
    if dtype.kind in "iu":
        mend += ", or x.astype(np.uint8) for grey levels 0..255 and binary data"
    elif dtype.kind == "c":
        mend = "Complex data not supported; take x.real, x.imag or both as columns"
    elif dtype.kind != "f":
        mend = "turn every column into numbers, then " + mend
    raise DataError(f"{name}: dtype {dtype} is not one of uint8, bool, float32, float64; {mend}")


def _checked_dense(x: Any, name: str) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        raise DataError(f"{name}: masked arrays are not supported; fill the gaps with x.filled(value)")
    try:
        array = np.asarray(x, dtype=np.float64) if isinstance(x, (list, tuple)) else np.asanyarray(x)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: not an array of numbers with rows of equal length ({one_line(error)})") from error
    if not isinstance(array, np.memmap):
        array = np.asarray(array)
    _check_shape(array.shape, name)
    is_frame = hasattr(x, "to_numpy")
    array = _checked_dtype(array, name)
    require_contiguous(array, name, f"np.ascontiguousarray({'x.to_numpy(np.float32)' if is_frame else 'x'})")
    return array


def _checked_csr(x: Any, name: str) -> Any:
    if x.format != "csr":
        raise DataError(f"{name}: sparse data must be CSR, got {x.format}; use x.tocsr()")
    _check_shape(x.shape, name)
    _check_csr_structure(x, name)
    values = _checked_dtype(x.data, name)
    if values is not x.data:
        return type(x)((values, x.indices, x.indptr), shape=x.shape, copy=False)
    return x


def _check_csr_structure(x: Any, name: str) -> None:
    """Check indptr, then the range and the strict order of the column indices within each row."""
    indptr, indices = x.indptr, x.indices
    n_rows, n_columns = x.shape
    for part in (x.data, indices, indptr):
        require_contiguous(part, name)
    if indptr.shape != (n_rows + 1,) or indptr[0] != 0 or np.any(indptr[1:] < indptr[:-1]):
        raise DataError(f"{name}: damaged CSR matrix: indptr must hold {n_rows + 1} offsets that start at 0 and rise")
    if not indptr[-1] == indices.size == x.data.size:
        raise DataError(
            f"{name}: CSR arrays disagree: indptr ends at {indptr[-1]} for {indices.size} indices and {x.data.size} "
            "values; x.prune() if the arrays are only too long"
        )
    if indices.size and (indices.min() < 0 or indices.max() >= n_columns):
        entry = int(np.flatnonzero((indices < 0) | (indices >= n_columns))[0])
        row = int(np.searchsorted(indptr, entry, side="right")) - 1
        raise DataError(
            f"{name}: damaged CSR matrix: row {row} names column {indices[entry]} of {n_columns}; rebuild the matrix"
        )
    for start in range(0, indices.size - 1, BLOCK_VALUES):
        block = indices[start : start + BLOCK_VALUES + 1]
        entries = np.flatnonzero(block[1:] <= block[:-1]) + start + 1
        # A column may fall back only where the next row starts.
        entries = entries[indptr[np.searchsorted(indptr, entries)] != entries]
        if entries.size:
            entry = int(entries[0])
            row = int(np.searchsorted(indptr, entry, side="right")) - 1
            if indices[entry] == indices[entry - 1]:
                raise DataError(f"{name}: row {row} holds column {indices[entry]} twice; x.sum_duplicates() mends it")
            raise DataError(f"{name}: the columns of row {row} are not in order; x.sort_indices() mends it")


def _any_above_one(rows: Any) -> bool:
    """Whether some value of uint8 data exceeds 1; reads no further than the first block that has one."""
    return any(block.max(initial=0) > 1 for _, block in value_blocks(rows))


def value_blocks(rows: Any) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (position of the first value, values): blocks of rows, or of the stored entries of a CSR matrix."""
    values = rows if isinstance(rows, np.ndarray) else rows.data
    width = values.shape[1] if values.ndim == 2 else 1
    step = max(1, BLOCK_VALUES // width)
    for start in range(0, len(values), step):
        yield start * width, values[start : start + step]
