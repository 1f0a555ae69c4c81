"""SQL conditions on tables, by DuckDB, which can open neither files nor connections here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from curation.errors import UserError
from curation.progress import printable
from curation.texts import is_utf8

if TYPE_CHECKING:
    import pyarrow.dataset as ds

MAX_MESSAGE_CHARS = 400
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",  # by default SQL reads and writes any file
    "python_enable_replacements": "false",  # a table name could mean a Python variable
    "autoload_known_extensions": "false",
    "lock_configuration": "true",
}


class SqlError(UserError):
    """A condition is not valid SQL, or asks for what is not in the table."""


def quote(name: str) -> str:
    """The name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def run_select(
    clips: pa.Table | ds.Dataset,
    columns: Sequence[str],
    condition: str | None,
    name: str,
    tail: str = "",
) -> pa.Table:
    """`SELECT columns FROM clips WHERE condition tail`; rows stay in order.

    Of a dataset, only the columns that the query names are read. columns, tail: trusted SQL.
    condition: SQL of the user; subqueries may name the table `clips`. name: of the setting or
    option that holds the condition, for errors. Raises SqlError with a message of one line.
    """
    import duckdb  # 66 MB; most commands need none of it

    if condition is not None and not is_utf8(condition):
        raise SqlError(f"{name} is {condition!r:.60}: expected text in UTF-8")
    where = f" WHERE ({condition}\n)" if condition is not None else ""
    query = f"SELECT {', '.join(columns)} FROM clips{where} {tail}"
    try:
        if condition is not None:
            parsed = duckdb.extract_statements(f"SELECT ({condition}\n)")
            kinds = [statement.type for statement in parsed]
            if kinds != [duckdb.StatementType.SELECT]:
                raise SqlError(f"{name}: expected one condition, as in: motion_dis > 3")
        with duckdb.connect(config=LOCKED) as connection:
            connection.register("clips", clips)
            return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        lines = str(error).partition("\n\n")[0].splitlines()
        raise SqlError(f"{name}: {printable('; '.join(lines), MAX_MESSAGE_CHARS)}") from None


def condition_values(clips: pa.Table, condition: str, name: str) -> pa.ChunkedArray:
    """Whether the condition is true of each row; null where SQL has no answer. Raises SqlError."""
    run_select(clips.slice(0, 0), ["1"], condition, name)  # refuses all but one condition
    return run_select(clips, [f"CAST(({condition}\n) AS BOOLEAN) AS value"], None, name)["value"]
