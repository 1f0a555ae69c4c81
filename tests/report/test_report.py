"""The report: one self-contained page, safe whatever texts it shows."""

import base64
import hashlib
import http.server
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from curation.records import (
    FIELD_NAMES,
    NULL_REASONS,
    SCORE_NAMES,
    SEGMENT,
    SUB_CAPTION,
    segment_spans,
    struct,
)
from curation.storage import Folder
from stages.report.examples import MAX_THUMBNAIL_BYTES, choose_examples, thumbnail
from stages.report.histogram import layout_histogram
from stages.report.page import report_html
from stages.report.statistics import score_statistics
from tests.curation.test_funnel import count_rows

HOSTILE = (
    "</style></title></svg><script>document.title='ran'</script>"
    "<img src=http://127.0.0.1:PORT/img onerror=document.title='ran'>"
    "\"'`><svg/onload=document.title='ran'> {{ 7*7 }} \x1b[31m\u202e\n\x00 мир ☂ 𝕏"
)
POLICY = {"static_share": (None, 0.5), "brightness": (20.0, 180.0), "duration_s": (15.0, None)}


def key_frames(ledger: Path, clip_id: str) -> list[dict]:
    (ledger / "key_frames").mkdir(parents=True, exist_ok=True)
    segments = []
    for i, (start, end) in enumerate(segment_spans(15, 5)):
        picture = np.full((360, 640, 3), 40 * i, np.uint8)
        cv2.putText(picture, f"{clip_id[-4:]} {i}", (40, 200), 0, 3, (255, 255, 255), 5)
        name = f"key_frames/{clip_id}_{i}.jpg"
        assert cv2.imwrite(str(ledger / name), picture)
        segments.append(
            {
                "start_s": start,
                "end_s": end,
                "key_frame_s": (start + end) / 2,
                "key_frame": name,
            }
        )
    return segments


def clip(
    i: int, video: str, status: str = "kept", reasons: list[str] | None = None, **more
) -> dict:
    spans = segment_spans(15, 5)
    row = {
        "clip_id": f"{i * 7919 % 2**32:024x}",
        "video": video,
        "start_s": 15.0 * i,
        "end_s": 15.0 * i + 15,
        "duration_s": 15.0,
        "status": status,
        "reason": (reasons or [None])[0],
        "reasons": reasons or [],
        "null_reasons": [("text_share", "no weights")],
        **dict.fromkeys(SCORE_NAMES),
        "brightness": 50.0 + i,
        "static_share": 0.9 if reasons else 0.1,
    }
    if status == "kept":
        row |= {
            "caption": f"caption of {i}",
            "sub_captions": [
                {"start_s": a, "end_s": b, "text": f"part {n} of {i}"}
                for n, (a, b) in enumerate(spans)
            ],
            "captioner": "measured",
            "split": "train",
        }
    return row | more


def clips_of(rows: list[dict]) -> pa.Table:
    texts = ("clip_id", "video", "status", "reason", "caption", "captioner", "split", "shard")
    types = {name: pa.string() for name in texts}
    types |= dict.fromkeys(("start_s", "end_s", "duration_s"), pa.float64())
    types |= dict.fromkeys(SCORE_NAMES, pa.float32())
    types |= {"reasons": pa.list_(pa.string()), "null_reasons": NULL_REASONS}
    types |= {"sub_captions": pa.list_(SUB_CAPTION), "segments": pa.list_(struct(SEGMENT))}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def videos_of(rows: list[tuple[str, str, str | None, int]]) -> pa.Table:
    """rows: (video, status, error, clips)."""
    names = ("video", "status", "error", "clips")
    types = [(name, pa.string()) for name in names[:3]]
    types += [("clips", pa.int64()), ("takes", pa.int64()), ("duration_s", pa.float64())]
    found = [dict(zip(names, row, strict=True)) | {"takes": row[3]} for row in rows]
    return pa.Table.from_pylist(found, schema=pa.schema(types))


def report(tmp_path: Path, rows: list[dict], videos=None, facts=None) -> tuple[Path, str]:
    clips = clips_of(rows)
    videos = videos_of(videos or [("a.mp4", "ok", None, len(rows))])
    path = tmp_path / "report.html"
    read_file = Folder(str(tmp_path / "ledger")).read
    counted, stats = count_rows(videos, clips), score_statistics(clips)
    tables = ds.dataset(videos), ds.dataset(clips)
    html = report_html(counted, *tables, stats, POLICY, facts or {}, read_file)
    path.write_text(html, "utf-8")
    return path, html


def hostile_report(tmp_path: Path, port: int = 9) -> tuple[Path, str]:
    """Every text that comes from a video, a file system or a model is hostile here."""
    bad = HOSTILE.replace("PORT", str(port))
    segments = key_frames(tmp_path / "ledger", "00ff")
    texts = dict.fromkeys(("text", *FIELD_NAMES), bad)
    subs = [{"start_s": s["start_s"], "end_s": s["end_s"], **texts} for s in segments]
    rows = [
        clip(1, bad, caption=bad, captioner=bad, split=bad, shard=bad, segments=segments),
        clip(
            2,
            bad,
            "rejected",
            [bad, f"static_share 0.9 > {bad}"],
            null_reasons=[("ken_burns_share", bad)],
        ),
        clip(3, bad * 100, "failed", [bad], segments=[segments[0] | {"key_frame": bad}]),
    ]
    rows[0]["sub_captions"] = subs
    videos = [(bad, "ok", None, 3), (bad, "failed", bad, 0), (bad, "duplicate", bad, 0)]
    return report(tmp_path, rows, videos, {bad: bad})


class Page(HTMLParser):
    """A page's tags, attributes, headings and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)


def test_page_shows_counts_rules_captions_scores_and_failed_videos(tmp_path):
    rows = [clip(1, "a.mp4", segments=key_frames(tmp_path / "ledger", "01")), clip(2, "b.mp4")]
    rows += [clip(i, "a.mp4", "rejected", ["static_share 0.90 > 0.5"]) for i in range(3, 9)]
    videos = [("a.mp4", "ok", None, 7), ("b.mp4", "ok", None, 1), ("c.mp4", "failed", "empty", 0)]
    text = Page(report(tmp_path, rows, videos, {"config": "local.yaml"})[1]).text
    assert "8 clips: 2 kept, 6 rejected (static 6), 0 failed" in text
    assert "30 s of video kept" in text.replace("of video kept 30 s", "30 s of video kept")
    assert "videos with a kept clip 2 of 3" in text
    assert "caption of 1" in text
    assert "0.0 to 3.0 s part 0 of 1" in text
    assert "No vision model was used" in text
    assert "static_share > 0.5 4 of 6 clips" in text
    assert "static_share 0.9 ≤ 0.5" in text
    assert "not measured in 8 clips: no weights (8)" in text
    assert "c.mp4 empty" in text
    assert "config local.yaml" in text
    assert "max 0.5" in text  # the threshold, drawn into the histogram


def test_videos_without_a_kept_clip_do_not_count_in_the_headline(tmp_path):
    rows = [clip(1, "a.mp4"), clip(2, "a.mp4")]
    rows += [clip(3, "b.mp4", "rejected", ["static_share 0.90 > 0.5"])]
    videos = [("a.mp4", "ok", None, 2), ("b.mp4", "ok", None, 1)]
    assert "videos with a kept clip 1 of 2" in Page(report(tmp_path, rows, videos)[1]).text


def test_any_reason_counts_duplicate_clips_too(tmp_path):
    rows = [clip(1, "a.mp4"), clip(2, "b.mp4", "rejected", ["duplicate of 00ff17"])]
    assert "duplicate of another −1 50.0 % 1 " in Page(report(tmp_path, rows)[1]).text


def test_captions_of_a_model_have_its_name_and_no_note_about_measured_ones(tmp_path):
    page = Page(report(tmp_path, [clip(1, "a.mp4", captioner="qwen-vl")])[1])
    assert "qwen-vl caption of 1" in page.text
    assert "No vision model" not in page.text


def test_key_frames_are_embedded_as_small_thumbnails(tmp_path):
    rows = [clip(1, "a.mp4", segments=key_frames(tmp_path / "ledger", "01"))]
    page = Page(report(tmp_path, rows)[1])
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 5
    for i, image in enumerate(images):
        data = base64.b64decode(image.removeprefix("data:image/jpeg;base64,"), validate=True)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (135, 240, 3)
        assert abs(int(picture[0, 0, 0]) - 40 * i) <= 3  # in order
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert alts[1] == "Key frame of segment 2, at 4.5 s of the clip"


def test_hostile_text_adds_no_tag_no_attribute_and_no_url(tmp_path):
    html = hostile_report(tmp_path)[1]
    page = Page(html)
    assert not {"script", "iframe", "object", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("style", "srcset", "action"), (tag, name)
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)
    assert "{{ 7*7 }}" in page.text
    assert "мир ☂ 𝕏" in page.text


def test_content_security_policy_allows_only_this_style_and_inline_images(tmp_path):
    html = report(tmp_path, [clip(1, "a.mp4")])[1]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_no_heading_level_is_skipped_and_every_image_has_a_text_alternative(tmp_path):
    page = Page(hostile_report(tmp_path)[1])
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    for above, below in zip(page.headings, page.headings[1:], strict=False):
        assert below <= above + 1
    assert page.tags.count("img") == sum(
        1 for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and value
    )
    labels = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert any("Histogram of static_share. median: kept 0.1, rejected 0.9" in v for v in labels)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gone.jpg", None, "gone.jpg is missing; score with retry_failed=true"),
        ("empty.jpg", b"", "the file is not a readable image; score with retry_failed=true"),
        ("text.jpg", b"not a jpeg", "the file is not a readable image; score with retry_failed"),
        ("../outside.jpg", b"x", "outside the ledger"),
        ("/etc/hostname", None, "outside the ledger"),
    ],
)
def test_error_replaces_a_key_frame_that_is_missing_damaged_or_outside_the_ledger(
    tmp_path, name, content, why
):
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    if content is not None:
        (ledger / name).write_bytes(content)
    segment = {"start_s": 0.0, "end_s": 3.0, "key_frame_s": 1.5, "key_frame": name}
    page = Page(report(tmp_path, [clip(1, "a.mp4", segments=[segment])])[1])
    assert why in page.text
    assert "img" not in page.tags
    assert "caption of 1" in page.text


def test_key_frame_that_is_not_the_one_that_was_scored_is_not_shown(tmp_path):
    segment = key_frames(tmp_path / "ledger", "01")[0] | {"key_frame_sha256": "0" * 64}
    page = Page(report(tmp_path, [clip(1, "a.mp4", segments=[segment])])[1])
    assert "is not the frame that was scored" in page.text
    assert "img" not in page.tags


def test_videos_that_were_not_decoded_are_counted_apart_from_takes():
    clips = clips_of([clip(1, "a.mp4", "rejected", ["width 160 < 320"])])
    clips = clips.append_column("num_frames", pa.nulls(1, pa.int32()))
    videos = videos_of([("a.mp4", "ok", None, 1)])
    videos = videos.set_column(4, "takes", pa.nulls(1, pa.int32()))
    counted, stats = count_rows(videos, clips), score_statistics(clips)
    tables = ds.dataset(videos), ds.dataset(clips)
    page = Page(report_html(counted, *tables, stats, POLICY, {}, Folder(".").read))
    assert "clips in 0 takes and 1 videos that were not decoded" in page.text


def test_run_without_clips_has_a_report(tmp_path):
    page = Page(report(tmp_path, [], [("a.mp4", "failed", "empty file", 0)])[1])
    assert "0 clips: 0 kept, 0 rejected, 0 failed" in page.text
    assert "a.mp4 empty file" in page.text


def test_page_of_many_clips_rules_and_failed_videos_is_small_and_reproducible(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (480, 640, 3), np.uint8)  # the hardest case for JPEG
    (tmp_path / "ledger").mkdir()
    cv2.imwrite(str(tmp_path / "ledger" / "noise.jpg"), noise)
    segment = {"start_s": 0.0, "end_s": 3.0, "key_frame_s": 1.5, "key_frame": "noise.jpg"}
    rows = [clip(i, f"{i % 50}.mp4", segments=[segment] * 5) for i in range(500)]
    rows += [
        clip(i, "x.mp4", "rejected", [f"score_{i % 40} 1 > 0"], segments=[segment] * 5)
        for i in range(500, 1000)
    ]
    for row in rows:
        row["caption"] = "long " * 10_000
    videos = [("a.mp4", "ok", None, 1000)] + [(f"{i}", "failed", "e" * 9999, 0) for i in range(999)]
    path, html = report(tmp_path, rows, videos)
    assert path.stat().st_size < 8e6
    page = Page(html)
    assert page.tags.count("article") == 12 + 12 * 4
    assert "The first 100 of 999" in page.text
    assert report(tmp_path, rows, videos)[1] == html


def test_examples_are_from_as_many_videos_as_possible():
    clips = [(f"{i:024x}", "many.mp4" if i < 90 else f"{i}.mp4") for i in range(100)]
    chosen = choose_examples(clips, 12)
    assert len(set(chosen)) == 12
    assert len({video for _, video in chosen}) == 11  # the ten, and "many" twice


def test_thumbnail_keeps_its_aspect_ratio_and_its_size_limit():
    noise = np.random.default_rng(0).integers(0, 255, (1280, 720, 3), np.uint8)
    uri, width, height = thumbnail(cv2.imencode(".jpg", noise)[1].tobytes())
    assert (width, height) == (135, 240)
    assert len(base64.b64decode(uri.split(",")[1])) <= MAX_THUMBNAIL_BYTES


def test_bars_and_thresholds_are_at_their_values():
    edges = [0.0, 0.25, 0.5, 0.75, 1.0]
    histogram = layout_histogram(
        edges, kept=[3, 1, 0, 0], rejected=[0, 0, 1, 1], thresholds=(None, 0.5)
    )
    (threshold,) = histogram.thresholds
    assert threshold.text == "max 0.5"
    assert all(b.x + b.width <= threshold.x for b in histogram.kept)
    assert all(b.x >= threshold.x for b in histogram.rejected)
    tall, low = histogram.kept
    assert tall.height == pytest.approx(3 * low.height)
    assert histogram.outside[0].x == threshold.x


def test_threshold_far_from_every_value_is_labelled_at_the_border():
    histogram = layout_histogram([0.0, 0.1, 0.2], [1, 1], [0, 0], (None, 100.0))
    assert histogram.thresholds[0].text == "max 100 →"
    widths = [b.width for b in histogram.kept]
    assert min(widths) > 100  # the values still fill the picture
    assert all(b.x + b.width < histogram.thresholds[0].x for b in histogram.kept)
    assert all(t.x < histogram.thresholds[0].x for t in histogram.ticks)
    assert histogram.outside == []


def test_picture_is_tinted_if_every_value_is_beyond_a_threshold_far_away():
    histogram = layout_histogram([100.0, 100.1, 100.2], [0, 0], [1, 1], (None, 1.0))
    assert histogram.thresholds[0].text == "← max 1"
    [outside] = histogram.outside
    assert all(outside.x <= b.x < outside.x + outside.width for b in histogram.rejected)


@pytest.mark.parametrize(
    ("edges", "kept", "thresholds"),
    [
        ([1200.0, 1250.0, 1300.0, 1350.0], [0, 4, 0], (1280.0, None)),  # inside a bin
        ([0.0, 0.1, 0.2, 0.3], [4, 0, 0], (None, 0.05)),
        ([0.0, 0.1, 0.2, 0.3], [4, 0, 0], (0.02, 0.05)),
        ([0.0, 0.1, 0.2, 0.3], [4, 0, 0], (None, 0.0)),  # at the edge of a bin
        ([0.0, 0.1, 0.2, 0.3], [1, 3, 0], (None, 0.1)),
        ([0.0, 0.1, 0.2, 0.3], [1, 3, 0], (0.1, None)),  # a float32 0.3 is below 0.3
    ],
)
def test_kept_clips_are_drawn_outside_the_tinted_ranges(edges, kept, thresholds):
    histogram = layout_histogram(edges, kept, [1] * 3, thresholds)
    [bar] = histogram.kept
    assert bar.width >= 3
    for tinted in histogram.outside:
        assert bar.x + bar.width <= tinted.x or bar.x >= tinted.x + tinted.width


def test_outliers_share_a_narrow_bar_labelled_with_their_range():
    edges = [-1e6, 0.0, 1.0, 2.0, 3.0, 4.0, 1e9]
    histogram = layout_histogram(edges, [1, 5, 5, 5, 5, 1], [0] * 6, (None, None))
    assert [t.text for t in histogram.tails] == ["from -1e+06", "to 1e+09"]
    assert histogram.kept[0].width < histogram.kept[1].width


# ---- in a real browser ----


@pytest.fixture
def server():
    """A server's port, and the list of requests that it gets."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield httpd.server_address[1], requests
        httpd.shutdown()


def open_in_browser(path: Path, profile: Path) -> tuple[str, str]:
    """(the page after it ran, what it logged to the console)."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("chromium isn't installed (Debian: apt-get install chromium)")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync dump-dom"
    flags += " disable-background-networking disable-component-update enable-logging=stderr"
    run = subprocess.run(
        [browser, *(f"--{f}" for f in flags.split()), f"--user-data-dir={profile}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return run.stdout, "\n".join(line for line in run.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.browser
def test_hostile_text_runs_no_script_and_fetches_nothing_in_a_browser(tmp_path, server):
    port, requests = server
    path, _ = hostile_report(tmp_path, port)
    dom, console = open_in_browser(path, tmp_path / "profile")
    page = Page(dom)
    assert "<title>Curation report: 1 of 3 clips kept</title>" in dom
    assert page.headings[:3] == [1, 2, 2]
    assert (requests, console) == ([], "")
    # The test would fail otherwise: the same text, not escaped and without a policy.
    bare = tmp_path / "bare.html"
    bare.write_text(f"<title>x</title><p>{HOSTILE.replace('PORT', str(port))}", encoding="utf-8")
    dom, _ = open_in_browser(bare, tmp_path / "profile")
    assert "<title>ran</title>" in dom
    assert requests == ["/img"]


@pytest.mark.browser
def test_content_security_policy_stops_unescaped_markup_in_a_browser(tmp_path, server):
    port, requests = server
    path, html = hostile_report(tmp_path, port)
    through = f"{HOSTILE.replace('PORT', str(port))}</body>"
    path.write_text(html.replace("</body>", through), encoding="utf-8")
    dom, console = open_in_browser(path, tmp_path / "profile")
    assert "<title>Curation report: 1 of 3 clips kept</title>" in dom
    assert requests == []
    assert "Content Security Policy" in console
