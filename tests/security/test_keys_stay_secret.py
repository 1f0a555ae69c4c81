"""A key in the environment is in nothing that a run writes or prints."""

from __future__ import annotations

import io
import json
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.config import ConfigError
from curation.stage import RunContext
from stages.captioning.openai_server import OpenAICaptioner
from tests.support.canary import CANARY, files_with_canary
from tests.support.chat_server import ChatServer
from tests.support.drawn_key_frames import IdentifyingModel, make_clip


def test_key_is_in_no_file_log_or_line_of_a_run(dataset):
    files = {str(p): p.read_bytes() for p in dataset.out.rglob("*") if p.is_file()}
    assert any("/logs/" in name for name in files)
    files |= {"stdout": dataset.run.stdout.encode(), "stderr": dataset.run.stderr.encode()}
    assert files_with_canary(files) == []


def test_search_for_the_key_finds_it_in_tables_archives_and_text(tmp_path):
    table = io.BytesIO()
    pq.write_table(pa.table({"a": [f"x {CANARY}"]}), table, compression="zstd")
    (tmp_path / "a.json").write_text(json.dumps({"key": CANARY}))
    subprocess.run(["tar", "cf", "a.tar", "a.json"], cwd=tmp_path, check=True)
    archive = (tmp_path / "a.tar").read_bytes()
    files = {"table": table.getvalue(), "tar": archive, "text": CANARY.encode(), "none": b"x"}
    assert files_with_canary(files) == ["table", "tar", "text"]


def test_key_of_a_caption_server_is_in_no_row_and_no_error(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    clip = make_clip(tmp_path, 3)
    with ChatServer(IdentifyingModel(4), key=CANARY) as server:
        stage = OpenAICaptioner(url=server.url, model="tiny")
        stage.check()
        context = RunContext(str(tmp_path), api_key=stage.api_key())
        stage.setup(context)
        [row] = stage.process([clip])
    assert row["error"] is None
    with ChatServer(IdentifyingModel(4), key="another") as server:
        stage = OpenAICaptioner(url=server.url, model="tiny")
        with pytest.raises(ConfigError) as refused:
            stage.check()
    printed = "".join(capfd.readouterr())
    texts = (row, context, stage, refused.value, stage.provenance(), printed, caplog.text)
    assert files_with_canary({str(n): repr(text).encode() for n, text in enumerate(texts)}) == []
