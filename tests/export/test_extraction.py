"""Extracted clips, checked by decoding them: every frame of the span and no other."""

import gc
import os
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from curation import heartbeat
from curation.records import is_in_span
from curation.stage import BadVideo, OutputError
from curation.video.reader import Reader
from stages.export import export_stages
from stages.export.extraction import ClipSource, extract_clip
from stages.export.seekable_video import SeekableVideo, index_keyframes
from stages.shots.takes import place_clips
from tests.support.full_disk import full_disk
from tests.support.video_files import draw, extract

FPS = 25


def write_video(
    path, codec="libx264", frames=120, size=(160, 96), params=None, pix_fmt="yuv420p", **more
):
    """A video whose every frame differs: a moving gradient with a moving square.

    more: times_ms (of each frame), rotation (degrees counter-clockwise), gop, time_base, rate.
    """
    width, height = size
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w", options=more.get("mux", {})) as container:
        stream = container.add_stream(codec, rate=more.get("rate", FPS), options=params or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        context = stream.codec_context
        context.thread_count, context.gop_size = 1, more.get("gop", 25)
        context.color_range = more.get("color_range", 1)
        context.colorspace = context.color_primaries = context.color_trc = 1
        if "times_ms" in more:
            context.time_base = Fraction(1, 1000)
        if "rotation" in more:
            stream.set_display_rotation(more["rotation"])
        for i in range(frames):
            rgb = np.stack([(x + 3 * i) % 256, (2 * y + i) % 256, (x + y + 5 * i) // 2 % 256], -1)
            rgb[20:60, (4 * i) % (width - 24) : (4 * i) % (width - 24) + 24] = 255 - i
            frame = av.VideoFrame.from_ndarray(rgb.astype(np.uint8), "rgb24")
            frame = frame.reformat(format=pix_fmt, dst_color_range=more.get("color_range", 1))
            if "times_ms" in more:
                frame.pts, frame.time_base = more["times_ms"][i], Fraction(1, 1000)
            else:
                frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path, fmt=None):
    """(times in s from the first frame, frames) as any reader built on FFmpeg gives them."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    first = frames[0].pts
    times = [float((f.pts - first) * f.time_base) for f in frames]
    return times, [f.reformat(format=fmt or f.format.name).to_ndarray() for f in frames]


def psnr(a, b):
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9))


def assert_shows_span(source, clip, start_s, end_s, exact, fmt=None):
    """The clip shows the source's frames of the span, with their times from the span's first."""
    times, frames = decoded(source, fmt)
    expected = [i for i, t in enumerate(times) if start_s - 1e-6 <= t < end_s - 1e-6]
    clip_times, clip_frames = decoded(clip, fmt)
    assert len(clip_frames) == len(expected)
    np.testing.assert_allclose(
        clip_times, [times[i] - times[expected[0]] for i in expected], atol=1e-3 if exact else 2e-3
    )
    for i, frame in zip(expected, clip_frames, strict=True):
        if exact:
            np.testing.assert_array_equal(frame, frames[i])
        else:
            assert psnr(frame, frames[i]) > 38, i


@pytest.fixture
def clip(tmp_path):
    return tmp_path / "clip.mp4"


B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:scenecut=0"}


@pytest.mark.parametrize("length", [46, 47, 48, 49])
def test_copy_ends_with_the_span_at_any_position_among_b_frames(tmp_path, clip, length):
    source = write_video(tmp_path / "in.mp4", params=B_FRAMES)
    result = extract(source, 1.0, 1.0 + length / FPS, clip, num_frames=length)
    assert (result.method, result.num_frames, result.codec) == ("copy", length, "h264")
    assert result.start_error_s == 0
    assert result.fps == pytest.approx(FPS)
    assert result.bytes == clip.stat().st_size
    assert_shows_span(source, clip, 1.0, 1.0 + length / FPS, exact=True)


def test_some_spans_need_frames_that_are_stored_but_not_shown(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4", params=B_FRAMES)
    hidden = [extract(source, 1.0, 1.0 + n / FPS, clip).hidden_frames for n in range(46, 50)]
    assert max(hidden) > 0
    assert min(hidden) == 0


def test_duration_in_the_header_is_that_of_the_span(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4", params=B_FRAMES)
    result = [extract(source, 1.0, 1.0 + n / FPS, clip) for n in range(46, 50)]
    assert result[-1].hidden_frames > 0
    with av.open(str(clip)) as container:
        assert container.duration / 1e6 == pytest.approx(49 / FPS, abs=1e-3)


def test_span_that_starts_between_keyframe_packets_is_encoded(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4", params=B_FRAMES)
    result = extract(source, 1.2, 3.2, clip, num_frames=50)
    assert (result.method, result.num_frames, result.start_error_s) == ("encode", 50, 0)
    assert result.fps == pytest.approx(FPS)
    assert_shows_span(source, clip, 1.2, 3.2, exact=False)


def test_span_that_starts_between_two_frames_begins_with_the_second(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4", params=B_FRAMES)
    result = extract(source, 0.97, 2.99, clip)
    assert (result.method, result.num_frames) == ("copy", 50)
    assert result.start_error_s == pytest.approx(0.03)
    assert_shows_span(source, clip, 0.97, 2.99, exact=True)


def test_h264_span_that_starts_at_a_recovery_point_is_encoded(tmp_path, clip):
    params = {"x264-params": "bframes=3:b-adapt=0:open-gop=1:scenecut=0:keyint=20:min-keyint=20"}
    source = write_video(tmp_path / "in.mp4", params=params)
    with av.open(str(source)) as container:
        key = [p for p in container.demux(video=0) if p.is_keyframe and p.size][2]
    start_s = float(key.pts * key.time_base)
    result = extract(source, start_s, start_s + 1.0, clip)
    assert result.method == "encode"
    assert_shows_span(source, clip, start_s, start_s + 1.0, exact=False)


def test_intra_refresh_without_keyframe_packets_is_encoded(tmp_path, clip):
    params = {"x264-params": "intra-refresh=1:keyint=25:bframes=0"}
    source = write_video(tmp_path / "in.mp4", params=params)
    with av.open(str(source)) as container:
        keys = [p for p in container.demux(video=0) if p.is_keyframe and p.size]
    start_s = float(keys[-1].pts * keys[-1].time_base) if len(keys) > 1 else 1.0
    assert extract(source, start_s, start_s + 1.0, clip).method == "encode"
    assert_shows_span(source, clip, start_s, start_s + 1.0, exact=False)


def test_leading_pictures_of_an_open_gop_in_hevc_are_dropped(tmp_path, clip):
    params = {
        "x265-params": "bframes=3:b-adapt=0:scenecut=0:keyint=18:min-keyint=18:log-level=none"
    }
    source = write_video(tmp_path / "in.mp4", "libx265", params=params)
    with av.open(str(source)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    keys = [i for i, p in enumerate(packets) if p.is_keyframe]
    opened = next(i for i in keys[1:] if packets[i + 1].pts < packets[i].pts)
    start_s = float((packets[opened].pts - packets[0].pts) * packets[0].time_base)
    result = extract(source, start_s, start_s + 1.0, clip, num_frames=25)
    assert (result.method, result.codec) == ("copy", "hevc")
    assert_shows_span(source, clip, start_s, start_s + 1.0, exact=True)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "mpeg4"])
def test_span_of_a_file_whose_index_calls_every_packet_a_keyframe_is_right(tmp_path, clip, codec):
    """Without the box of sync samples. MPEG-4 showed what its decoder made of missing references,
    the others had no frame."""
    params = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    source = write_video(tmp_path / "source.mp4", codec, gop=500, params=params)
    source.write_bytes(source.read_bytes().replace(b"stss", b"free"))
    found = extract(source, 2.4, 3.6, clip, 30)
    assert found.method == "encode"
    assert_shows_span(source, clip, 2.4, 3.6, exact=False, fmt="yuv420p")


def test_vp9_from_a_webm_is_copied(tmp_path, clip):
    source = write_video(
        tmp_path / "in.webm", "libvpx-vp9", params={"deadline": "realtime", "cpu-used": "8"}
    )
    result = extract(source, 1.0, 3.0, clip, num_frames=50)
    assert (result.method, result.codec) == ("copy", "vp9")
    assert_shows_span(source, clip, 1.0, 3.0, exact=True)


def test_av1_is_copied(tmp_path, clip):
    source = write_video(tmp_path / "in.mkv", "libsvtav1", frames=80, params={"preset": "13"})
    result = extract(source, 1.0, 3.0, clip, num_frames=50)
    assert (result.method, result.codec) == ("copy", "av1")
    assert_shows_span(source, clip, 1.0, 3.0, exact=True)


def test_mpeg2_in_a_transport_stream_is_encoded(tmp_path, clip):
    source = write_video(tmp_path / "in.ts", "mpeg2video", params={"b": "4M"})
    assert extract(source, 1.0, 3.0, clip, num_frames=50).method == "encode"
    assert_shows_span(source, clip, 1.0, 3.0, exact=False)


@pytest.mark.parametrize("start_s", [1.0, 1.4])
def test_variable_frame_rate_is_kept(tmp_path, clip, start_s):
    steps = np.random.default_rng(0).integers(15, 90, 119)
    times_ms = np.concatenate([[0], np.cumsum(steps)])
    times_ms[25:] += 1000 - times_ms[25]  # the second keyframe packet at 1 s
    times_ms[:25] = np.linspace(0, 960, 25).astype(int)
    source = write_video(tmp_path / "in.mkv", params=B_FRAMES, times_ms=times_ms.tolist())
    result = extract(source, start_s, 3.0, clip)
    assert result.method == ("copy" if start_s == 1.0 else "encode")
    assert_shows_span(source, clip, start_s, 3.0, exact=result.method == "copy")


def test_ten_bits_are_copied_unchanged_and_encoded_as_eight(tmp_path, clip):
    source = write_video(
        tmp_path / "in.mp4",
        "libx265",
        pix_fmt="yuv420p10le",
        params={"x265-params": "scenecut=0:open-gop=0:log-level=none"},
    )
    assert extract(source, 1.0, 2.0, clip).method == "copy"
    assert_shows_span(source, clip, 1.0, 2.0, exact=True)
    assert extract(source, 1.4, 2.4, clip).method == "encode"
    assert_shows_span(source, clip, 1.4, 2.4, exact=False, fmt="yuv420p")
    with av.open(str(clip)) as container:
        assert next(container.decode(video=0)).format.name == "yuv420p"


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_rotation_is_kept_in_a_copy_and_applied_in_an_encode(tmp_path, clip, degrees):
    source = write_video(tmp_path / "in.mp4", params=B_FRAMES, rotation=degrees)
    size = (160, 96) if degrees == 180 else (96, 160)
    result = extract(source, 1.0, 2.0, clip)
    assert (result.method, (result.width, result.height)) == ("copy", size)
    with av.open(str(clip)) as container:
        assert abs(next(container.decode(video=0)).rotation) == abs(degrees)
    assert_shows_span(source, clip, 1.0, 2.0, exact=True)

    result = extract(source, 1.2, 2.2, clip)
    assert (result.method, (result.width, result.height)) == ("encode", size)
    _, before = decoded(source, "rgb24")
    _, after = decoded(clip, "rgb24")
    assert after[0].shape[:2] == size[::-1]
    # ffmpeg and numpy both count counter-clockwise
    assert psnr(np.rot90(before[30], degrees // 90), after[0]) > 34


def test_encode_of_odd_sizes_crops_the_last_row_and_column(tmp_path, clip):
    source = write_video(
        tmp_path / "in.mkv", "libvpx-vp9", frames=60, size=(161, 97), params={"cpu-used": "8"}
    )
    result = extract(source, 0.4, 1.4, clip)
    assert (result.method, result.width, result.height) == ("encode", 160, 96)
    _, before = decoded(source, "rgb24")
    _, after = decoded(clip, "rgb24")
    assert psnr(before[10][:96, :160], after[0]) > 34


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "gbrp"])
def test_encode_keeps_the_colours_of_the_source(tmp_path, clip, pix_fmt):
    codec = "libx264rgb" if pix_fmt == "gbrp" else "libx264"
    source = write_video(
        tmp_path / "in.mp4",
        codec,
        frames=40,
        pix_fmt="rgb24" if pix_fmt == "gbrp" else pix_fmt,
        color_range=2,
    )
    assert extract(source, 0.4, 1.4, clip).method == "encode"
    mean = [
        np.mean(decoded(path, "rgb24")[1][at], (0, 1)) for path, at in ((source, 10), (clip, 0))
    ]
    np.testing.assert_allclose(*mean, atol=1.5)


def test_extracting_a_span_twice_gives_the_same_bytes(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4", params=B_FRAMES)
    for start_s in (1.0, 1.2):
        extract(source, start_s, start_s + 2, clip)
        extract(source, start_s, start_s + 2, tmp_path / "again.mp4")
        assert clip.read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_metadata_of_the_source_is_removed(tmp_path, clip):
    source = tmp_path / "in.mp4"
    write_video(tmp_path / "plain.mp4")
    with av.open(str(tmp_path / "plain.mp4")) as plain, av.open(str(source), "w") as container:
        container.metadata["title"] = "a private holiday"
        stream = container.add_stream_from_template(plain.streams.video[0])
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    assert b"private holiday" in source.read_bytes()
    extract(source, 1.0, 2.0, clip)
    assert b"private holiday" not in clip.read_bytes()


def number_in_stripes(index, width, height):
    """Eight black or white stripes: the bits of the frame's number."""
    bits = np.unpackbits(np.array([index], np.uint8))
    return np.tile(np.repeat(bits * np.uint8(255), width // 8)[None, :, None], (height, 1, 3))


@pytest.mark.parametrize(
    ("name", "fps", "frames"), [("a.mkv", 30000 / 1001, 136), ("a.mp4", 24000 / 1001, 81)]
)
def test_no_frame_is_in_two_clips_of_a_take_whatever_the_clock(tmp_path, name, fps, frames):
    """Times are rounded to 1 ms in the mkv, and to 1/90000 s in the mp4."""
    times_s = np.arange(frames) / fps
    source = draw(tmp_path / name, times_s=times_s, fps=fps, picture=number_in_stripes)
    with Reader(str(source)) as reader:
        assert sum(1 for _ in reader.frames()) == frames
        spans = place_clips((0.0, reader.end_s), 1.0, 1.5, np.array([]), reader.times_s)
    shown = []
    for number, span in enumerate(spans):
        extract(source, *span, tmp_path / f"{number}.mp4")
        for frame in decoded(tmp_path / f"{number}.mp4", "gray")[1]:
            shown.append(int(np.packbits(frame[24, 4::8] > 128)[0]))
    assert len(spans) > 2
    assert len(set(shown)) == len(shown) >= frames - 2 * (len(spans) + 1)


def test_span_without_frames_is_an_error(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4", frames=30)
    with pytest.raises(BadVideo, match=r"no frame from 5.000 to 6.000 s"):
        extract(source, 5.0, 6.0, clip)
    assert list(tmp_path.iterdir()) == [source]


def test_source_with_other_frames_than_at_scoring_is_an_error(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4", frames=60)
    with pytest.raises(BadVideo, match=r"25 frames from .* scoring found 40"):
        extract(source, 1.0, 2.0, clip, num_frames=40)
    assert not clip.exists()


def test_error_names_what_a_file_is_that_is_no_video(tmp_path, clip):
    (tmp_path / "in.mp4").write_text("no video at all")
    with pytest.raises(BadVideo, match="text"):
        extract(tmp_path / "in.mp4", 0, 1, clip)
    with pytest.raises(BadVideo, match="no such file"):
        extract(tmp_path / "gone.mp4", 0, 1, clip)


def test_unwritable_folder_or_full_disk_is_an_output_error(tmp_path, clip):
    source = write_video(tmp_path / "in.mp4")
    with pytest.raises(OutputError, match="can't write"):
        extract(source, 1.0, 2.0, source / "no folder" / "clip.mp4")
    for start_s in (1.0, 1.2):
        with full_disk(), pytest.raises(OutputError, match=r"can't write .*clip.mp4"):
            extract(source, start_s, start_s + 2, clip)
    assert list(tmp_path.iterdir()) == [source]


def test_source_truncated_within_the_span_is_an_error(tmp_path, clip):
    source = write_video(tmp_path / "in.mkv", params=B_FRAMES)
    Path(source).write_bytes(Path(source).read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(BadVideo, match="scoring found 100"):
        extract(source, 0.0, 4.0, clip, num_frames=100)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("intact") / "in.mp4", params=B_FRAMES).read_bytes()


def frames_at_scoring(source, start_s, end_s):
    """How many frames of the span scoring finds; None where the video fails."""
    try:
        with Reader(str(source)) as reader:
            return sum(is_in_span(t_s, start_s, end_s) for t_s, _ in reader.frames())
    except BadVideo:
        return None


@pytest.mark.parametrize("seed", range(30))
def test_damaged_source_gives_a_clip_that_decodes_or_an_error(tmp_path, clip, intact, seed):
    source = tmp_path / "in.mp4"
    rng = np.random.default_rng(seed)
    data = np.frombuffer(intact, np.uint8).copy()
    start = intact.find(b"moov") if seed % 2 else 0  # half of them in the index
    data[rng.integers(start, len(data), 1 + seed)] = rng.integers(0, 256, 1 + seed)
    source.write_bytes(data.tobytes())
    for start_s in (1.0, 1.2):
        scored = frames_at_scoring(source, start_s, start_s + 1)
        try:
            result = extract(source, start_s, start_s + 1, clip, scored)
        except BadVideo:  # any other error fails the test
            continue
        if scored is not None:
            assert len(decoded(clip)[1]) == result.num_frames


def test_span_with_an_undecodable_packet_is_encoded(tmp_path, clip, intact):
    source = tmp_path / "in.mp4"
    source.write_bytes(intact)
    with av.open(str(source)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        bad = next(p for p in packets if p.pts * p.time_base > 2)
    data = bytearray(intact)
    data[bad.pos : bad.pos + bad.size] = bytes(bad.size)
    source.write_bytes(data)
    scored = frames_at_scoring(source, 1.0, 3.0)
    assert scored < 50
    assert extract(source, 1.0, 3.0, clip, scored).method == "encode"
    assert len(decoded(clip)[1]) == scored


def test_transport_stream_is_read_from_a_keyframe_before_the_clip(tmp_path):
    options = {"g": "25", "bf": "2", "sc_threshold": "0"}
    source = draw(tmp_path / "a.ts", frames=250, width=160, height=90, options=options)
    keys = index_keyframes(str(source))
    assert len(keys) == 10
    assert [key.place for key in keys] == sorted(key.place for key in keys)
    for number, start_s in enumerate((0.4, 3.0, 3.52, 8.2)):
        one, two = tmp_path / f"{number}.mp4", tmp_path / f"{number}_from_start.mp4"
        result = extract(source, start_s, start_s + 1.4, one, num_frames=35)
        extract(source, start_s, start_s + 1.4, two, num_frames=35, times_jump=True)
        assert result.method == "encode"
        assert one.read_bytes() == two.read_bytes()
    with closing(SeekableVideo(str(source), keyframes=keys)) as video:
        first_s, _ = next(video.frames(8.2))
    assert 6.2 <= first_s <= 7.2


@pytest.mark.parametrize("name", ["a.avi", "a.ts"])
def test_reading_a_long_file_up_to_a_clip_reports_progress(tmp_path, name, monkeypatch):
    """A worker that waits for the clip would otherwise take a file of hours for one that hangs."""
    source = draw(tmp_path / name, frames=150, codec="mpeg4", width=160, height=90)
    reports = []
    monkeypatch.setattr(heartbeat, "INTERVAL_S", -1.0)
    monkeypatch.setattr(heartbeat, "_send", lambda: reports.append(1))
    extract(source, 4.0, 5.0, tmp_path / "clip.mp4", 25)
    assert len(reports) >= 125


def test_clips_of_a_video_without_an_index_take_one_pass_and_have_the_same_bytes(tmp_path):
    source = draw(tmp_path / "a.avi", frames=150, codec="mpeg4", width=160, height=90)
    spans = [(0.2, 1.2), (1.2, 2.6), (4.0, 5.0), (0.6, 1.0)]
    with closing(ClipSource(str(source))) as kept:
        for number, (start_s, end_s) in enumerate(spans):
            one, alone = tmp_path / f"{number}.mp4", tmp_path / f"{number}_alone.mp4"
            frames = round((end_s - start_s) * 25)
            extract_clip(kept, start_s, end_s, one, frames)
            extract(source, start_s, end_s, alone, frames)
            assert one.read_bytes() == alone.read_bytes()
    with closing(SeekableVideo(str(source))) as video:
        read = [t_s for t_s, _, _ in video.frames_of_span(0.2, 1.2)]
        decoded = [t_s for t_s, _ in video.frames(1.2)]
    assert read[-1] == pytest.approx(1.16)
    assert decoded[0] == pytest.approx(1.2)


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_video_is_closed_after_its_last_clip(tmp_path, name):
    """Not when Python's garbage collector runs: a fetched video takes room until it is closed."""
    source = draw(tmp_path / name, frames=50, codec="mpeg4", width=160, height=90)
    args = (str(source), False, 0.2, 1.2, str(tmp_path / "clip.mp4"), 25, False, False)
    gc.disable()
    try:
        export_stages._run_in_child("extract", args)
        export_stages._run_in_child("close", ())
        descriptors = Path("/proc/self/fd").iterdir()
        assert str(source) not in [os.path.realpath(path) for path in descriptors]
    finally:
        gc.enable()
