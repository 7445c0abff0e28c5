"""Reads the rows of a Parquet file as plain Python values. pyarrow (extra "parquet") is imported on use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tuneport.core.data.json_rows import JsonFault
from tuneport.core.errors import DataError, MissingExtraError

_BATCH_ROWS = 256


def parquet_rows(path: str) -> Iterator[tuple[int, dict[str, Any] | JsonFault]]:
    """(row number, row or fault). NaN in a column of numbers means missing there (pandas writes it so) and becomes None.

    Raises DataError on a damaged file, MissingExtraError without pyarrow.
    """
    try:
        import pyarrow  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(f"{path} is a Parquet file, which needs pyarrow", "parquet") from error

    def damaged(error: Exception) -> DataError:
        return DataError(f"{path} is a damaged Parquet file ({str(error).splitlines()[0][:200]})", fix="write it again")

    broken = (pyarrow.ArrowException, ValueError, KeyError, TypeError, NotImplementedError, OverflowError, MemoryError)
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise DataError(f"{path} has two columns of one name", fix="give every column its own name")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for at in range(batch.num_rows):
                    row += 1
                    yield row, _row(batch, at)
    except OSError as error:
        raise damaged(error) from error
    except broken as error:
        raise damaged(error) from error


def _row(batch: Any, at: int) -> dict[str, Any] | JsonFault:
    try:
        values = batch.slice(at, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return JsonFault("bytes that are not UTF-8", "UTF-8 text")
    except (ValueError, OverflowError, TypeError) as error:  # e.g. a time that Python cannot hold
        return JsonFault(str(error)[:120], "values that Python can hold")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            if math.isinf(value):
                return JsonFault(f"an infinite number in {name!r}", "a finite number")
            values[name] = None
    return dict(values)
