"""SQL conditions on tables: what they find, and that they reach nothing but the table."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from curation.sql import SqlError, condition_values, quote, run_select

CLIPS = pa.table(
    {
        "clip_id": ["a", "b", "c"],
        "motion_dis": pa.array([1.0, None, 3.0], pa.float32()),
        "caption": ["A dog runs.", None, "A cat."],
        'odd "name': [1, 2, 3],
    }
)


def ids(condition: str, tail: str = "") -> list[str]:
    return run_select(CLIPS, ["clip_id"], condition, "--where", tail)["clip_id"].to_pylist()


def test_condition_selects_rows_in_their_order():
    assert ids("motion_dis > 0") == ["a", "c"]
    assert ids("caption ILIKE '%DOG%' -- a comment") == ["a"]
    assert ids("motion_dis = (SELECT max(motion_dis) FROM clips)") == ["c"]
    assert ids("clip_id <> 'b'", "ORDER BY clip_id DESC LIMIT 1") == ["c"]
    assert run_select(CLIPS, [quote('odd "name')], None, "")[0].to_pylist() == [1, 2, 3]


def test_condition_without_an_answer_is_null():
    assert condition_values(CLIPS, "motion_dis > 2", "select.where").to_pylist() == [
        *(False, None, True)
    ]


@pytest.mark.parametrize(
    "condition",
    [
        "EXISTS (FROM '{file}')",
        "EXISTS (FROM read_text('{file}'))",
        "EXISTS (FROM read_csv('{file}'))",
        "EXISTS (FROM parquet_scan('{file}'))",
        "EXISTS (FROM glob('{file}'))",
        "EXISTS (FROM read_text('https://example.com/x'))",
        "EXISTS (FROM CLIPS_OF_THE_TEST)",
        "true); ATTACH '{file}' AS other; --",
        "true); COPY clips TO '{file}'; --",
        "true); INSTALL httpfs; --",
        "true); LOAD httpfs; --",
        "true); SET enable_external_access = true; --",
        "true); SET threads = 1; SELECT (true",
        "ATTACH '{file}'",
        "COPY clips TO '{file}'",
        "SET lock_configuration = false",
        "",
        "true) (",
    ],
)
def test_condition_reaches_no_file_and_changes_no_setting(tmp_path, condition):
    CLIPS_OF_THE_TEST = CLIPS  # noqa: F841 (SQL could mean it)
    file = tmp_path / "file.parquet"
    pq.write_table(CLIPS, file)
    before = file.read_bytes()
    with pytest.raises(SqlError, match=r"^--where: [^\n]+$"):
        ids(condition.format(file=file))
    assert [path.name for path in tmp_path.iterdir()] == ["file.parquet"]
    assert file.read_bytes() == before


def test_settings_are_locked_for_every_statement(tmp_path):
    import duckdb

    from curation.sql import LOCKED

    with duckdb.connect(config=LOCKED) as connection:
        for statement in (
            "SET enable_external_access = true",
            "SET lock_configuration = false",
            f"ATTACH '{tmp_path}/x.db'",
            f"COPY (SELECT 1) TO '{tmp_path}/x'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "FROM '/etc/hostname'",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(statement)
    assert not list(tmp_path.iterdir())


def test_mistyped_column_is_refused_with_near_ones_in_one_line():
    with pytest.raises(SqlError, match=r'select\.where: [^\n]*"motion_diss" not found[^\n]*"motio'):
        condition_values(CLIPS, "motion_diss > 2", "select.where")


def test_condition_that_is_not_utf_8_is_refused_in_one_line():
    with pytest.raises(SqlError, match=r"^select\.where is .*udcff.*: expected text in UTF-8$"):
        condition_values(CLIPS, "caption = '\udcff'", "select.where")


def test_value_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(SqlError, match=r"^select\.where: [^\n]*'fast'[^\n]*$"):
        condition_values(CLIPS, "motion_dis = 'fast'", "select.where")


def test_columns_that_the_query_does_not_name_are_not_read(tmp_path):
    file = tmp_path / "clips.parquet"
    large = pa.table({"clip_id": ["a"], "caption": ["unread " * 1000], "motion_dis": [2.0]})
    pq.write_table(large, file, compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(1)
    data = bytearray(file.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 100] = bytes(100)
    file.write_bytes(data)
    damaged = ds.dataset(file)
    assert run_select(damaged, ["clip_id"], "motion_dis > 1", "")["clip_id"].to_pylist() == ["a"]
    with pytest.raises(SqlError):
        run_select(damaged, ["clip_id"], "caption <> ''", "")
