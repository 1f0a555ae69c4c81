"""Videos that their headers rule out are not decoded; headers that may lie decide nothing."""

from __future__ import annotations

import io
import os
import struct
from contextlib import redirect_stdout, suppress
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.policy import Policy, Range, decide
from curation.records import NOT_DECODED, SCORE_NAMES, make_clip_id
from curation.stage import BadVideo, PlanError, RunContext
from curation.storage import Folder
from curation.urls import file_system
from curation.video.coded_size import make_size_check
from curation.video.container import Limits
from curation.video.first_frame import KEPT_SLICE_BYTES, FirstFrameReader
from curation.video.reader import Reader
from curation.video.source import BLOCK_BYTES, RangeFile
from curation.video_list import list_videos
from pipelines import diff, plan, score, select, show, verify
from pipelines.settings import ScoreSettings, Settings
from stages.decode_pass import DecodePass
from stages.header_rules import header_rejection
from tests.curation.test_resume import run_all, settings
from tests.support import video_files
from tests.support.s3_server import s3_bucket
from tests.support.small_input import scene, write_video

# without the scores that are computed after the prefilter
CHEAP = [
    f"select.policy.{n}=null" for n in select.costly_scores(ScoreSettings()) if n in SCORE_NAMES
]
LARGE = Policy(duration_s=Range(min=3), width=Range(min=320), height=Range(min=180))


def decode(video: str | Path, folder: Path, prefilter: Policy = LARGE, version: str = "1") -> dict:
    stage = DecodePass(clip_s=3.0, max_clip_s=3.0, prefilter=prefilter)
    stage.setup(RunContext(str(folder / "ledger")))
    [listed] = list_videos(str(video))
    [row] = stage.process([{"video": str(video), "bytes": listed.bytes, "version": version}])
    return row


def is_decoded(row: dict) -> bool:
    return row["num_frames"] is not None


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_header_is_read_from_the_start_of_a_large_keyframe(tmp_path, suffix, interlaced):
    options = {"qp": "4", "slices": "3"} | ({"x264-params": "tff=1"} if interlaced else {})
    path = tmp_path / f"large.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (30, 180, 320, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for picture in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(stream.encode())
    with FirstFrameReader(str(path)) as reader, Reader(str(path)) as whole:
        assert len(reader._first_packet) > 20 * KEPT_SLICE_BYTES
        assert reader.header == whole.header
        assert reader.header.interlaced == interlaced


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_small_video_is_one_rejected_clip_without_scores(tmp_path, suffix):
    path = video_files.draw(tmp_path / f"small.{suffix}", frames=100, width=160, height=90)
    row = decode(path, tmp_path)
    assert not is_decoded(row)
    assert (row["width"], row["height"], row["codec"]) == (160, 90, "h264")
    assert len(row["sha256"]) == 64
    assert row["cuts_s"] is row["takes"] is row["interlaced"] is None
    [clip] = row["clips"]
    assert (clip["start_s"], clip["duration_s"]) == (0.0, pytest.approx(4.0, abs=0.05))
    assert clip["clip_id"] == make_clip_id(row["sha256"], 0.0, clip["end_s"])
    assert clip["prefilter"] == "width 160 < 320"
    assert all(clip[name] is None for name in SCORE_NAMES)
    assert clip["null_reasons"] == dict.fromkeys((*SCORE_NAMES, "interlaced"), NOT_DECODED)
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_short_video_is_not_decoded_and_one_that_is_nearly_long_enough_is(tmp_path, suffix):
    path = write_video(tmp_path / f"short.{suffix}", scene(1), 2.5)
    row = decode(path, tmp_path)
    assert not is_decoded(row)
    assert row["clips"][0]["prefilter"] == "2.5 s < 3 s"
    assert is_decoded(decode(write_video(tmp_path / f"a.{suffix}", scene(1), 2.9), tmp_path))


def test_frame_rate_decides_where_the_index_has_the_time_of_each_frame(tmp_path):
    rates = Policy(fps=Range(min=12))
    row = decode(write_video(tmp_path / "slow.mp4", scene(1)), tmp_path, rates)
    assert row["clips"][0]["prefilter"] == "fps 10.00 < 12"
    varying = [i / 10 for i in range(20)] + [2 + i / 20 for i in range(20)]
    path = video_files.draw(tmp_path / "varying.mp4", times_s=varying, fps=10.0)
    assert is_decoded(decode(path, tmp_path, rates))
    assert is_decoded(decode(write_video(tmp_path / "slow.mkv", scene(1)), tmp_path, rates))


def test_webm_without_a_frame_rate_has_none_until_it_is_decoded(tmp_path):
    path = video_files.draw(
        tmp_path / "small.webm", codec="libvpx", frames=80, fps=20, width=160, height=96
    )
    duration = b"\x23\xe3\x83\x84\x02\xfa\xf0\x80"  # of a frame: 50 ms
    replaced(path, duration, b"\xec\x86" + bytes(6))  # an element without content
    [clip] = decode(path, tmp_path)["clips"]
    assert clip["fps"] is None
    assert clip["null_reasons"]["fps"] == NOT_DECODED
    assert decide(clip, Policy(width=Range(min=320), fps=Range(max=120))) == ["width 160 < 320"]
    row = decode(path, tmp_path, Policy())
    assert row["fps"] == pytest.approx(20, abs=0.1)


def test_no_other_rule_on_the_duration_is_decided_by_the_header(tmp_path):
    path = write_video(tmp_path / "long.mp4", scene(1))
    assert is_decoded(decode(path, tmp_path, Policy(duration_s=Range(max=3.5))))


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def box_fields(path: Path, kind: bytes, offset: int, size: int) -> bytes:
    data = path.read_bytes()
    at = data.rindex(kind) + 4 + offset
    return data[at : at + size]


def patch(path: Path, kind: bytes, offset: int, value: bytes) -> Path:
    """Writes a field of the last box of a kind; offset: in its body."""
    data = bytearray(path.read_bytes())
    at = data.rindex(kind) + 4 + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def test_video_whose_header_states_another_size_than_its_first_frame_is_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", scene(1), width=160, height=90)
    patch(path, b"avc1", 24, struct.pack(">HH", 640, 360))
    assert is_decoded(decode(path, tmp_path))
    path = write_video(tmp_path / "b.mkv", scene(1), width=160, height=90)
    replaced(path, b"\xb0\x81\xa0\xba\x81\x5a", b"\xb0\x81\xa2\xba\x81\x5a")
    assert is_decoded(decode(path, tmp_path))


def test_video_with_two_sizes_in_its_header_is_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", scene(1), width=160, height=90)
    patch(path, b"stsd", 4, struct.pack(">I", 2))
    assert is_decoded(decode(path, tmp_path))


GROWING = [  # codec, container of the parts and of the video, options of the encoder
    ("libx264", "ts", "mp4", {}),
    ("libx264", "ts", "mkv", {}),
    ("libx265", "ts", "mp4", {"x265-params": "log-level=none"}),
    ("libvpx", "webm", "webm", {}),
    ("libvpx-vp9", "webm", "webm", {}),
    ("libvpx-vp9", "webm", "mp4", {}),
]


@pytest.mark.parametrize(("codec", "part", "suffix", "options"), GROWING)
def test_stream_that_grows_after_a_small_start_is_decoded(tmp_path, codec, part, suffix, options):
    drawn = {"codec": codec, "options": options, "frames": 50}
    small = video_files.draw(tmp_path / f"a.{part}", width=160, height=90, **drawn)
    grown = video_files.draw(tmp_path / f"b.{part}", width=640, height=360, **drawn)
    path = video_files.spliced(tmp_path / f"grows.{suffix}", small, grown)
    row = decode(path, tmp_path)
    assert is_decoded(row)
    assert [(c["width"], c["height"]) for c in row["size_changes"]] == [(640, 360)]
    path = video_files.spliced(tmp_path / f"stays.{suffix}", small, small)
    assert not is_decoded(decode(path, tmp_path))


def test_vp9_packet_that_states_another_size_is_found_also_between_keyframe_packets(tmp_path):
    path = video_files.draw(tmp_path / "a.webm", codec="libvpx-vp9", width=160, height=90)
    with av.open(str(path)) as file:
        packets = [bytes(p) for p in file.demux(video=0) if p.size]
    changes = make_size_check("vp9", b"", (160, 90))
    assert not any(changes(packet) for packet in packets)
    assert make_size_check("vp9", b"", (160, 92))(packets[0])
    # VP9 bitstream specification, 6.2: an inter frame of 30 bits, whose size is no reference's
    head = "10" + "00" + "0" + "1" + "1" + "0" + "00" + "00000000" + "000" * 4
    for width, height in ((160, 90), (640, 360)):
        bits = head + "000" + f"{width - 1:016b}" + f"{height - 1:016b}"
        packet = int(bits.ljust(160, "0"), 2).to_bytes(20)
        assert changes(packet) == ((width, height) != (160, 90))
        assert changes(packet[:5])  # cut off
        both = packets[1] + packet  # a hidden frame and the shown one
        index = bytes([0b110_00_001, len(packets[1]), len(packet), 0b110_00_001])
        assert len(packets[1]) < 256
        assert changes(both + index) == ((width, height) != (160, 90))


def test_av1_packet_that_states_a_larger_size_is_found(tmp_path):
    packets = {}
    for width in (160, 640):
        path = tmp_path / f"{width}.mkv"
        video_files.draw(path, codec="libsvtav1", width=width, height=96, frames=40)
        with av.open(str(path)) as file:
            packets[width] = [bytes(p) for p in file.demux(video=0) if p.size]
    changes = make_size_check("av1", b"", (160, 96))
    assert not any(changes(packet) for packet in packets[160])
    assert changes(packets[640][0])
    assert not is_decoded(decode(tmp_path / "160.mkv", tmp_path, Policy(width=Range(min=320))))
    assert is_decoded(decode(tmp_path / "640.mkv", tmp_path, Policy(width=Range(max=320))))


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_size_decides_only_for_codecs_whose_packets_are_read(tmp_path, codec):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"codec": codec, "pix_fmt": pix_fmt, "width": 160, "height": 90}
    path = video_files.draw(tmp_path / "small.mov", frames=100, **options)
    assert is_decoded(decode(path, tmp_path))


def test_small_remote_video_whose_size_its_packets_may_change_is_fetched_not_decoded(tmp_path):
    options = {"frames": 100, "width": 160, "height": 90}
    paths = [
        video_files.draw(tmp_path / "a.webm", codec="libvpx-vp9", **options),
        patch(video_files.draw(tmp_path / "b.mp4", **options), b"avc1", -4, b"avc3"),
    ]
    with s3_bucket() as (_, store):
        for path in paths:
            row = decode(upload(path, store), tmp_path)
            assert not is_decoded(row)
            assert row["sha256"] is not None


FACTS = {
    "vfr.mp4": {"times_s": [i / 10 for i in range(20)] + [2 + i / 20 for i in range(20)]},
    "vfr.mkv": {"times_s": [i / 10 for i in range(20)] + [2 + i / 20 for i in range(20)]},
    "b_frames.mp4": {"options": {"bf": "3"}, "audio_s": 1.0},
    "b_frames.mkv": {"options": {"bf": "3"}, "fps": 29.97},
    "interlaced.mp4": {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}},
    "rotated.mov": {"rotation": 90},
    "ten_bit.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "old.mp4": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", FACTS)
def test_header_is_the_same_whether_or_not_the_video_is_decoded_after_it(tmp_path, name):
    path = video_files.draw(tmp_path / name, width=160, height=96, **{"frames": 40, **FACTS[name]})
    with Reader(str(path)) as reader, FirstFrameReader(str(path)) as first:
        assert first.header == reader.header


def test_video_whose_header_states_a_shorter_duration_than_its_index_is_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", scene(1), 8)
    for kind, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"elst", 8)):
        ticks = int.from_bytes(box_fields(path, kind, offset, 4))
        patch(path, kind, offset, (ticks // 8).to_bytes(4))
    assert is_decoded(decode(path, tmp_path))
    path = write_video(tmp_path / "b.mkv", scene(1), 8)
    replaced(path, struct.pack(">d", 8000.0), struct.pack(">d", 1000.0))
    assert is_decoded(decode(path, tmp_path))


@pytest.mark.parametrize(
    ("name", "muxer"),
    [
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("stream.ts", {}),
        ("live.mkv", {"live": "1"}),
        ("old.avi", {}),
    ],
)
def test_video_without_an_index_is_decoded(tmp_path, name, muxer):
    path = video_files.draw(tmp_path / name, frames=25, width=160, height=90, muxer=muxer)
    assert is_decoded(decode(path, tmp_path))


def test_rotated_video_has_the_size_as_shown(tmp_path):
    path = video_files.draw(tmp_path / "a.mp4", frames=80, width=640, height=180, rotation=90)
    row = decode(path, tmp_path, Policy(width=Range(min=320)))
    assert (row["width"], row["height"]) == (180, 640)
    assert row["clips"][0]["prefilter"] == "width 180 < 320"


def large(path: Path, size: int) -> Path:
    """The video with a box of zeros in front of its index."""
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    padding = struct.pack(">I4s", size, b"free") + bytes(size - 8)
    path.write_bytes(data[:at] + padding + data[at:])
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_remote_video_that_its_header_rules_out_is_not_fetched(tmp_path, suffix):
    path = write_video(tmp_path / f"small.{suffix}", scene(1), width=160, height=90)
    with s3_bucket() as (_, options):
        url = upload(path, options)
        rows = [decode(url, tmp_path, version=version) for version in ("1", "1", "2")]
    for row in rows:
        assert not is_decoded(row)
        assert row["sha256"] is None
        assert row["clips"][0]["prefilter"] == "width 160 < 320"
    same, again, changed = (row["clips"][0]["clip_id"] for row in rows)
    assert same == again != changed


def test_header_of_a_remote_video_is_read_in_parts(tmp_path):
    path = large(write_video(tmp_path / "small.mp4", scene(1), width=160, height=90), 8 << 20)
    with s3_bucket() as (_, options):
        file = RangeFile(upload(path, options), os.stat(path).st_size)
        found = header_rejection(file, Limits(), LARGE)
        assert found
        assert list(found[1]) == ["width"]
        assert 0 < file.fetched_bytes <= 4 * BLOCK_BYTES
        file.seek(-10, os.SEEK_END)
        assert file.read() == path.read_bytes()[-10:]


def upload(path: Path, options: str) -> str:
    url = f"s3://bucket/{path.name}?{options}"
    fs, fs_path = file_system(url)
    with fs.open_output_stream(fs_path) as stream:
        stream.write(path.read_bytes())
    return url


def test_remote_video_that_passes_its_header_rules_is_fetched_and_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", scene(1))
    with s3_bucket() as (_, options):
        row = decode(upload(path, options), tmp_path)
        size = os.stat(path).st_size
        with pytest.raises(BadVideo, match=f"{size} bytes, listed with 8"):
            RangeFile(upload(path, options), 8)
    local = decode(path, tmp_path)
    assert is_decoded(row)
    same = {"cpu_s": 0, "video": ""}
    assert row | same == local | same


def of_output(folder: Path, *overrides: str) -> Settings:
    rules = "score.decode.prefilter.width={min: 320}", "select.policy.width={min: 320}"
    return settings(folder / "in", folder / "out", *rules, *overrides)


@pytest.fixture(scope="module")
def output(tmp_path_factory, cluster) -> Path:
    """A run on a video that is kept, one that is too small and one that is too short."""
    folder = tmp_path_factory.mktemp("headers")
    write_video(folder / "in" / "kept.mp4", scene(1))
    write_video(folder / "in" / "small.mp4", scene(2), 7, width=160, height=90)
    write_video(folder / "in" / "short.mkv", scene(3), 1.5)
    run_all(of_output(folder), cluster)
    return folder


def test_tables_and_funnel_count_clips_and_hours_that_are_not_decoded(output, cluster):
    clips = pq.read_table(output / "out" / "clips.parquet")
    found = {Path(c["video"]).stem: c for c in clips.to_pylist()}
    assert {name: (c["status"], c["reason"]) for name, c in found.items()} == {
        "kept": ("kept", None),
        "small": ("rejected", "width 160 < 320"),
        "short": ("rejected", "1.5 s < 3 s"),
    }
    for name in ("small", "short"):
        reasons = dict(found[name]["null_reasons"])
        assert {reasons[score] for score in SCORE_NAMES} == {NOT_DECODED}
    rows = pq.read_table(output / "out" / "funnel.parquet").to_pylist()
    for unit, seconds in (("clips", 11.5), ("videos", 12.5)):
        [row] = [r for r in rows if (r["unit"], r["status"]) == (unit, "all")]
        assert (row["count"], row["not_decoded"]) == (3, 2)
        assert row["hours_not_decoded"] == pytest.approx(8.5 / 3600, abs=1e-5)
        assert row["hours"] == pytest.approx(seconds / 3600, abs=1e-5)
    videos = pq.read_table(output / "out" / "videos.parquet", columns=["video", "takes"])
    takes = {Path(row["video"]).stem: row["takes"] for row in videos.to_pylist()}
    assert takes == {"kept": 1, "small": None, "short": None}
    report = (output / "out" / "report.html").read_text()
    assert "clips in 1 takes and 2 videos that were not decoded" in report
    text = select_text(output, cluster)
    assert "rejected by their headers, not decoded: 2 of 3 clips, 0.00236 of 0.00319 hours" in text


def select_text(output: Path, cluster) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        select.select_and_publish(of_output(output), Folder(str(output / "out")), cluster)
    return printed.getvalue()


def test_second_run_decodes_nothing_and_gives_the_same_tables(output, cluster):
    before = (output / "out" / "clips.parquet").read_bytes()
    parts = sorted(os.listdir(output / "out" / "ledger" / "videos"))
    run_all(of_output(output), cluster)
    assert sorted(os.listdir(output / "out" / "ledger" / "videos")) == parts
    assert (output / "out" / "clips.parquet").read_bytes() == before


@pytest.mark.parametrize("rule", ["width", "duration_s"])
def test_policy_that_would_keep_a_video_without_scores_is_refused_with_the_command(output, rule):
    looser = of_output(output, *CHEAP, f"select.policy.{rule}=null")
    with pytest.raises(PlanError) as e:
        select.run(looser, Folder(str(output / "out")))
    assert "by which 1 videos were rejected without decoding them" in str(e.value)
    command = "python -m pipelines.score CONFIG input=INPUT output=OTHER_OUT"
    assert f"{command} score.decode.prefilter.{rule}=null" in str(e.value)
    tighter = of_output(output, *CHEAP, "select.policy.width={min: 320, max: 2000}")
    select.run(tighter, Folder(str(output / "out")))


def test_looser_policy_is_refused_before_videos_are_scored(output, unused_cluster, tmp_path):
    looser = of_output(output, *CHEAP, "select.policy.width=null", f"output={tmp_path}")
    with pytest.raises(PlanError, match="by which videos are rejected without decoding them"):
        select.check(looser, Folder(str(tmp_path)), will_score=True)


def test_other_commands_read_an_output_with_videos_that_are_not_decoded(output, cluster, capsys):
    out = str(output / "out")
    small = next(
        c["clip_id"]
        for c in pq.read_table(output / "out" / "clips.parquet").to_pylist()
        if c["reason"] == "width 160 < 320"
    )
    for module, arguments in (
        (verify, [out]),
        (show, [out]),
        (show, [out, small]),
        (diff, [out, out]),
    ):
        with suppress(SystemExit):
            module.main(arguments)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert printed.out
    verify.main([out])
    assert "nothing is damaged or missing" in capsys.readouterr().out
    listed = score.list_input(of_output(output))
    report = plan.make_report(of_output(output), Folder(out), cluster, listed)
    assert "width < 320" in report
