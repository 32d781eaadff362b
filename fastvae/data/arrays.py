"""Arrays of any kind on their way into a `Dataset`: taken as they lie where that can be, else converted by one copy."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae import backends
from fastvae.errors import DataError, DataTypeError, one_line

__all__ = ["check_shape", "converted", "dense_array", "is_on_device", "on_host", "refuse_mapped", "storage_dtype"]

STORAGE_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
# DLPack's device types of memory that the processor reads: its own, and pinned for CUDA or ROCm.
_HOST_DEVICES = (1, 3, 11)


def is_on_device(x: Any) -> bool:
    """Return whether an array lies in the memory of a GPU or the like, by DLPack or the CUDA array interface."""
    if hasattr(x, "__dlpack_device__"):
        try:
            return x.__dlpack_device__()[0] not in _HOST_DEVICES
        except (ValueError, BufferError):  # nowhere, or on several: for whoever reads the array to judge
            return False
    return hasattr(x, "__cuda_array_interface__")


def on_host(block: Any) -> NDArray[Any]:
    """Return a part of a dataset's values as an ndarray, copied if it lies on a device."""
    array: NDArray[Any] = block if isinstance(block, np.ndarray) else block.get()
    return array


def dense_array(x: Any, name: str) -> Any:
    """Return whatever holds an array as an ndarray, or as CuPy's if on a device; without a copy where that can be.

    Raises
    ------
    DataError
        It is neither, or a masked array.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise DataError(f"{name}: masked arrays are not supported; fill the gaps with x.filled(value)")
    if isinstance(x, str | os.PathLike):
        path = os.fspath(x)
        raise DataTypeError(f"{name}: {path!r} is a name, not an array; give fastvae.data.load({path!r}).train")
    try:
        if is_on_device(x):
            return _cupy_array(x, name)
        if isinstance(x, np.memmap):
            return x
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.from_dlpack(x)
        if hasattr(x, "iloc") and _has_nullable_numbers(x):  # NumPy makes objects of them
            return x.to_numpy(np.float64, na_value=np.nan)
        return np.asarray(x)
    except DataError:
        raise
    except (TypeError, ValueError, RuntimeError, BufferError) as error:  # torch's say detach(), float() or to_dense()
        raise DataError(f"{name}: not an array of numbers with rows of equal length ({one_line(error)})") from error


def _has_nullable_numbers(frame: Any) -> bool:
    """Return whether pandas' columns are all numbers and some of them, as of Int64 or boolean, may have NA."""
    dtypes = [*frame.dtypes] if frame.ndim == 2 else []
    return all(dtype.kind in "biuf" for dtype in dtypes) and any(hasattr(dtype, "numpy_dtype") for dtype in dtypes)


def _cupy_array(x: Any, name: str) -> Any:
    if reason := backends.unavailable("cuda"):
        raise DataError(f"{name}: the array lies on a device: take x.get() (CuPy) or x.cpu() (torch), as {reason}")
    import cupy

    return cupy.asarray(x) if hasattr(x, "__cuda_array_interface__") else cupy.from_dlpack(x)


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raise a `DataError` unless the shape is (N, D), neither of them 0."""
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


def storage_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Return which of uint8, float32 and float64 values of a dtype are kept in.

    Raises
    ------
    DataTypeError
        They are no real numbers.
    """
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    native = dtype.newbyteorder("=")
    if native in STORAGE_DTYPES:
        return native
    if dtype.kind in "iuf":  # float32 where it holds every value, as for float16 and the integers of 16 bits
        return np.dtype(np.float32 if np.can_cast(native, np.float32) else np.float64)
    if dtype.kind == "O":
        return np.dtype(np.float64)
    mend = "turn every column into numbers"
    if dtype.kind == "c":
        mend = "Complex data not supported; take x.real, x.imag or both as columns"
    raise DataTypeError(f"{name}: values of dtype {dtype} are no real numbers; {mend}")


def converted(array: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return an array as it is if it is C-contiguous and of a dtype, else a copy that is, where the array lies.

    Raises
    ------
    DataError
        It is memory-mapped, so that there may be no room for a copy, or an object in it is no number.
    """
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    refuse_mapped(array, f"of dtype {array.dtype}" if array.dtype != dtype else "not C-contiguous", name)
    if not isinstance(array, np.ndarray):
        import cupy

        return cupy.ascontiguousarray(array, dtype)
    try:
        with np.errstate(over="ignore"):  # check_values names the value
            return np.ascontiguousarray(array, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        kind = DataTypeError if isinstance(error, TypeError) else DataError
        raise kind(
            f"{name}: a value is no number ({one_line(error)}); turn every column into numbers, fill in missing values"
        ) from error


def refuse_mapped(array: Any, why: str, name: str) -> None:
    """Raise a `DataError` if an array is memory-mapped: whether there is room for a copy is the caller's to know."""
    if isinstance(array, np.memmap):
        raise DataError(
            f"{name}: the memory-mapped array is {why}, and would have to be copied into memory; write the file once "
            "with np.save(file, np.ascontiguousarray(x, np.float32)), or np.uint8 for grey levels"
        )
