"""Compares the decisions and scores of two outputs of the same input, of any two versions.

    python -m benchmarks.compare_outputs OLD NEW [tolerance=0]

Videos are matched by their path, clips by their clip_id. Names of version 0.1.0 are mapped to
today's, also in reasons. Prints a line per column that differs; exit code 1 if there is one.
Columns of time and of CPU use are not compared: they differ between equal runs.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from annotated_types import Ge

from curation.cli import Arguments, run_command
from curation.progress import printable
from curation.renames import COLUMNS
from curation.urls import InputError

TABLES = {"videos": "video", "clips": "clip_id"}  # and what identifies a row
NOT_COMPARED = ("cpu_s", "version", "weights")
EXAMPLE_CHARS = 60
_OLD_NAME = re.compile(rf"\b({'|'.join(COLUMNS)})\b")

Row = dict[str, Any]


@dataclass
class CompareSettings:
    tolerance: Annotated[float, Ge(0)] = 0.0  # between numbers; 0: exactly equal


@dataclass(frozen=True)
class Difference:
    """A column in which rows differ, or a row that one side lacks."""

    table: str
    column: str
    rows: int
    largest: float | None  # difference of numbers
    example: str

    def __str__(self) -> str:
        largest = "" if self.largest is None else f"{self.largest:.3g}"
        return f"{self.table:8}{self.column:26}{self.rows:6}  {largest:>10}  {self.example}"


def read_rows(out: Path, table: str) -> dict[str, Row]:
    """Rows by their key, with today's names."""
    path = out / f"{table}.parquet"
    try:
        rows = pq.read_table(path).to_pylist(maps_as_pydicts="strict")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error}; expected a finished output") from None
    renamed = [_with_new_names(row) for row in rows]
    return {row[TABLES[table]]: row for row in renamed}


def _with_new_names(value: Any, column: str = "") -> Any:
    """The value with present names of columns: as keys, and in the texts of reasons."""
    if isinstance(value, dict):
        names = {key: COLUMNS.get(key, key) for key in value}
        inside = "reason" if column == "null_reasons" else ""
        return {name: _with_new_names(value[key], inside or name) for key, name in names.items()}
    if isinstance(value, list):
        return [_with_new_names(item, column) for item in value]
    if isinstance(value, str) and column in ("reason", "reasons", "prefilter"):
        text = _OLD_NAME.sub(lambda match: COLUMNS[match[1]], value)
        return text.replace("below the prefilter: ", "failed the prefilter: ")
    return value


def compare(old: Path, new: Path, tolerance: float = 0.0) -> list[Difference]:
    """Every difference, in order of table and column. Raises InputError."""
    found = []
    for table in TABLES:
        a, b = read_rows(old, table), read_rows(new, table)
        for side, only in (("OLD", a.keys() - b.keys()), ("NEW", b.keys() - a.keys())):
            if only:
                found.append(Difference(table, f"only in {side}", len(only), None, min(only)))
        both = sorted(a.keys() & b.keys())
        columns = dict.fromkeys(name for rows in (a, b) for row in rows.values() for name in row)
        for column in columns:
            if column not in NOT_COMPARED:
                pairs = [(key, a[key].get(column), b[key].get(column)) for key in both]
                found += _differences(table, column, pairs, tolerance)
    return found


def _differences(
    table: str, column: str, pairs: list[tuple[str, Any, Any]], tolerance: float
) -> Iterator[Difference]:
    unequal = [(key, x, y) for key, x, y in pairs if not equal(x, y, tolerance)]
    if unequal:
        numbers = [abs(x - y) for _, x, y in unequal if _are_numbers(x, y)]
        key, x, y = unequal[0]
        example = (
            f"{printable(key, 24)}: {printable(x, EXAMPLE_CHARS)} -> {printable(y, EXAMPLE_CHARS)}"
        )
        yield Difference(table, column, len(unequal), max(numbers, default=None), example)


def equal(x: Any, y: Any, tolerance: float) -> bool:
    """Whether two values are equal, numbers in them within the tolerance."""
    if _are_numbers(x, y):
        return x == y or abs(x - y) <= tolerance or (math.isnan(x) and math.isnan(y))
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(equal(*pair, tolerance) for pair in zip(x, y, strict=True))
    if isinstance(x, dict) and isinstance(y, dict):
        return all(equal(x.get(key), y.get(key), tolerance) for key in x.keys() | y.keys())
    return bool(x == y)


def _are_numbers(x: Any, y: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in (x, y))


def work(given: Arguments[CompareSettings]) -> int:
    old, new = map(Path, given.values)
    found = compare(old, new, given.settings.tolerance)
    rows = {table: len(read_rows(new, table)) for table in TABLES}
    if found:
        print(f"{'table':8}{'column':26}{'rows':>6}  {'largest':>10}  example")
    for difference in found:
        print(difference)
    compared = ", ".join(f"{n} {table}" for table, n in rows.items())
    print(f"{compared} compared: {len(found) or 'no'} differences")
    return int(bool(found))


def main(argv: Sequence[str]) -> None:
    run_command(__doc__, work, argv, settings=CompareSettings, arguments="OLD NEW")


if __name__ == "__main__":
    main(sys.argv[1:])
