"""What a caption server answers can neither break a run nor become a bad caption."""

import json
import shutil
import tarfile
import time
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation.stage import Unavailable
from tests.captioning.test_captions import chat
from tests.captioning.test_captions import model as named_model
from tests.captioning.test_openai_server import is_correct, make_captioner
from tests.support.bad_answers import BAD_ANSWERS, GOOD, BadServer
from tests.support.drawn_key_frames import IdentifyingModel, caption_of, make_clip
from tests.support.whole_run import start, wait_for_end

FAST = {"attempts": 2, "max_outage_s": 0.2, "backoff_s": 0.002}


def unsafe_characters(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Cf") and c not in "\n\t"}


def model(request) -> str:
    return json.dumps({"caption": caption_of(*IdentifyingModel(1).identify(request))})


def test_there_are_many_ways_to_answer_badly():
    assert len({bad.name for bad in BAD_ANSWERS}) == len(BAD_ANSWERS) >= 40


@pytest.mark.parametrize("bad", BAD_ANSWERS, ids=lambda bad: bad.name)
def test_bad_answer_has_the_expected_outcome(tmp_path, bad):
    outcome, _, reason = bad.outcome.partition(" ")

    def choose_answer(number):
        return bad if outcome != "captioned" or number == 0 else None

    with BadServer(model, choose_answer=choose_answer) as server:
        stage = make_captioner(server, tmp_path, **FAST)
        started_s = time.process_time()
        try:
            [row] = stage.process([make_clip(tmp_path, 0)])
        except Unavailable as error:
            stopped = str(error)
        else:
            stopped = ""
        assert time.process_time() - started_s < 2.0  # both attempts, and drawing the server's
    if outcome == "stopped":
        assert reason in stopped
        assert not unsafe_characters(stopped)
        return
    assert stopped == ""
    assert not unsafe_characters(json.dumps(row, ensure_ascii=False))
    if outcome == "captioned":
        assert row["error"] is row["rejected"] is None
        assert len(json.loads(row["provenance"])["models"]) in (1, 2)
    elif outcome == "rejected":
        assert row["error"] is None
        assert row["rejected"].startswith(reason.rstrip())
        assert len(server.requests) == 2
    else:
        assert reason in row["error"]
        assert row["caption"] is None


@pytest.mark.parametrize(
    "bad",
    [bad for bad in BAD_ANSWERS if "401" not in bad.outcome and "307" not in bad.outcome],
    ids=lambda bad: bad.name,
)
def test_clip_is_captioned_where_the_next_answer_is_good(tmp_path, bad):
    if "422" in bad.outcome or bad.outcome == "captioned":
        pytest.skip("not retried")
    with BadServer(model, choose_answer=lambda number: None if number else bad) as server:
        [row] = make_captioner(server, tmp_path, **FAST | {"max_outage_s": 5.0}).process(
            [make_clip(tmp_path, 0)]
        )
    assert is_correct(row)
    assert json.loads(row["provenance"])["models"] == ["tiny"]


def test_whole_run_against_bad_answers_has_a_row_per_clip_and_nothing_unsafe(dataset, tmp_path):
    out = Path(shutil.copytree(dataset.out, tmp_path / "out"))
    mixture = [bad for bad in BAD_ANSWERS if not bad.outcome.startswith("stopped")]
    sent = set()

    def choose_answer(number):
        if number % 3 == 2:
            return None
        bad = mixture[(number - number // 3) % len(mixture)]
        sent.add(bad.name)
        return bad

    with BadServer(named_model, choose_answer=choose_answer) as server:
        given = [*chat(out, server), "caption.openai.attempts=12", "max_failed_share=1"]
        run = wait_for_end(start("curate", f"input={dataset.source}", *given))
    assert run.exit_code == 0, run.stderr
    assert len(sent) >= 25
    clips = pq.read_table(out / "clips.parquet").to_pylist()
    rows = pq.read_table(out / "ledger/captions/other-model").to_pylist()
    captioned = [row["clip_id"] for row in rows]
    before = pq.read_table(dataset.out / "clips.parquet").to_pylist()
    assert sorted(captioned) == sorted(c["clip_id"] for c in before if c["status"] == "kept")
    assert len(clips) == len(before)
    shown = [json.dumps([clips, rows], ensure_ascii=False, default=repr), run.stdout, run.stderr]
    shown.append((out / "report.html").read_text())
    for path in out.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members = [m for m in tar if m.name.endswith(".json")]
            shown += [tar.extractfile(m).read().decode() for m in members]
    for text in shown:
        text.encode()
        assert not unsafe_characters(text)
        for active in ("<script>alert", "](http", "$(touch", "<|im_end|>", "[INST]", "</s>"):
            assert active not in text
    texts = [part["text"] for row in rows for part in row["sub_captions"] or ()]
    assert texts
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]
    for clip in clips:
        if clip["status"] == "kept":
            kept = [part["text"] for part in clip["sub_captions"]]
            assert all(text == GOOD or "In the" in text for text in kept)
