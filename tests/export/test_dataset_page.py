"""docs/dataset.md and docs/report.md name exactly the columns that the output has."""

import json
import re

import pyarrow as pa
import pytest

from curation.funnel import FUNNEL
from curation.ledger import flatten_clips
from curation.records import CAPTION, SEGMENT, SELECTION, SHARD, VIDEO, schema
from pipelines.tables import make_clips_table, make_videos_table
from stages.export.shards import sample_metadata
from stages.report.statistics import STATS
from tests.export.test_shards import EXTRACTED, row
from tests.support.paths import REPOSITORY

DATASET = (REPOSITORY / "docs" / "dataset.md").read_text("utf-8")
REPORT = (REPOSITORY / "docs" / "report.md").read_text("utf-8")


def empty(columns) -> pa.Table:
    return schema(columns).empty_table()


def clips_schema() -> pa.Schema:
    clips, *others = flatten_clips(empty(VIDEO)), *map(empty, (SELECTION, CAPTION, SHARD))
    return make_clips_table(clips, *others).schema


def named_columns(page: str, start: str) -> list[str]:
    """The names in the first column of the first table after `start`."""
    table = re.search(r"^\|---.*\n((?:\|.*\n)+)", page[page.index(start) :], re.M)[1]
    first = [line.split("|")[1] for line in table.splitlines()]
    return sorted(re.findall(r"`(\w+)`", " ".join(first)))


@pytest.mark.parametrize(
    ("page", "start", "columns"),
    [
        (DATASET, "### clips.parquet", clips_schema().names),
        (DATASET, "An entry of `segments`", [field.name for field in SEGMENT]),
        (DATASET, "### videos.parquet", make_videos_table(empty(VIDEO)).schema.names),
        (DATASET, "### shards.parquet", schema(SHARD).names),
        (REPORT, "## funnel.parquet", schema(FUNNEL).names),
        (REPORT, "## stats.parquet", schema(STATS).names),
    ],
)
def test_page_names_every_column_and_no_other(page, start, columns):
    assert named_columns(page, start) == sorted(columns)


def test_page_shows_the_json_of_a_clip_with_its_fields():
    shown = json.loads(re.search(r"```json\n(.*?)```", DATASET, re.S)[1])
    metadata = sample_metadata(row(1), EXTRACTED)
    assert shown.keys() == metadata.keys()
    assert shown["schema_version"] == metadata["schema_version"]
    assert shown["scores"].keys() <= metadata["scores"].keys()
    assert shown["sub_captions"][0].keys() == metadata["sub_captions"][0].keys()


def test_every_public_column_has_its_own_meaning_in_the_table():
    clips, videos = clips_schema(), make_videos_table(empty(VIDEO)).schema
    assert all(field.metadata[b"what"] for field in [*clips, *videos])
    assert clips.field("status").metadata[b"what"] == b"kept | rejected | failed"
    assert videos.field("status").metadata[b"what"] == b"ok | duplicate | failed"
    assert (
        videos.field("num_frames").metadata[b"what"] == b"decoded frames; null: it is not decoded"
    )
