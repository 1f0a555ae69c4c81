"""A clip shows what a player shows of its span, checked with Debian's ffmpeg as the player."""

from __future__ import annotations

import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from curation.images import decode_image
from curation.orientation import Orientation, orientation_of_matrix
from curation.video import tone_mapping
from curation.video.planes import bgr_image
from curation.video.reader import Reader, probe
from curation.video.tone_mapping import to_sdr
from stages.export.extraction import ExtractedClip
from stages.export.presto import frame_indices, write_presto_clip
from stages.meters.key_frames import KeyFrames
from tests.support.ffmpeg import needs_ffmpeg
from tests.support.independent_reader import (
    SQUARE_PIXELS,
    corners_of,
    number_of,
    numbered,
    probe_stream,
    shown_frames,
)
from tests.support.video_files import extract, spliced
from training.config import Size
from training.frames import sample_frames

pytestmark = needs_ffmpeg

FPS, GOP = 25, 25
SAMPLE_ENTRY_BYTES = 78  # before its boxes, ISO 14496-12
START_S = {"copy": 1.0, "encode": 1.2}  # with and without a keyframe packet
# (a, b, c, d) of the display matrix: a stored pixel (x, y) is shown at (a x + c y, b x + d y)
MATRICES = {
    "0": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored 90": (0, -1, -1, 0),
    "mirrored 180": (1, 0, 0, -1),
    "mirrored 270": (0, 1, 1, 0),
}


def draw(
    path: Path,
    *,
    size: tuple[int, int] = (320, 180),
    frames: int = 42,
    first: int = 0,  # number of the first frame
    codec: str = "libx264",
    matrix: tuple[int, int, int, int] | None = None,
    pixel_aspect: Fraction | None = None,  # in the codec's data
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    format: str | None = None,
) -> Path:
    """Numbered frames. A matrix's picture is stored so that it is shown upright."""
    orientation = orientation_of_matrix(*(matrix or MATRICES["0"]))
    with av.open(str(path), "w", format=format) as out:
        stream = out.add_stream(
            codec, rate=FPS, options=options or {"crf": "16", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size, stream.codec_context.thread_count = GOP, 1
        stream.codec_context.max_b_frames = 2
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if matrix:
            a, b, c, d = (number << 16 for number in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for index in range(frames):
            width, height = size[::-1] if orientation.swaps_sides else size
            picture = inverse(orientation).apply(numbered(first + index, width, height))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def inverse(orientation: Orientation) -> Orientation:
    if orientation.mirrored:
        return orientation
    return Orientation(-orientation.rotation % 360)


def remuxed(path: Path, source: Path, *options: str) -> Path:
    """The same packets, in a container that states something else."""
    command = ["ffmpeg", "-v", "error", "-y", "-i", source, "-c", "copy", *options, path]
    subprocess.run(command, check=True)
    return path


def assert_clip_shows_span(
    source: Path, clip: Path, method: str, frames: int = 10, filters: str = SQUARE_PIXELS
) -> ExtractedClip:
    """The clip, as ffmpeg shows it, has the source's numbers, corners, shape and pictures."""
    start_s = START_S[method]
    result = extract(source, start_s, start_s + frames / FPS, clip, frames)
    first = round(start_s * FPS)
    expected = shown_frames(source, filters)[first : first + frames]
    shown = shown_frames(clip, filters)
    assert result.method == method
    assert [number_of(f) for f in shown] == list(range(first, first + frames))
    assert_same_pictures(shown, expected)
    assert (result.height, result.width) == pytest.approx(shown.shape[1:3], abs=1)
    header = probe(str(source))
    assert (header.height, header.width) == pytest.approx(expected.shape[1:3], abs=1)
    return result


def assert_same_pictures(shown: np.ndarray, expected: np.ndarray, mean: float = 2) -> None:
    assert np.abs(np.subtract(shown.shape, expected.shape)).max() <= 1  # 4:2:0 has no odd sizes
    height, width = np.minimum(shown.shape[1:3], expected.shape[1:3])
    shown, expected = shown[:, :height, :width], expected[:, :height, :width]
    np.testing.assert_allclose(corners_of(shown[0]), corners_of(expected[0]), atol=4)
    assert np.abs(np.subtract(shown, expected, dtype=np.int16)).mean() < mean


def assert_meters_read_what_is_shown(source: Path) -> None:
    expected = shown_frames(source)
    with Reader(str(source)) as reader:
        for index, (_, planes) in enumerate(reader.frames()):
            image = bgr_image(planes, 10_000)[..., ::-1]
            assert image.shape == pytest.approx(expected[index].shape, abs=1)
            assert number_of(image) == index
            np.testing.assert_allclose(corners_of(image), corners_of(expected[index]), atol=8)
            assert planes.y.shape == image.shape[:2]


def assert_trainer_reads_what_is_shown(clip: Path, frames: int) -> None:
    shown = shown_frames(clip)
    size = Size(frames, shown.shape[1] // 2 * 2, shown.shape[2] // 2 * 2)
    read = sample_frames(clip.read_bytes(), frames / FPS, frames, size).numpy()
    assert [number_of(f) for f in read] == [number_of(f) for f in shown]
    assert_same_pictures(read, shown)


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_orientations_are_shown_upright(tmp_path, matrix, name):
    source = draw(tmp_path / name, matrix=MATRICES[matrix])
    for method in ("encode", "copy"):
        assert_clip_shows_span(source, tmp_path / f"{method}.mp4", method)
        assert_trainer_reads_what_is_shown(tmp_path / f"{method}.mp4", 10)
    assert_meters_read_what_is_shown(source)


def shown_aspect(path: Path) -> float:
    return float(Fraction(probe_stream(path)["display_aspect_ratio"].replace(":", "/")))


@pytest.mark.parametrize("method", ["copy", "encode"])
@pytest.mark.parametrize(
    ("name", "aspect"),
    [
        ("in.mkv", "4:3"),
        ("in.mp4", "4:3"),
        ("in.mov", "64:27"),
        ("in.mp4", "1:1"),
    ],
)
def test_pixel_aspect_that_only_the_container_states_is_kept(tmp_path, name, aspect, method):
    plain = draw(tmp_path / "plain.mp4")
    source = remuxed(tmp_path / name, plain, "-aspect", aspect)
    clip = tmp_path / "clip.mp4"
    assert_clip_shows_span(source, clip, method)
    assert shown_aspect(clip) == pytest.approx(shown_aspect(source), rel=0.01)
    assert_meters_read_what_is_shown(source)
    assert_trainer_reads_what_is_shown(clip, 10)


@pytest.mark.parametrize("method", ["copy", "encode"])
@pytest.mark.parametrize(
    ("name", "codec"), [("in.webm", "libvpx-vp9"), ("in.mkv", "libsvtav1"), ("in.mp4", "libx265")]
)
def test_pixel_aspect_is_kept_for_every_copied_codec(tmp_path, name, codec, method):
    options = {
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
        "libsvtav1": {"preset": "12", "crf": "20"},
        "libx265": {"x265-params": "log-level=none:open-gop=0:crf=16"},
    }[codec]
    plain = draw(tmp_path / "plain.mkv", codec=codec, options=options)
    source = remuxed(tmp_path / name, plain, "-aspect", "4:3")
    assert_clip_shows_span(source, tmp_path / "clip.mp4", method)
    assert shown_aspect(tmp_path / "clip.mp4") == pytest.approx(4 / 3, rel=0.01)


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.ts", "in.avi"])
def test_pixel_aspect_of_the_codec_is_that_of_every_container(tmp_path, name):
    source = draw(tmp_path / name, pixel_aspect=Fraction(16, 11))
    assert (probe(str(source)).width, probe(str(source)).height) == (465, 180)
    assert_clip_shows_span(source, tmp_path / "clip.mp4", "encode")


def test_pixel_aspect_of_the_container_counts_before_that_of_the_codec(tmp_path):
    plain = draw(tmp_path / "plain.mp4", pixel_aspect=Fraction(4, 3))
    source = remuxed(tmp_path / "in.mkv", plain, "-aspect", "16:9")
    assert_clip_shows_span(source, tmp_path / "clip.mp4", "copy")
    assert shown_aspect(tmp_path / "clip.mp4") == pytest.approx(16 / 9)


@pytest.mark.parametrize("method", ["copy", "encode"])
def test_turned_and_mirrored_pixels_that_are_not_square_are_stretched_as_stored(tmp_path, method):
    plain = draw(tmp_path / "plain.mp4", matrix=MATRICES["mirrored 90"])
    source = remuxed(tmp_path / "in.mp4", plain, "-aspect", "2:1")
    stretch_turned = "scale=iw:ih/sar,setsar=1"
    assert_clip_shows_span(source, tmp_path / "clip.mp4", method, filters=stretch_turned)
    assert (probe(str(source)).width, probe(str(source)).height) == (180, 360)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_take_ends_where_the_pixel_aspect_changes_and_each_clip_has_its_own(tmp_path, codec):
    """As in broadcasts that switch between 4:3 and 16:9; the stored size stays."""
    options = {"crf": "16", "qmin": "1", "qmax": "2"}
    parts = [
        draw(tmp_path / f"{i}.ts", codec=codec, pixel_aspect=aspect, first=42 * i, options=options)
        for i, aspect in enumerate((Fraction(3, 4), Fraction(1)))
    ]
    source, clip = spliced(tmp_path / "in.ts", *parts), tmp_path / "clip.mp4"
    with Reader(str(source)) as reader:
        shapes = [(p.y.shape, bgr_image(p, 1000).shape[:2]) for _, p in reader.frames()]
    narrow, wide = (180, 240), (180, 320)
    assert shapes == [(narrow, narrow)] * 42 + [(narrow, wide)] * 42
    [change_s] = reader.breaks_s
    assert change_s == pytest.approx(42 / FPS, abs=0.002)
    assert reader.size_at(change_s) == wide[::-1]
    for part, start_s, shape in zip(parts, (0.2, change_s + 0.2), (narrow, wide), strict=True):
        result = extract(source, start_s, start_s + 0.4, clip, 10)
        assert (result.height, result.width) == shape
        assert_same_pictures(shown_frames(clip), shown_frames(part)[5:15], mean=3)


COLOURS = {
    "range": ("-color_range", "pc"),
    "transfer": ("-color_trc", "smpte2084"),
    "all": (
        *("-color_range", "pc", "-colorspace", "bt2020nc"),
        *("-color_primaries", "bt2020", "-color_trc", "arib-std-b67"),
    ),
    "BT.601": ("-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "bt709"),
}


@pytest.mark.parametrize("method", ["copy", "encode"])
@pytest.mark.parametrize("colours", COLOURS)
def test_colours_that_only_the_container_states_are_kept(tmp_path, colours, method):
    plain = draw(tmp_path / "plain.mp4")
    source = remuxed(tmp_path / "in.mkv", plain, *COLOURS[colours])
    clip = tmp_path / "clip.mp4"
    assert_clip_shows_span(source, clip, method)
    names = ("color_range", "color_space", "color_transfer", "color_primaries")
    expected, found = probe_stream(source), probe_stream(clip)
    assert any(name in expected for name in names)
    for name in names:
        if name in expected:
            assert found.get(name) == expected[name]


def test_presto_gets_square_pixels_of_the_shown_shape(tmp_path):
    """1440x1080 shown as 1920x1080, the size of much HD video of tapes and broadcasts."""
    options = {"preset": "ultrafast", "crf": "16"}
    plain = draw(tmp_path / "plain.mp4", size=(1440, 1080), frames=33, options=options)
    source = remuxed(tmp_path / "in.mp4", plain, "-aspect", "16:9")
    clip = tmp_path / "clip.mp4"
    assert assert_clip_shows_span(source, clip, "encode", frames=3).width == 1920
    result = assert_clip_shows_span(source, clip, "copy", frames=8)
    assert (result.width, result.height) == (1920, 1080)
    meta = presto_row(clip, result, tmp_path)
    path = tmp_path / "presto" / meta["path"]
    stored = probe_stream(path)
    assert (meta["width"], meta["height"]) == (1280, 720) == (stored["width"], stored["height"])
    shown = shown_frames(path, "scale=320:180")  # of the stored pixels
    indices = frame_indices([i / FPS for i in range(8)], 8 / FPS)
    assert [number_of(f) for f in shown] == (25 + indices).tolist()
    np.testing.assert_allclose(corners_of(shown[0]), corners_of(shown_frames(clip)[0]), atol=4)


def presto_row(clip: Path, result: ExtractedClip, folder: Path) -> dict:
    parts = [{"text": "a"}] * 5
    row = {
        "clip_id": "a",
        "split": "train",
        "start_s": 0.0,
        "end_s": 8 / FPS,
        "sub_captions": parts,
    }
    return write_presto_clip(row, clip, result, folder / "presto")


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def with_clean_aperture(path: Path, source: Path, *numbers: int) -> Path:
    """numbers: width, height, and how far the centre is right of and below the picture's, each as
    a fraction of two."""
    return with_entry_box(path, source, box(b"clap", struct.pack(">8i", *numbers)), b"avc1")


def with_entry_box(path: Path, source: Path, new: bytes, codec: bytes) -> Path:
    """A box in the sample entry. The index lies last in the file, so no frame moves."""
    data = source.read_bytes()
    index = data.index(b"moov")
    at = data.index(codec, index) + 4 + SAMPLE_ENTRY_BYTES
    data = data[:at] + new + data[at:]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", codec):
        start = data.index(kind, index) - 4
        size = int.from_bytes(data[start : start + 4]) + len(new)
        data = data[:start] + struct.pack(">I", size) + data[start + 4 :]
    path.write_bytes(data)
    return path


def with_pixel_crop(path: Path, source: Path, *margins: int) -> Path:
    """margins: left, top, right, bottom."""
    ids = (0x54CC, 0x54BB, 0x54DD, 0x54AA)
    new = b"".join(struct.pack(">HBB", i, 0x81, m) for i, m in zip(ids, margins, strict=True))
    return with_video_elements(path, source, new)


def with_video_elements(path: Path, source: Path, new: bytes) -> Path:
    """Elements about the video in an mkv. A Void element before the tracks gets as much smaller."""
    data = bytearray(source.read_bytes())
    void = data.index(b"\xec\x01")
    tracks = data.index(b"\x16\x54\xae\x6b", void)
    entry = data.index(b"\xae", tracks + 12)
    video = data.index(b"\xe0", data.index(b"\x23\xe3\x83") + 8)  # after the frame's duration
    data[video + 2 : video + 2] = new
    for size_at in (tracks + 5, entry + 8, video + 1):  # the last bytes of their sizes
        data[size_at] += len(new)
    data[void + 8] -= len(new)
    del data[void + 9 : void + 9 + len(new)]
    path.write_bytes(data)
    return path


CROPS = {  # how it is stated, and the expected width, height, left, top
    "clap": ((320, 1, 140, 1, 0, 1, 0, 1), (320, 140, 0, 20)),
    "clap with an offset": ((300, 1, 160, 1, 6, 1, -4, 1), (300, 160, 16, 6)),
    "clap of odd sizes": ((301, 1, 151, 1, 1, 2, 1, 2), (301, 151, 10, 15)),
    "clap of fractions": ((6001, 20, 3001, 20, 1, 4, 0, 1), (300, 150, 11, 15)),
    "PixelCrop": ((10, 20, 12, 16), (298, 144, 10, 20)),
    "PixelCrop of odd sizes": ((11, 7, 0, 0), (309, 173, 11, 7)),
}


@pytest.mark.parametrize("aspect", [None, "2:1"])
@pytest.mark.parametrize("name", CROPS)
def test_clean_aperture_is_applied_in_an_encode(tmp_path, name, aspect):
    """ffmpeg 5.1 ignores it: it is given the crop."""
    numbers, (width, height, left, top) = CROPS[name]
    add, ending = (with_clean_aperture, "mp4") if "clap" in name else (with_pixel_crop, "mkv")
    plain = draw(tmp_path / f"plain.{ending}", pixel_aspect=Fraction(9, 8) if aspect else None)
    source = add(tmp_path / f"in.{ending}", plain, *numbers)
    clip = tmp_path / "clip.mp4"
    result = extract(source, 1.0, 1.4, clip, 10)
    shown_width = round(width * (Fraction(9, 8) if aspect else 1))
    header = probe(str(source))
    assert (header.width, header.height) == (shown_width, height)
    assert (result.method, result.height) == ("encode", height // 2 * 2)
    shown = shown_frames(clip)
    crop = f"format=rgb24,crop={width}:{height}:{left}:{top}:exact=1"
    expected = shown_frames(source, f"{crop},scale={shown_width}:{height},setsar=1")[25:35]
    assert_same_pictures(shown, expected, mean=3)  # 339 px are scaled to 338
    whole = np.zeros((180, 320 if aspect is None else 360, 3), np.uint8)
    at = round(left * whole.shape[1] / 320)
    for index, picture in enumerate(shown, 25):
        whole[top : top + picture.shape[0], at : at + picture.shape[1]] = picture
        assert number_of(whole) == index
    with Reader(str(source)) as reader:
        _, planes = next(reader.frames())
    assert planes.y.shape == (height, shown_width)
    image = bgr_image(planes, 1000)[..., ::-1]
    first = shown_frames(source, f"{crop},scale={shown_width}:{height}")[0]
    assert np.abs(image - first.astype(int)).mean() < 4


@pytest.mark.parametrize(
    "numbers",
    [(320, 1, 180, 1, 0, 1, 0, 1), (400, 1, 140, 1, 0, 1, 0, 1), (320, 0, 140, 1, 0, 1, 0, 1)],
)
def test_clean_aperture_that_is_no_part_of_the_picture_is_ignored(tmp_path, numbers):
    source = with_clean_aperture(tmp_path / "in.mp4", draw(tmp_path / "plain.mp4"), *numbers)
    assert_clip_shows_span(source, tmp_path / "clip.mp4", "copy")


INTERLACED = {  # the file's name, and how ffmpeg draws it
    "tff.mp4": "-c:v libx264 -flags +ildct+ilme -x264opts tff=1 -bf 2",
    "bff.mkv": "-c:v libx264 -flags +ildct+ilme -x264opts bff=1",
    "mpeg2.ts": "-c:v mpeg2video -flags +ildct+ilme -qscale:v 2",
    "mpeg2.mpg": "-c:v mpeg2video -flags +ildct+ilme -qscale:v 2",
    "prores.mov": "-c:v prores_ks -flags +ildct+ilme",
}


def draw_interlaced(path: Path, size: tuple[int, int] = (320, 180)) -> Path:
    """25 frames a second, whose two fields are numbered frames of 50 a second."""
    plain = draw(path.parent / "plain.mkv", codec="ffv1", options={}, frames=80, size=size)
    first = "bottom" if "bff" in path.name else "top"
    fields = f"setpts=PTS/2,fps=50,tinterlace=interleave_{first},fieldorder={first[0]}ff"
    options = [*INTERLACED[path.name].split(), "-g", "1000", "-pix_fmt", "yuv420p"]
    if "prores" in path.name:
        options[-1] = "yuv422p10le"
    command = ["ffmpeg", "-v", "error", "-y", "-i", plain, "-vf", fields, *options, path]
    subprocess.run(command, check=True)
    return path


def comb_level(frames: np.ndarray) -> float:
    """How much more neighbouring lines differ than every second one does: above 1 in combs."""
    luma = frames.astype(float).mean(-1)
    next_line = np.abs(luma[:, 1:-1] - luma[:, :-2]) + np.abs(luma[:, 1:-1] - luma[:, 2:])
    return float(next_line.mean() / np.abs(luma[:, 2:] - luma[:, :-2]).mean())


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_video_is_known_and_deinterlaced(tmp_path, name):
    source = draw_interlaced(tmp_path / name)
    with Reader(str(source)) as reader:
        frames = sum(1 for _ in reader.frames())
    assert reader.header.interlaced
    assert list(reader.interlaced) == [1] * frames
    clip = tmp_path / "clip.mp4"
    result = extract(source, 0.0, 1.0, clip, 25)
    assert (result.method, result.num_frames) == ("encode", 25)
    assert probe_stream(clip)["field_order"] == "progressive"
    shown, combed = shown_frames(clip), shown_frames(source)[:25]
    expected = shown_frames(source, "bwdif=mode=send_frame")[:25]
    assert_same_pictures(shown, expected, mean=3)
    assert comb_level(shown) < comb_level(combed)
    assert comb_level(read_images(source)) < comb_level(combed)
    assert shown_times(clip) == pytest.approx([i / FPS for i in range(25)], abs=1e-3)


def test_single_fields_of_hevc_have_the_shape_of_the_frame(tmp_path):
    """A reader gets each field as a picture of half the height, without combs."""
    params = "log-level=none:interlace=tff:crf=8:open-gop=0"
    with av.open(str(tmp_path / "in.ts"), "w") as out:
        stream = out.add_stream("libx265", rate=2 * FPS, options={"x265-params": params})
        stream.width, stream.height, stream.pix_fmt = 320, 90, "yuv420p"
        for index in range(50):
            field = np.ascontiguousarray(numbered(index, 320, 180)[index % 2 :: 2])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(field, "rgb24")))
        out.mux(stream.encode())
    expected = shown_frames(tmp_path / "in.ts", "scale=160:90:flags=area")
    images = read_images(tmp_path / "in.ts")
    assert [number_of(image) for image in images] == list(range(50))
    assert_same_pictures(images, expected, mean=3)
    result = extract(tmp_path / "in.ts", 0.2, 0.6, tmp_path / "clip.mp4", 20)
    assert (result.method, result.width, result.height) == ("encode", 160, 90)
    assert_same_pictures(shown_frames(tmp_path / "clip.mp4"), expected[10:30], mean=3)


def read_images(source: Path) -> np.ndarray:
    """(T, H, W, 3) RGB, as key frames are made of them."""
    with Reader(str(source)) as reader:
        return np.stack([bgr_image(planes, 1000)[..., ::-1] for _, planes in reader.frames()])


def shown_times(path: Path) -> list[float]:
    command = ["ffprobe", "-v", "error", "-show_entries", "frame=pts_time", "-of", "csv=p=0", path]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(line.strip(",")) for line in printed.split()]


def test_interlaced_span_of_a_video_that_begins_progressive_is_encoded(tmp_path):
    """Only scoring, which decodes every frame, can know it."""
    source = draw(tmp_path / "in.mp4")
    assert extract(source, 1.0, 1.4, tmp_path / "clip.mp4", 10).method == "copy"
    result = extract(source, 1.0, 1.4, tmp_path / "clip.mp4", 10, interlaced=True)
    assert result.method == "encode"


HDR = {"smpte2084": (16, 0.75), "arib-std-b67": (18, 1.0)}  # number; signal of the brightest level
MASTER_1000 = (
    "hdr10=1:max-cll=1000,400:master-display="
    "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
)
# An independent conversion: zimg, and the tone curve of Hable (Debian's ffmpeg has both).
TO_SDR = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)


def draw_hdr(path: Path, transfer: str, master: str = MASTER_1000) -> Path:
    number, peak = HDR[transfer]
    params = f"log-level=none:open-gop=0:crf=8:{master if peak < 1 else ''}"
    options = {"preset": "ultrafast", "x265-params": params}
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx265", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p10le"
        context = stream.codec_context
        context.gop_size, context.color_range = GOP, 1
        context.colorspace = context.color_primaries = 9
        context.color_trc = number
        for index in range(36):
            signal = numbered(index, 320, 180) * (257 * peak)
            frame = av.VideoFrame.from_ndarray(signal.astype(np.uint16), "rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("transfer", HDR)
def test_hdr_is_known_kept_in_a_copy_and_tone_mapped_if_asked_for(tmp_path, transfer):
    source, clip = draw_hdr(tmp_path / "in.mkv", transfer), tmp_path / "clip.mp4"
    assert probe(str(source)).transfer == transfer
    assert extract(source, 1.0, 1.4, clip, 10).method == "copy"
    assert probe_stream(clip)["color_transfer"] == transfer
    assert extract(source, 1.0, 1.4, clip, 10, to_sdr=True).method == "encode"
    found = probe_stream(clip)
    for name in ("color_transfer", "color_primaries", "color_space"):
        assert found[name] == "bt709"
    assert (found["pix_fmt"], found["color_range"]) == ("yuv420p", "tv")
    assert "side_data_list" not in found  # the levels of the HDR master
    shown, expected = shown_frames(clip), shown_frames(source, TO_SDR)[25:35]
    assert [number_of(f) for f in shown] == list(range(25, 35))
    assert np.abs(shown.astype(int) - expected).mean() < 15  # of 255; the tone curves differ
    levels = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(shown, expected, strict=True)]
    assert min(levels) > 0.97


@pytest.mark.parametrize("transfer", HDR)
def test_key_frames_of_hdr_are_tone_mapped(tmp_path, transfer):
    source = draw_hdr(tmp_path / "in.mkv", transfer)
    key_frames = KeyFrames()
    key_frames.start()
    with Reader(str(source)) as reader:
        for t_s, planes in reader.frames():
            key_frames.process_frame(t_s, planes)
    [(t_s, jpeg)] = key_frames.nearest(1.0, 0.5, 1.4)
    shown = decode_image(jpeg, "a key frame")[..., ::-1]
    expected = shown_frames(source, TO_SDR)[round(t_s * FPS)]
    assert number_of(shown) == 25
    assert np.abs(shown.astype(int) - expected).mean() < 10  # read as SDR: 24 (PQ), 14 (HLG)


@pytest.mark.slow  # a table of 4 s for each conversion
def test_video_with_other_levels_is_tone_mapped_by_its_own(tmp_path):
    master_4000 = MASTER_1000.replace("L(10000000", "L(40000000").replace("1000,", "4000,")
    sources = [
        draw_hdr(tmp_path / f"{number}.mkv", "smpte2084", master)
        for number, master in enumerate((MASTER_1000, master_4000))
    ]

    def first_as_sdr(source: Path) -> np.ndarray:
        with av.open(str(source)) as video:
            return to_sdr(next(video.decode(video=0))).to_ndarray()

    one, after_one = map(first_as_sdr, sources)
    tone_mapping._graph.cache_clear()
    assert np.array_equal(first_as_sdr(sources[1]), after_one)
    assert not np.array_equal(one, after_one)


def test_sdr_is_copied_whether_or_not_hdr_is_tone_mapped(tmp_path):
    source = draw(tmp_path / "in.mp4")
    assert extract(source, 1.0, 1.4, tmp_path / "c.mp4", 10, to_sdr=True).method == "copy"


def test_configuration_of_dolby_vision_stays_in_a_copy(tmp_path):
    """Profile 8, whose base layer is HDR10. An encode is of the base layer."""
    profile, level, has_rpu, has_base, compatibility = 8, 6, 1, 1, 1
    bits = profile << 9 | level << 3 | has_rpu << 2 | has_base
    new = box(b"dvvC", struct.pack(">BBHB19x", 1, 0, bits, compatibility << 4))
    plain = draw_hdr(tmp_path / "plain.mp4", "smpte2084")
    source, clip = with_entry_box(tmp_path / "in.mp4", plain, new, b"hev1"), tmp_path / "clip.mp4"
    assert_clip_shows_span(source, clip, "copy")
    assert side_data_of(source)["dv_profile"] == side_data_of(clip)["dv_profile"] == 8
    assert_clip_shows_span(source, clip, "encode", frames=6)
    assert "dv_profile" not in side_data_of(clip)


SPHERE = "7670 84 7671 81 01"  # elements of mkv: Projection with ProjectionType equirectangular


@pytest.mark.parametrize(
    ("elements", "method"),
    [(SPHERE, "copy"), (SPHERE, "encode"), (f"{SPHERE} 53b8 81 03", "encode")],
)
def test_spherical_and_stereoscopic_video_stays_so(tmp_path, elements, method):
    """StereoMode (53b8) 3: the left eye on top."""
    plain = draw(tmp_path / "plain.mkv")
    source = with_video_elements(tmp_path / "in.mkv", plain, bytes.fromhex(elements))
    assert_clip_shows_span(source, tmp_path / "clip.mp4", method)
    tags = side_data_of(tmp_path / "clip.mp4")
    assert tags["projection"] == "equirectangular"
    assert tags.get("type") == ("top and bottom" if "53b8" in elements else None)


def side_data_of(path: Path) -> dict[str, str]:
    return {k: v for data in probe_stream(path)["side_data_list"] for k, v in data.items()}


def test_levels_of_an_hdr_master_are_kept_in_an_encode(tmp_path):
    source, clip = draw_hdr(tmp_path / "in.mkv", "smpte2084"), tmp_path / "clip.mp4"
    assert extract(source, 1.2, 1.4, clip, 5).method == "encode"
    tags = side_data_of(clip)
    assert (tags["max_content"], tags["max_average"]) == (1000, 400)
    assert {k: float(Fraction(v)) for k, v in tags.items() if "_" in k and "/" in str(v)} == {
        **{"red_x": 0.68, "red_y": 0.32, "green_x": 0.265, "green_y": 0.69},
        **{"blue_x": 0.15, "blue_y": 0.06, "white_point_x": 0.3127, "white_point_y": 0.329},
        **{"min_luminance": 0.0001, "max_luminance": 1000.0},
    }
