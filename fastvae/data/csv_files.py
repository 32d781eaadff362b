"""Reader of CSV files."""

from __future__ import annotations

import csv
import warnings
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fastvae.data.content import Content, unreadable
from fastvae.errors import DataError

__all__ = ["read_csv"]


def read_csv(path: Path) -> Content:
    """Read comma-separated numbers as float64, one datapoint per line.

    A first line in which no cell is a number is a header and is left out; blank lines are skipped.

    Parameters
    ----------
    path : Path
        UTF-8 text.

    Returns
    -------
    Content

    Raises
    ------
    DataError
        There is no row, a row is shorter or longer than the first, or a cell is not a number; the message names the
        line and column, counted from 1.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines: Iterator[str] = (line for line in stream if line.strip())
            first = next(csv.reader(lines), [])
            is_header = bool(first) and not any(_is_number(cell) for cell in first)
            if (not first or is_header) and next(lines, None) is None:
                raise DataError(f"{path}: no rows of numbers in it")
            stream.seek(0)
            numbers = array("q")
            lines = _numbered(stream, numbers)
            if is_header:
                next(lines)
            rows = np.loadtxt(lines, delimiter=",", dtype=np.float64, ndmin=2, comments=None, quotechar='"')
    except DataError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise _csv_error(path, error) from error
    if is_header and not first[0].strip():
        warnings.warn(
            f"{path}: its first column has no name; an index that pandas wrote is data like any other column, "
            "write the file with index=False to leave it out",
            stacklevel=2,
        )
    if is_header and len(first) != rows.shape[1]:
        raise DataError(f"{path}: its header names {len(first)} columns, but its rows have {rows.shape[1]}")
    # A cell with a line break in quotes makes a row of several lines; rows are then named by their order.
    origins = np.array(numbers[is_header:], np.int64)
    return Content(rows, lines=origins if len(origins) == len(rows) else None)


def _numbered(stream: Iterable[str], numbers: array[int]) -> Iterator[str]:
    """Yield the lines that are not blank, and note their numbers."""
    for number, line in enumerate(stream, 1):
        if line.strip():
            numbers.append(number)
            yield line


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv_error(path: Path, cause: BaseException) -> DataError:
    """Say which line and column of a CSV file is at fault; numpy's own message counts neither header nor blanks."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            n_columns = 0
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                bad = [column for column, cell in enumerate(cells, 1) if not _is_number(cell)]
                if bad and (n_columns or len(bad) < len(cells)):
                    cell = cells[bad[0] - 1]
                    mend = next((f"; separate cells by commas, not {mark!r}" for mark in ";\t" if mark in cell), None)
                    if mend is None:
                        mend = "; turn every column into numbers" if cell.strip() else "; fill in what is missing"
                    return DataError(f"{path}: line {reader.line_num}, column {bad[0]}: {cell!r} is not a number{mend}")
                if n_columns and len(cells) != n_columns:
                    return DataError(
                        f"{path}: line {reader.line_num} has {len(cells)} cells, but the lines before it {n_columns}"
                    )
                n_columns = len(cells)
    except (ValueError, OSError, csv.Error) as error:
        return unreadable(path, error)
    return unreadable(path, cause)
