"""The container of datapoints, and the way into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastvae.arguments import check_image_shape, positive
from fastvae.data.arrays import check_shape, converted, dense_array, on_host, storage_dtype
from fastvae.data.sparse import csr_rows, is_scipy_sparse
from fastvae.errors import DataError, one_line

if TYPE_CHECKING:
    from scipy.sparse import csr_array, csr_matrix

    Rows: TypeAlias = NDArray[Any] | csr_matrix | csr_array

__all__ = ["Dataset", "as_dataset", "value_blocks"]

GREY_SCALE = 1 / 255

# Checks walk through the data in blocks of this many values, so that their temporaries stay below a few MB.
BLOCK_VALUES = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Datapoints in the dtype they were stored in, with the factor that makes them what the model sees.

    Build one with `as_dataset` or `fastvae.data.load`, which check the arrays; the constructor itself does not.

    Attributes
    ----------
    rows : ndarray, scipy.sparse CSR or CuPy array, shape (N, D)
        One datapoint per row: uint8, float32 or float64, C-contiguous and in native byte order. A CSR matrix has
        sorted column indices without duplicates. An array of CuPy lies on a device, for the backend cuda.
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
    source_dtype : dtype or None
        What the source held; None if just what `rows` hold.
    """

    rows: Rows = dataclasses.field(repr=False)
    scale: float
    name: str = "array"
    image_shape: tuple[int, int] | None = None
    origins: Sequence[int] | NDArray[np.int64] | None = dataclasses.field(default=None, repr=False)
    from_text: bool = False
    source_dtype: np.dtype[Any] | None = None

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
        return hasattr(self.rows, "indptr")

    @property
    def is_on_device(self) -> bool:
        """Whether the rows are CuPy's, in the memory of a CUDA device."""
        return not self.is_sparse and not isinstance(self.rows, np.ndarray)

    @property
    def is_integer(self) -> bool:
        """Whether the source held integers or booleans, such as grey levels."""
        return (self.rows.dtype if self.source_dtype is None else self.source_dtype).kind in "biu"

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
        if not self.is_sparse and not rows.flags.c_contiguous:
            rows = rows.copy() if self.is_on_device else np.ascontiguousarray(rows)
        origins = range(self.n_rows) if self.origins is None else self.origins
        chosen = origins[picked] if isinstance(picked, slice) else np.asarray(origins)[picked]
        return dataclasses.replace(self, rows=rows, origins=chosen)

    def dense(self) -> NDArray[Any]:
        """Return the rows as they are stored; a CSR matrix, and an array on a device, as a copy."""
        rows: Any = self.rows
        return on_host(rows.toarray() if self.is_sparse else rows)

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
    """Wrap an array as a `Dataset`, without a copy where that can be, else with one.

    Not copied are C-contiguous arrays of uint8, bool (viewed as uint8), float32 and float64, and CSR matrices of these
    with sorted columns; also where they are memory-mapped, torch's or CuPy's. What else holds numbers is copied once,
    into C order and, for other dtypes, into floats: float32 if that holds every value (float16, int8, int16, uint16),
    else float64. Such integers are taken as they are, not for grey levels.

    Parameters
    ----------
    x : array, shape (N, D)
        An ndarray; a data frame of pandas or polars; a matrix or array of scipy.sparse, of any format; a list of rows;
        a tensor of torch on the CPU, or anything else that NumPy makes an array of or that has DLPack. For the backend
        cuda also an array on the device, of CuPy, torch, or with ``__cuda_array_interface__`` or DLPack, which stays
        there.
    scale : float, optional
        The model sees x * scale. By default 1.0, but 1/255 for uint8 when some value exceeds 1 (grey levels). Give the
        training set's scale for further data of the same kind, so that a batch that happens to be dark is not taken
        for a binary one.
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
        The shape is not (N, D); the array lies on a device and CuPy is not there; it is memory-mapped and would have to
        be copied; or a CSR matrix is damaged or has a column twice in a row. The message names the mend.
    DataTypeError
        The values are no real numbers.
    ValueError
        `scale` is not a positive finite number, or `image_shape` does not fit the number of columns.
    """
    if scale is not None:
        scale = positive("scale", scale)
    if hasattr(x, "sparse") and hasattr(x.sparse, "to_coo"):  # a frame of pandas with sparse columns alone
        try:
            x = x.sparse.to_coo()
        except ValueError as error:
            raise DataError(f"{name}: {one_line(error)}; give x.sparse.to_dense()") from error
    if is_scipy_sparse(x):
        source_dtype, rows = x.dtype, csr_rows(x, name)
    else:
        array = dense_array(x, name)
        check_shape(array.shape, name)
        source_dtype, dtype = array.dtype, storage_dtype(array.dtype, name)
        rows = converted(array.view(np.uint8) if source_dtype == np.bool_ else array, dtype, name)
    n_columns = rows.shape[1]
    if image_shape is not None:
        image_shape = check_image_shape(image_shape, n_columns)
    if scale is None:
        scale = GREY_SCALE if rows.dtype == np.uint8 and _any_above_one(rows) else 1.0
    return Dataset(rows, scale, name, image_shape, source_dtype=source_dtype)


def _any_above_one(rows: Any) -> bool:
    """Whether some value of uint8 data exceeds 1; reads no further than the first block that has one."""
    return any(block.max(initial=0) > 1 for _, block in value_blocks(rows))


def value_blocks(rows: Any) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (position of the first value, values): blocks of rows, or of the stored entries of a CSR matrix."""
    values = rows.data if hasattr(rows, "indptr") else rows
    width = values.shape[1] if values.ndim == 2 else 1
    step = max(1, BLOCK_VALUES // width)
    for start in range(0, len(values), step):
        yield start * width, on_host(values[start : start + step])
