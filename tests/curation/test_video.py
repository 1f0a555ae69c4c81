"""The reader: frame times, planes, unusual files, and plain errors for damaged ones."""

from __future__ import annotations

import csv
import os
import random
import shutil
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest

from curation.isolate import Isolated, Unexpected
from curation.stage import BadVideo
from curation.video.frames import Planes
from curation.video.geometry import Geometry
from curation.video.planes import bgr_image, luma_layout, reduce_frame, reduce_plane
from curation.video.reader import (
    Clock,
    Limits,
    Packets,
    Reader,
    VideoHeader,
    join_recordings,
    probe,
)
from tests.support import video_files
from tests.support.paths import VIDEOS

needs_videos = pytest.mark.skipif(
    not (VIDEOS / "labels.csv").exists(), reason=f"no labelled videos in {VIDEOS} (LONGTAKE_VIDEOS)"
)


@dataclass
class Pass:
    """The result of one pass over a file."""

    header: VideoHeader
    planes: list[Planes] = field(repr=False)
    times_s: list[float]
    end_s: float
    packets: Packets
    errors: int
    repaired: int


def read(path: Path | str, limits: Limits = Limits()) -> Pass:  # noqa: B008
    with Reader(str(path), limits) as reader:
        planes = [p for _, p in reader.frames()]
        return Pass(
            reader.header,
            planes,
            reader.times_s.tolist(),
            reader.end_s,
            reader.packets,
            reader.errors,
            reader.repaired,
        )


def error_of(path: Path | str, limits: Limits = Limits()) -> str:  # noqa: B008
    with pytest.raises(BadVideo) as raised:
        read(path, limits)
    return str(raised.value)


def even(frames: int, fps: float = 25.0) -> list[float]:
    return [i / fps for i in range(frames)]


# ---- times


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts", "a.flv"])
def test_frame_times_of_a_variable_frame_rate_are_kept(tmp_path, name):
    times = [0, 0.04, 0.08, 0.5, 0.54, 1.7, 1.71]
    video = read(video_files.draw(tmp_path / name, times_s=times))
    assert video.times_s == pytest.approx(times, abs=0.0011)  # Matroska and FLV count milliseconds
    assert video.end_s == pytest.approx(1.75, abs=0.021)  # MPEG-TS stores no durations
    assert video.repaired == 0


@pytest.mark.parametrize("fps", [4, 100])
def test_frame_times_of_low_and_high_frame_rates_are_kept(tmp_path, fps):
    video = read(video_files.draw(tmp_path / "a.mp4", fps=fps))
    assert video.times_s == pytest.approx(even(12, fps))
    assert video.end_s == pytest.approx(12 / fps)
    assert video.header.fps == fps


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("b_frames_with_an_edit_list.mp4", {"options": {"bf": "3"}, "frames": 40}),
        ("b_frames_in_avi.avi", {"options": {"bf": "2"}, "frames": 40}),
        ("fragments.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
        ("no_header_duration.webm", {"codec": "libvpx", "muxer": {"live": "1"}}),
        ("bare.h264", {"format": "h264"}),
        ("interlaced.mpg", {"codec": "mpeg2video", "options": {"flags": "+ilme+ildct"}}),
        ("interlaced.ts", {"codec": "mpeg2video", "options": {"flags": "+ilme+ildct"}}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("one_frame.mp4", {"frames": 1}),
    ],
)
def test_times_start_at_the_first_shown_frame_in_every_container(tmp_path, name, drawn):
    frames = drawn.get("frames", 12)
    video = read(video_files.draw(tmp_path / name, **drawn))
    assert video.times_s == pytest.approx(even(frames), abs=0.0011)
    assert video.end_s == pytest.approx(frames / 25, abs=0.0011)
    assert len(video.packets.bytes) == frames
    assert video.packets.times_s == pytest.approx(video.times_s, abs=0.0011)
    assert video.packets.is_key[0]
    assert video.errors == 0


@pytest.mark.parametrize("start_s", [-0.2, 1000.0, 90_000.0])
@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_times_start_at_zero_for_any_first_time_stamp(tmp_path, name, start_s):
    path = video_files.draw(
        tmp_path / name,
        times_s=[start_s + t for t in even(12)],
        muxer={"avoid_negative_ts": "disabled"} if start_s > 0 else None,
    )
    video = read(path)
    assert video.times_s == pytest.approx(even(12), abs=0.0011)
    assert video.end_s == pytest.approx(0.48, abs=0.0011)


def test_keyframe_packets_are_found_with_their_times(tmp_path):
    video = read(
        video_files.draw(tmp_path / "a.mp4", frames=50, options={"g": "20", "sc_threshold": "0"})
    )
    assert video.packets.times_s[video.packets.is_key] == pytest.approx([0, 0.8, 1.6])
    assert video.packets.bytes.sum() < (tmp_path / "a.mp4").stat().st_size


def test_times_increase_across_joined_recordings(tmp_path):
    one = video_files.draw(tmp_path / "1.ts", frames=60)
    video = read(video_files.joined(tmp_path / "a.ts", one, one))
    assert video.times_s == pytest.approx(even(120), abs=1e-4)
    assert video.repaired == 1
    assert video.packets.times_s == pytest.approx(even(120), abs=1e-4)


def test_repeated_time_stamps_are_moved_just_after_the_one_before():
    clock = Clock(step_s=0.04)
    times = [clock.read(t) for t in [10.0, 10.04, 10.04, 10.03, 10.12, None, 2.0, 2.04]]
    assert times == pytest.approx([0, 0.04, 0.041, 0.042, 0.12, 0.16, 0.2, 0.24])
    assert clock.repaired == 3


def test_packet_times_increase_across_joined_recordings():
    stamps = np.array(
        [0, 0.12, 0.04, 0.08, 5.0, 0.0, 0.12, 0.04]
    )  # the order of B-frames is no jump
    assert join_recordings(stamps, 0.04) == pytest.approx(
        [0, 0.12, 0.04, 0.08, 5, 5.04, 5.16, 5.08]
    )


# ---- frames


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_video_is_read_upright(tmp_path, rotation):
    path = video_files.draw(tmp_path / "a.mp4", picture=video_files.quadrants, rotation=rotation)
    video = read(path)
    drawn = np.rot90(video_files.quadrants(0, 64, 48), -rotation // 90)
    assert (video.header.height, video.header.width) == drawn.shape[:2]
    assert video.header.geometry.orientation.rotation == rotation
    bgr = bgr_image(video.planes[0], 1000)
    assert bgr.shape == drawn.shape
    grey = drawn @ [0.299, 0.587, 0.114]
    for y, x in [(8, 8), (8, -8), (-8, 8), (-8, -8)]:
        assert bgr[y, x, ::-1] == pytest.approx(drawn[y, x], abs=12)
        assert video.planes[0].y[y, x] == pytest.approx(grey[y, x], abs=6)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "libx264", "yuvj420p"),
        ("a.mp4", "libx264", "yuv422p"),
        ("a.mp4", "libx264", "yuv444p"),
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.mp4", "libx264", "yuv422p10le"),
        ("a.mp4", "libx265", "yuv420p10le"),
        ("a.mkv", "ffv1", "yuv440p"),
        ("a.mkv", "ffv1", "yuv444p16le"),
        ("a.mkv", "ffv1", "yuv411p"),
        ("a.mkv", "ffv1", "bgr0"),
        ("a.mkv", "rawvideo", "nv12"),
        ("a.mkv", "rawvideo", "nv21"),
        ("a.mov", "png", "rgb24"),
        ("a.avi", "rawvideo", "bgr24"),
        ("a.avi", "mjpeg", "yuvj422p"),
    ],
)
def test_planes_are_the_same_for_every_pixel_format(tmp_path, name, codec, pix_fmt):
    """Full range, BT.601, to within what the codec loses."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else None
    path = video_files.draw(
        tmp_path / name,
        codec=codec,
        pix_fmt=pix_fmt,
        picture=video_files.quadrants,
        options=options,
    )
    planes = read(path).planes[0]
    assert planes.y.shape == (48, 64)
    for y, x in [(8, 8), (8, -8), (-8, 8)]:
        assert planes.y[y, x] == pytest.approx(
            luma(video_files.quadrants(0, 64, 48)[y, x]), abs=6
        ), (y, x)


def test_ten_bits_stored_in_the_upper_bits_of_sixteen_are_read():
    drawn = av.VideoFrame.from_ndarray(video_files.quadrants(0, 64, 48), "rgb24")
    planes = reduce_frame(drawn.reformat(format="p010le", dst_colorspace="ITU601"), 1, Geometry())
    assert planes.y[8, 8] == pytest.approx(luma(video_files.quadrants(0, 64, 48)[8, 8]), abs=2)


def luma(rgb: np.ndarray) -> float:
    """BT.601, full range."""
    red, green, blue = (float(c) for c in rgb)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_grey_video_keeps_its_levels(tmp_path):
    video = read(
        video_files.draw(
            tmp_path / "a.mkv", codec="ffv1", pix_fmt="gray", picture=video_files.quadrants
        )
    )
    assert video.planes[0].y[-8, -8] == 128
    assert bgr_image(video.planes[0], 64)[-8, -8].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    ("width", "height"), [(321, 181), (2, 2), (1739, 566), (4000, 2), (2, 700)]
)
def test_planes_have_the_announced_size_for_any_frame_size(tmp_path, width, height):
    path = video_files.draw(
        tmp_path / "a.mkv", codec="rawvideo", width=width, height=height, frames=2
    )
    video = read(path)
    info = video.header.info()
    for planes in video.planes:
        assert planes.y.shape == (info.reduced_height, info.reduced_width)
        assert min(planes.y.shape) >= 1
        assert planes.y.flags.c_contiguous


@pytest.mark.parametrize("by", [1, 2, 3, 4, 5, 6, 8, 12])
def test_reducing_a_plane_averages_all_pixels(by):
    rng = np.random.default_rng(by)
    plane = rng.integers(0, 256, (by * 20 + by - 1, by * 30), dtype=np.uint8)
    mean = plane[: by * 20].reshape(20, by, 30, by).mean((1, 3))
    found = reduce_plane(plane, by)
    assert found.shape == (20, 30)
    assert np.abs(found - mean).max() <= 1.5  # each of the three steps rounds
    fine = np.tile(np.array([[0, 255]], np.uint8), (by * 20, by * 15))  # the finest stripes
    if by % 2 == 0:
        assert np.ptp(reduce_plane(fine, by)) <= 1  # no moire


def test_limited_range_becomes_full_range():
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, value in zip(frame.planes, (235, 240, 16), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    planes = reduce_frame(frame, 2, Geometry())
    assert (planes.y == 255).all()


def test_formats_that_need_conversion_have_no_luma_layout():
    assert luma_layout("rgb24") is luma_layout("yuv411p") is luma_layout("yuv420p10be") is None


def test_colour_images_are_scaled_down_but_never_up(tmp_path):
    planes = read(video_files.draw(tmp_path / "a.mp4", width=640, height=360)).planes[0]
    assert bgr_image(planes, 160).shape == (90, 160, 3)
    assert bgr_image(planes, 5000).shape == (360, 640, 3)


def test_planes_of_a_size_that_changes_midway_have_the_first_size_and_images_their_own(tmp_path):
    parts = [
        video_files.draw(tmp_path / "1.h264", format="h264"),
        video_files.draw(tmp_path / "2.h264", format="h264", width=96, height=80),
    ]
    video = read(video_files.joined(tmp_path / "a.h264", *parts))
    assert [p.y.shape for p in video.planes] == [(48, 64)] * 24
    assert bgr_image(video.planes[-1], 96).shape == (80, 96, 3)
    assert video.times_s == pytest.approx(even(24))


# ---- which stream


def test_first_default_stream_of_several_is_read(tmp_path):
    video = read(video_files.draw(tmp_path / "a.mkv", also=(96, 96), audio_s=1.0))
    assert (video.header.stream_index, video.header.width) == (0, 64)
    assert len(video.times_s) == 12


def test_audio_longer_than_the_video_is_no_error(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        video = read(video_files.draw(tmp_path / name, frames=25, audio_s=8.0))
        assert video.end_s == pytest.approx(1.0, abs=0.002)


def test_audio_alone_is_no_video(tmp_path):
    assert error_of(video_files.audio_only(tmp_path / "a.m4a")) == "no video stream (audio only)"
    cover = video_files.audio_with_cover(tmp_path / "b.m4a")
    assert error_of(cover) == "no video stream (audio only, with a cover picture)"


def test_stream_that_appears_late_is_ignored(tmp_path):
    silent = video_files.draw(tmp_path / "1.ts", frames=60)
    path = video_files.joined(
        tmp_path / "a.ts", silent, video_files.draw(tmp_path / "2.ts", audio_s=1.0)
    )
    assert [len(read(path).times_s) for _ in range(5)] == [72] * 5


# ---- bad files


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """An intact video, its index at the start."""
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    return video_files.draw(
        path, frames=100, width=160, height=120, muxer={"movflags": "faststart"}
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty file (0 bytes)"),
        (b"Lorem ipsum dolor sit amet\n" * 50, "not a video: text"),
        ("Ein Ärgernis\n".encode() * 900, "not a video: text"),
        (b"<!DOCTYPE html><html>404</html>", "not a video: an HTML page"),
        (b"\xff\xd8\xff\xe0" + bytes(3000), "not a video: a JPEG picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a video: a Git LFS pointer"),
        (random.Random(1).randbytes(200_000), "not a video, or damaged at its start"),
        (bytes(200_000), "not a video, or damaged at its start"),
    ],
)
def test_error_names_the_kind_of_a_file_that_is_no_video(tmp_path, content, why):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert error_of(path).startswith(why)


def test_error_gives_the_reason_a_file_cannot_be_opened(tmp_path, good):
    assert error_of(tmp_path / "gone.mp4") == "no such file"
    assert error_of(tmp_path) == "not a file but a folder"
    assert error_of("a\0b").startswith("can't be opened")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert error_of(tmp_path / "pipe.mp4").startswith("not a plain file")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert "symbolic links" in error_of(tmp_path / "loop.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_error_names_missing_permission(tmp_path, good):
    path = shutil.copy(good, tmp_path / "a.mp4")
    path.chmod(0)
    assert error_of(path) == "permission denied"


def test_error_gives_the_time_at_which_a_file_is_truncated(tmp_path, good):
    why = error_of(video_files.truncated(tmp_path / "a.mp4", good, 0.6))
    assert why.startswith("truncated: header says 4.0 s, frames end at ")
    late = video_files.draw(tmp_path / "late.mp4", frames=100)
    why = error_of(video_files.truncated(tmp_path / "b.mp4", late, 0.5))
    assert why == "truncated: the index (moov) is missing"
    mkv = video_files.draw(tmp_path / "c.mkv", frames=100, audio_s=4.0)
    why = error_of(video_files.truncated(tmp_path / "d.mkv", mkv, 0.4))
    assert why.startswith("truncated: header says 4.0 s, frames end at ")


def test_wrong_duration_in_the_header_is_found(tmp_path):
    ten = video_files.draw(tmp_path / "ten.mp4", frames=10)
    why = error_of(video_files.with_header_duration(tmp_path / "a.mp4", ten, 3600))
    assert why == "truncated: header says 3600.0 s, frames end at 0.4 s"


def test_bytes_outside_of_boxes_are_damage(tmp_path, good):
    path = tmp_path / "a.mp4"
    path.write_bytes(good.read_bytes() + random.Random(2).randbytes(400_000))
    assert error_of(path).startswith("damaged: 400000 of ")


@pytest.mark.parametrize(
    "tail",
    [
        video_files.box(b"free", bytes(400_000)),
        video_files.box(b"uuid", bytes(400_000)),
        video_files.box(b"xyz1", bytes(400_000)),  # an unknown box, but complete
        b"\0\0\0\0mdat" + bytes(400_000),  # size 0: up to the end
        b"\0\0\0\1free" + (400_016).to_bytes(8) + bytes(400_000),
        bytes(5000),  # padding
    ],
)
def test_unusual_but_valid_boxes_are_no_damage(tmp_path, good, tail):
    path = tmp_path / "a.mp4"
    path.write_bytes(good.read_bytes() + tail)
    assert len(read(path).times_s) == 100


def test_unknown_codec_is_the_reason(tmp_path, good):
    assert error_of(video_files.with_unknown_codec(tmp_path / "a.mp4", good)).startswith(
        "no decoder for"
    )


def test_frame_beyond_the_pixel_limit_is_refused_with_its_size(tmp_path):
    small = video_files.draw(tmp_path / "small.mov", codec="png", pix_fmt="rgb24", frames=3)
    assert error_of(video_files.decompression_bomb(tmp_path / "a.mov", small, 16384)).startswith(
        "picture 16384x16384 is larger than the limit of 37748736 pixels"
    )
    assert error_of(video_files.huge(tmp_path / "b.mov", 16000)).startswith(
        "picture 16000x16000 is larger"
    )
    assert error_of(small, Limits(max_pixels=1000)).startswith("picture 64x48 is larger")


def test_frames_that_exceed_the_pixel_limit_midway_are_not_decoded(tmp_path):
    parts = [
        video_files.draw(tmp_path / "1.h264", format="h264"),
        video_files.draw(tmp_path / "2.h264", format="h264", width=640, height=480),
    ]
    video = read(video_files.joined(tmp_path / "a.h264", *parts), Limits(max_pixels=10_000))
    assert len(video.times_s) == 12
    assert video.errors > 0


def test_video_beyond_the_limits_is_refused(good):
    assert error_of(good, Limits(max_duration_s=1.0)) == "longer than the limit of 1 s"
    assert error_of(good, Limits(max_frames=10)) == "more than 10 frames, the limit"


def test_damaged_packets_are_counted_and_the_other_frames_are_read(tmp_path, good):
    data = bytearray(good.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 400] = random.Random(3).randbytes(400)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    video = read(path)
    assert video.errors > 0
    assert len(video.times_s) > 50


# ---- hostile files


@dataclass
class Trap:
    """A loopback server that counts connections."""

    port: int
    calls: list[str] = field(default_factory=list)


@pytest.fixture
def trap():
    server = socket.create_server(("127.0.0.1", 0))
    one = Trap(server.getsockname()[1])

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            one.calls.append("called")
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    yield one
    server.close()


def playlists(port: int, other: Path) -> dict[str, bytes]:
    """Files that name another file or a server, by kind."""
    url = f"http://127.0.0.1:{port}/a.ts"
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n".encode(),
        "hls_file": f"#EXTM3U\n#EXTINF:9,\nfile:{other}\n#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile '{other}'\n".encode(),
        "concat_url": f"ffconcat version 1.0\nfile '{url}'\n".encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "dash": f'<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{url}'
        "</BaseURL></Representation></AdaptationSet></Period></MPD>".encode(),
    }


@pytest.mark.parametrize("ending", ["mp4", "m3u8", "ts", "mkv", "ffconcat", "mpd", "sdp"])
def test_playlist_named_as_a_video_opens_nothing_else(tmp_path, good, trap, ending):
    for kind, content in playlists(trap.port, good).items():
        path = tmp_path / f"{kind}.{ending}"
        path.write_bytes(content)
        assert error_of(path).startswith("not a video: "), kind
    assert trap.calls == []


def test_trap_detects_an_opened_playlist(tmp_path, good, trap):
    path = tmp_path / "a.m3u8"
    path.write_bytes(playlists(trap.port, good)["hls"])
    options = {"protocol_whitelist": "file,http,tcp", "allowed_extensions": "ALL"}
    with pytest.raises(av.FFmpegError), av.open(str(path), options=options) as container:
        next(container.decode(video=0))
    assert trap.calls
    path.write_bytes(playlists(trap.port, good)["concat"])
    with av.open(str(path), options={"safe": "0"}) as container:  # reads the other file
        assert container.streams.video[0].width == 160


@pytest.mark.parametrize(
    "name",
    ["%03d.mp4", "-i.mp4", " a b.mp4", "a\nb.mp4", "Straße 日本.mp4", "concat:a|b", "http:b.mp4"],
)
def test_unusual_file_names_are_names_only(tmp_path, good, name, monkeypatch):
    shutil.copy(good, tmp_path / "001.mp4")
    monkeypatch.chdir(tmp_path)
    shutil.copy(good, tmp_path / name)
    assert len(read(tmp_path / name).times_s) == 100
    assert probe(name).width == 160  # a relative path as well
    os.unlink(name)
    assert error_of(name) == "no such file"


def test_file_name_that_is_no_valid_text_is_read(tmp_path, good):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/odd\xff.mp4")
    shutil.copy(good, path)
    assert len(read(path).times_s) == 100


# ---- real files

# The label is the stored size. Of pixels 4/3 wide, a clean aperture of 1416x1062 is shown.
SHOWN_SIZES = {"codec_mpeg2_hdv_1080i.mov": (1888, 1062)}


def labelled() -> list[dict[str, str]]:
    path = VIDEOS / "labels.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


@needs_videos
def test_headers_of_the_labelled_videos_are_as_labelled():
    for row in labelled():
        if row["file"].startswith("broken_"):
            with pytest.raises(BadVideo):
                probe(str(VIDEOS / row["file"]))
            continue
        header = probe(str(VIDEOS / row["file"]))
        stored = int(row["width"]), int(row["height"])
        size = SHOWN_SIZES.get(row["file"], stored)
        assert (header.width, header.height) == size, row["file"]
        assert header.codec == row["codec"]
        assert header.pix_fmt == row["pix_fmt"]
        assert header.fps == pytest.approx(float(row["fps"]), rel=0.01), row["file"]
        assert header.geometry.orientation.rotation == int(row["rotation"] or 0) % 360


def check_labelled(row: dict[str, str]) -> None:
    video = read(VIDEOS / row["file"])
    assert len(video.packets.bytes) == int(row["frames"]), row["file"]
    shown = (video.packets.times_s > -1e-6).sum()  # an edit list may start after the first packets
    assert len(video.times_s) == shown, row["file"]
    assert video.errors == video.repaired == 0
    assert (np.diff(video.times_s) > 0).all()
    if "multistream" not in row["file"]:  # whose label counts the subtitles
        assert video.end_s == pytest.approx(float(row["duration"]), abs=0.06), row["file"]


@needs_videos
def test_short_labelled_videos_have_the_labelled_frames_and_duration():
    for row in labelled():
        if row["file"].startswith(("codec_", "rotation_", "synthetic_", "edit_nasa")):
            check_labelled(row)


@needs_videos
@pytest.mark.slow
def test_all_labelled_videos_have_the_labelled_frames_and_duration():
    for row in labelled():
        if not row["file"].startswith("broken_"):
            check_labelled(row)


@needs_videos
def test_errors_of_broken_labelled_videos_name_the_damage():
    assert error_of(VIDEOS / "broken_truncated_no_moov.mp4").startswith("truncated: the index")
    assert error_of(VIDEOS / "broken_garbage_tail_540p.mp4").startswith("damaged: 39639")


# ---- fuzz


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One damaged copy: flipped bits, missing parts, foreign bytes, edited headers."""
    changed = bytearray(data)
    kind = rng.choice(["flip", "flip", "truncate", "splice", "header", "drop", "swap", "zero"])
    at = rng.randrange(len(changed))
    if kind == "flip":
        for _ in range(rng.choice([1, 10, 100, 1000])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del changed[at:]
    elif kind == "splice":
        changed[at:at] = rng.randbytes(rng.choice([1, 100, 10_000]))
    elif kind == "header":
        ends = [rng.randrange(min(4096, len(changed))) for _ in range(rng.choice([1, 5, 30]))]
        for place in ends + [len(changed) - 1 - place for place in ends[: len(ends) // 2]]:
            changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    elif kind == "drop":
        del changed[at : at + rng.choice([1, 100, 10_000])]
    elif kind == "swap":
        there = rng.randrange(len(changed))
        size = rng.choice([4, 400, 40_000])
        changed[at : at + size] = changed[there : there + size]
    else:
        changed[at : at + rng.choice([8, 800])] = bytes(rng.choice([8, 800]))
    return bytes(changed)


def fuzz_sources(folder: Path) -> list[Path]:
    folder.mkdir()
    drawn = [
        video_files.draw(folder / "1.mp4", frames=40, options={"bf": "2"}, audio_s=1.5),
        video_files.draw(folder / "2.mkv", codec="ffv1", frames=10),
        video_files.draw(folder / "3.webm", codec="libvpx", frames=30),
        video_files.draw(folder / "4.avi", codec="mpeg4", frames=40),
        video_files.draw(folder / "5.ts", codec="mpeg2video", frames=30, audio_s=1.0),
        video_files.draw(folder / "6.flv", frames=30),
        video_files.draw(folder / "7.mp4", rotation=90, frames=30, muxer={"movflags": "faststart"}),
        video_files.draw(
            folder / "8.mp4", frames=30, muxer={"movflags": "frag_keyframe+empty_moov"}
        ),
        video_files.draw(folder / "9.webm", codec="libvpx-vp9", frames=30),
        video_files.draw(folder / "10.h264", format="h264", frames=30),
        video_files.draw(folder / "11.mov", codec="prores_ks", pix_fmt="yuv422p10le", frames=6),
        video_files.draw(folder / "12.avi", codec="mjpeg", pix_fmt="yuvj422p", frames=10),
    ]
    real = ["codec_av1_testpattern_360p.mkv", "codec_hevc_10bit_200p.mp4"]
    more = ["synthetic_colour_flash_counter_1080p.mp4", "text_terminal_recording_566p_vp9.webm"]
    return drawn + [VIDEOS / n for n in real + more if (VIDEOS / n).exists()]


def read_all(path: str) -> dict[str, float]:
    """The least that a worker does with a file."""
    with Reader(path, Limits(max_frames=5000)) as reader:
        info = reader.header.info()
        for t_s, planes in reader.frames():
            assert t_s >= 0
            assert planes.y.shape == (info.reduced_height, info.reduced_width)
        return {"frames": reader.num_frames, "end_s": reader.end_s, "errors": reader.errors}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_500_damaged_files_are_each_read_or_refused_with_a_plain_reason(tmp_path):
    rng = random.Random(20240607)
    sources = [path.read_bytes() for path in fuzz_sources(tmp_path / "sources")]
    ends: Counter[str] = Counter()
    with Isolated(read_all, timeout_s=30, memory_gib=2) as isolated:
        for index in range(500):
            path = tmp_path / f"fuzz{index}.bin"
            path.write_bytes(mutate(sources[index % len(sources)], rng))
            try:
                row = isolated(str(path))
                assert row["frames"] > 0
                assert row["end_s"] > 0
                ends["rows"] += 1
            except Unexpected:
                raise
            except BadVideo as error:
                ends[str(error).split(":")[0].split("(")[0].strip()] += 1
            path.unlink()
        child = isolated._child
    assert child is not None
    assert child.poll() is not None  # the child has ended
    print(dict(ends))
    assert all(reason.isprintable() and reason for reason in ends)
    assert ends["rows"] > 50
    assert sum(ends.values()) == 500
