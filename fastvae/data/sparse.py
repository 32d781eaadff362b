"""SciPy's sparse matrices on their way into a `Dataset`, as CSR."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastvae.data.arrays import check_shape, converted, refuse_mapped, storage_dtype
from fastvae.errors import DataError, one_line

__all__ = ["csr_rows", "is_scipy_sparse"]

# Entries whose order is looked at together.
_BLOCK_ENTRIES = 1 << 18


def is_scipy_sparse(x: Any) -> bool:
    """Return whether something is a sparse matrix or array of SciPy, without importing that for what is not."""
    # Whoever made a sparse matrix has imported scipy.sparse.
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(x))


def csr_rows(x: Any, name: str) -> Any:
    """Return a sparse matrix as CSR of a storage dtype with sorted column indices; as it is where it is that.

    Raises
    ------
    DataError
        Its arrays do not fit together, a row holds a column twice, or it is mapped and would have to be copied.
    """
    check_shape(x.shape, name)
    dtype = storage_dtype(x.dtype, name)
    if x.format != "csr":
        x = _to_csr(x, name)
    _check_structure(x, name)
    x = _in_order(x, name)
    values = converted(x.data.view(np.uint8) if x.dtype == np.bool_ else x.data, dtype, name)
    indices, indptr = (converted(part, part.dtype, name) for part in (x.indices, x.indptr))
    if values is x.data and indices is x.indices and indptr is x.indptr:
        return x
    return type(x)((values, indices, indptr), shape=x.shape, copy=False)


def _to_csr(x: Any, name: str) -> Any:
    if hasattr(x, "check_format"):
        try:
            x.check_format(full_check=True)  # tocsr() would follow any index
        except (ValueError, TypeError) as error:
            raise DataError(f"{name}: damaged {x.format.upper()} matrix: {one_line(error)}; rebuild it") from error
    return x.tocsr()


def _check_structure(x: Any, name: str) -> None:
    """Check indptr and the range of the column indices."""
    indptr, indices = x.indptr, x.indices
    n_rows, n_columns = x.shape
    if indptr.shape != (n_rows + 1,) or indptr[0] != 0 or np.any(indptr[1:] < indptr[:-1]):
        raise DataError(f"{name}: damaged CSR matrix: indptr must hold {n_rows + 1} offsets that start at 0 and rise")
    if not indptr[-1] == indices.size == x.data.size:
        raise DataError(
            f"{name}: CSR arrays disagree: indptr ends at {indptr[-1]} for {indices.size} indices and {x.data.size} "
            "values; x.prune() if the arrays are only too long"
        )
    if indices.size and (indices.min() < 0 or indices.max() >= n_columns):
        entry = int(np.flatnonzero((indices < 0) | (indices >= n_columns))[0])
        raise DataError(
            f"{name}: damaged CSR matrix: row {_row_of(entry, indptr)} names column {indices[entry]} of {n_columns}; "
            "rebuild the matrix"
        )


def _in_order(x: Any, name: str) -> Any:
    """Return the matrix with each row's column indices in order."""
    entry = _first_fall(x)
    if entry is not None and x.indices[entry] != x.indices[entry - 1]:
        refuse_mapped(x.data, "in CSR with columns out of order", name)
        x = x.sorted_indices()
        entry = _first_fall(x)
    if entry is not None:
        # Summing them may overflow, and is not the only thing that they may mean.
        row = _row_of(entry, x.indptr)
        raise DataError(f"{name}: row {row} holds column {x.indices[entry]} twice; x.sum_duplicates() mends it")
    return x


def _first_fall(x: Any) -> int | None:
    """Return the first entry whose column does not lie beyond that of the entry before it in its row."""
    indptr, indices = x.indptr, x.indices
    for start in range(0, indices.size - 1, _BLOCK_ENTRIES):
        block = indices[start : start + _BLOCK_ENTRIES + 1]
        entries = np.flatnonzero(block[1:] <= block[:-1]) + start + 1
        # A column may fall back only where the next row starts.
        entries = entries[indptr[np.searchsorted(indptr, entries)] != entries]
        if entries.size:
            return int(entries[0])
    return None


def _row_of(entry: int, indptr: Any) -> int:
    return int(np.searchsorted(indptr, entry, side="right")) - 1
