"""Rows of single episodes out of parquet files that may hold many."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NUMBER = "episode_index"


class TableReader:
    """Reads the columns that are asked for of one episode. The row groups that were read last stay
    in memory, because neighbours in a file are usually asked for one after the other.

    Raises:
        ValueError: a file is missing, cut off, or lacks a column; the message names it.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._table = pa.table({})
        self._texts: tuple[Path | None, dict[int, dict[str, Any]]] = (None, {})

    def episode(self, file: Path, number: int, columns: Sequence[str]) -> pa.Table:
        """The rows of episode ``number`` in their order; none where the file does not have it."""
        try:
            with pq.ParquetFile(file) as source:
                groups = _groups_with(source, number)
                key = (file, tuple(groups), tuple(columns))
                if key != self._key:
                    table = source.read_row_groups(groups, columns=[NUMBER, *columns])
                    self._table, self._key = table.select([NUMBER, *columns]), key
        except (OSError, KeyError, pa.ArrowException) as error:
            raise _damaged(file, error) from error
        return self._table.filter(pc.field(NUMBER) == number)

    def first_row(self, file: Path, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """The first row of an episode: for texts that are equal in all of its rows."""
        if self._texts[0] != file:
            self._texts = (file, _first_rows(file, columns))
        return self._texts[1].get(number, {})


def _groups_with(source: pq.ParquetFile, number: int) -> list[int]:
    """Row groups that may hold an episode, by the statistics of the file's footer."""
    meta = source.metadata
    column = source.schema_arrow.names.index(NUMBER) if NUMBER in source.schema_arrow.names else -1
    if column < 0:
        raise KeyError(NUMBER)
    paths = [meta.schema.column(leaf).path for leaf in range(len(meta.schema))]
    leaf = paths.index(NUMBER)
    ranges = [meta.row_group(group).column(leaf).statistics for group in range(meta.num_row_groups)]
    return [
        group
        for group, found in enumerate(ranges)
        if found is None or not found.has_min_max or found.min <= number <= found.max
    ]


def _first_rows(file: Path, columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    try:
        table = pq.read_table(file, columns=[NUMBER, *columns], read_dictionary=list(columns))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _damaged(file, error) from error
    numbers = table[NUMBER].to_numpy()
    first = [row for row in range(len(numbers)) if row == 0 or numbers[row] != numbers[row - 1]]
    return {row[NUMBER]: row for row in table.take(first).to_pylist()}


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} is missing, cut off or without a column that its dataset has ({error}): copy it "
        "again; the other files' episodes are used"
    )
