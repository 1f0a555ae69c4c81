"""Parsers of what others write: any bytes give a value or the error that the caller handles.

The slow tests try 50 times as many inputs.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation import config, json_text
from curation.checksums import parse_checksums
from curation.errors import UserError
from curation.ledger import Ledger, recorded_settings
from curation.parquet import parquet_bytes
from curation.records import VIDEO, schema
from curation.stage import OutputError, PlanError
from curation.storage import Folder
from curation.urls import InputError
from curation.video_list import list_videos
from pipelines import split
from pipelines.settings import Settings
from stages.captioning.chat_api import parse_completion, parse_retry_after
from stages.captioning.conversation import find_json_value, parse_caption
from stages.export.shards import parse_receipt
from training import sample
from training.clips import UNREADABLE, ClipLocation, parse_clip, read_files

pytest.importorskip("torch")
import torch

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
BYTES = st.binary(max_size=300)
TEXT = st.text(max_size=200) | JSON.map(json.dumps)
AS_FILE = BYTES | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))


def of_object(**fields: Any) -> st.SearchStrategy[Any]:
    """JSON objects with some of these keys, of the right or of any type."""
    kinds = {name: kind | JSON for name, kind in fields.items()}
    return st.fixed_dictionaries({}, optional=kinds)


TIME = st.floats() | st.integers()
SUB_CAPTION = of_object(start_s=TIME, end_s=TIME, text=st.text(max_size=9))
CLIP_JSON = of_object(
    duration_s=TIME, caption=st.text(max_size=9), sub_captions=st.lists(SUB_CAPTION, max_size=3)
)
CHOICE = of_object(
    message=of_object(content=st.text(max_size=9), refusal=st.text(max_size=9)),
    finish_reason=st.text(max_size=9),
)
REPLY = of_object(
    choices=st.lists(CHOICE, max_size=2),
    usage=of_object(prompt_tokens=st.integers(), completion_tokens=st.integers()),
    model=st.text(max_size=9),
)
SETTING = st.sampled_from(
    ("score.decode.clip_s", "select.policy", "caption.openai.url", "cluster.workers", "input", "x")
)


def with_file(
    parse: Callable[[str], Any], name: str, data: bytes, *allowed: type[Exception]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        Path(path).write_bytes(data)
        with suppress(*allowed):
            parse(path)


def load_settings(data: bytes, setting: str, value: str) -> None:
    with_file(lambda path: config.load(Settings, path), "a.yaml", data, config.ConfigError)
    with suppress(config.ConfigError):
        config.load(Settings, None, [f"{setting}={value}"])


def read_ledger(data: bytes, rows: Any) -> None:
    def read(path: str) -> None:
        folder = Folder(str(Path(path).parent.parent))
        Ledger(folder, Path(path).parent.name, schema(VIDEO), "video").read()

    for content in (data, parquet_bytes(pa.table({"video": ["a"], "n": [1]})) + data):
        with_file(read, "part-00000000.parquet", content, OutputError, PlanError)
    for content in (data, json.dumps(rows).encode()):
        with_file(
            lambda path: recorded_settings(Folder(str(Path(path).parent)), "a"),
            "a.settings.json",
            content,
            PlanError,
        )


def read_receipts_and_hashes(data: bytes, rows: Any) -> None:
    for text in (data, json.dumps(rows).encode()):
        for parse, errors in (
            (lambda t: parse_receipt(t, "a"), OutputError),
            (parse_checksums, ValueError),
            (json_text.parse_hashed, ValueError),
        ):
            with suppress(errors):
                parse(text)


def read_shard(data: bytes, metadata: Any, offset: int) -> None:
    """As the trainer reads it: a tar at an offset, then its JSON."""
    row = {"clip_id": "a", "sha256": "", "json_sha256": None}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.tar").write_bytes(data * 20)
        with suppress(*UNREADABLE):
            read_files(Folder(folder), ClipLocation("a.tar", offset, offset + 2000, row), ".mp4")
    with suppress(*UNREADABLE):
        clip = parse_clip("a", json_text.parse_object(json.dumps(metadata)), torch.empty(0))
        assert all(math.isfinite(t) for span in clip.spans for t in span)


def read_answers(data: bytes, reply: Any, text: str) -> None:
    for body in (data, json.dumps(reply).encode()):
        parse_completion(body)
    for answer in (text, json.dumps({"caption": reply}), data.decode("latin-1")):
        caption = parse_caption(answer)
        assert "\0" not in caption
        find_json_value(answer, "sub_captions")
    assert 0 <= parse_retry_after(text) < 1e6


def read_prompts(data: bytes, rows: Any) -> None:
    lines = b"\n".join([json.dumps({"name": "a", "cap": rows}).encode(), data])
    with_file(lambda path: sample.read_prompts(path, 10.0), "a.jsonl", lines, UserError)
    for content in (data, json.dumps(rows).encode()):
        with_file(lambda path: sample.read_prompt([path], 10.0), "a.json", content, UserError)
    with_file(split.read_prompts, "a.txt", data, UserError)


def read_list(data: bytes, names: list[Any]) -> None:
    def read(path: str) -> None:
        for video in list_videos(path):
            assert video.video

    with_file(read, "list.txt", data, InputError)
    with_file(read, "list.parquet", data, InputError)
    table = BytesIO()
    pq.write_table(pa.table({"video": names}), table)
    with_file(read, "list.parquet", table.getvalue(), InputError)


NUMBERS = st.lists(st.integers(0, 9), max_size=4)
PARSERS = {
    load_settings: (AS_FILE, SETTING, st.text(max_size=40)),
    read_ledger: (BYTES, JSON),
    read_receipts_and_hashes: (AS_FILE, JSON),
    read_shard: (BYTES, CLIP_JSON, st.integers(0, 3000)),
    read_answers: (AS_FILE, REPLY, TEXT),
    read_prompts: (AS_FILE, st.lists(SUB_CAPTION, max_size=3) | JSON),
    read_list: (AS_FILE, st.lists(st.text(max_size=20) | st.none(), max_size=4) | NUMBERS),
}


def fuzz(parse: Callable[..., None], inputs: tuple[Any, ...], examples: int) -> int:
    """The number of inputs after which `parse` returned."""
    returned = 0

    @settings(
        max_examples=examples,
        database=None,
        derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*inputs))
    def run(values: tuple[Any, ...]) -> None:
        nonlocal returned
        parse(*values)
        returned += 1

    run()
    return returned


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
def test_any_input_is_a_value_or_the_error_that_is_handled(parse):
    assert fuzz(parse, PARSERS[parse], 60) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
def test_many_inputs_are_a_value_or_the_error_that_is_handled(parse):
    assert fuzz(parse, PARSERS[parse], 3000) >= 3000


@pytest.mark.parametrize(
    "parse", [json_text.parse_json, json_text.parse_object, json_text.parse_hashed]
)
@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 200_000])
def test_json_that_is_nested_too_deeply_is_an_error_that_is_handled(parse, text):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(text)
